"""Settings of the verbs that measure, search, choose and export; the ``help`` of a field is the text of ``--help``."""

from dataclasses import dataclass
from typing import Literal, get_args

from limbert.core.config import config_field, require

Objective = Literal["flops", "latency"]


@dataclass(frozen=True)
class TuneConfig:
    """Which policies `limbert.tune` tries, and what its operating points may lose."""

    widths: tuple[float, ...] = config_field(
        (), "widths that gates' choices may run at, such as 0.25,0.5,1 (default: the model's)"
    )
    exit_rule: str | None = config_field(
        None, "entropy, confidence or patience (default: entropy; for regression patience)"
    )
    num_thresholds: int = config_field(
        12, "exit thresholds tried for each choice of widths", option="thresholds", minimum=1
    )
    balanced_drop: float = config_field(1.0, "points of the metric that 'balanced' may lose to the full model")
    fast_drop: float = config_field(3.0, "points of the metric that 'fast' may lose to the full model")
    max_drop: float | None = config_field(
        None, "add 'guaranteed', which loses at most this many points of accuracy on new data, with --confidence"
    )
    confidence: float = config_field(0.9, "probability that 'guaranteed' loses no more than --max-drop")

    def __post_init__(self) -> None:
        require(0 <= self.balanced_drop <= 100, "balanced drop", self.balanced_drop, "between 0 and 100 points")
        require(0 <= self.fast_drop <= 100, "fast drop", self.fast_drop, "between 0 and 100 points")
        max_drop = self.max_drop
        require(max_drop is None or 0 < max_drop < 100, "max drop", max_drop, "above 0 and below 100 points")
        require(0.5 <= self.confidence <= 0.998, "confidence", self.confidence, "from 0.5 to 0.998")


@dataclass(frozen=True)
class SearchConfig:
    """What `limbert.search` weighs the metric against, and for how long."""

    objective: Objective = config_field("flops", "the cost to weigh the metric against: flops or latency")
    trials: int = config_field(200, "different sub-networks to evaluate, the grid included", minimum=1)
    seed: int = config_field(42, "seed of the optimiser")
    latency_batch: int = config_field(1, "latency: texts per forward pass", option="batch", minimum=1)
    latency_tokens: int | None = config_field(
        None, "latency: tokens per text (default: the median of the data)", option="tokens"
    )
    latency_runtime: str = config_field(
        "torch", "latency: timed in torch, onnxruntime or openvino (exports each sub-network)", option="runtime"
    )

    def __post_init__(self) -> None:
        objectives = get_args(Objective)
        require(self.objective in objectives, "objective", self.objective, "one of " + ", ".join(objectives))


@dataclass(frozen=True)
class BenchmarkConfig:
    """What `limbert.benchmark` measures; each combination of runtime, precision, batch size and length is a setup."""

    batch_sizes: tuple[int, ...] = config_field((1,), "batch sizes, such as 1,32", option="batch")
    lengths: tuple[int, ...] = config_field(
        (), "tokens per example, such as 32,128 (default: 128, or the model's longest)", option="tokens"
    )
    backends: tuple[str, ...] = config_field(
        ("torch",), "any of torch,onnxruntime,openvino; or all that are installed", option="runtime"
    )
    precisions: tuple[str, ...] = config_field(
        ("fp32",), "any of fp32,bf16,int8, in the runtimes that have them (torch: fp32); or all", option="precision"
    )
    device: str = config_field("cpu", "cpu, or cuda for torch")
    subnets: tuple[str, ...] = config_field(("all",), "all, or names such as 1x1,0.5x0.75,balanced")
    rounds: int = config_field(50, "forward passes of each sub-network", minimum=5)
    max_seconds: float = config_field(
        20.0,
        "time limit per runtime, precision, batch size and length; at least 5 rounds",
        option="seconds",
        minimum=0,
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The sub-networks and operating points to measure; empty: all."""
        return () if tuple(self.subnets) == ("all",) else tuple(self.subnets)


@dataclass(frozen=True)
class BudgetConfig:
    """Limits of costs and of the metric."""

    max_latency: str | None = config_field(None, "longest median latency of a pass, such as 5ms")
    max_params: str | None = config_field(None, "most parameters, such as 12M")
    max_flops: str | None = config_field(None, "most FLOPs per example, such as 1G")
    max_size: str | None = config_field(None, "largest file, such as 20MB")
    min_metric: str | None = config_field(None, "lowest metric on dev, such as 0.90, 90 or 90%")
    max_drop: str | None = config_field(None, "most points of the metric on dev below the full model, such as 1")


@dataclass(frozen=True)
class MeasurementConfig:
    """Which measurements `limbert.choose` compares."""

    batch: int | None = config_field(None, "batch size that was measured (default: 1, or the smallest)")
    tokens: int | None = config_field(None, "tokens per example that were measured (default: the most)")
    backend: str | None = config_field(None, "runtime that was measured (default: all)", option="runtime")
    precision: str | None = config_field(None, "precision that was measured (default: all)")
    profile_path: str | None = config_field(
        None,
        "profile.jsonl from the machine to choose for (default: the run's own, this machine)",
        option="device_profile",
    )


@dataclass(frozen=True)
class ExportOptions:
    """The form of an export."""

    format: str = config_field("hf", "hf (Transformers), onnx or openvino")
    int8: bool = config_field(False, "quantise to int8, and measure the loss")
    max_drop: float = config_field(1.0, "with --int8: largest loss of the metric, in points of 100")
    overwrite: bool = config_field(False, "replace an earlier export in the folder")
    vocabulary: str | None = config_field(
        None, "keep only the tokens of these texts: a file, or data as for training (its training texts)"
    )
    characters: str = config_field(
        "all", "with --vocabulary: all single characters, or those of scripts in the texts (texts)"
    )
    licence: str | None = config_field(None, "for the model card (default: that of RUN's own card)")
