"""The sub-networks and operating points that a model can run as, each with its quality and FLOPs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from limbert.core.config import RuntimePrecision
from limbert.core.pareto import pareto_front
from limbert.core.space import is_width_depth_name, parse_width_depth, width_depth_name
from limbert.data.tasks import Task
from limbert.errors import LimbertError
from limbert.evaluation.results import POLICIES_NAME, RESULTS_NAME, read_results
from limbert.files import read_json_lines
from limbert.inference.policy import Policy, operating_points, resolve_policy
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel

FLOPS_SEQUENCE_LENGTH = 32  # tokens of the input that FLOPs are stated for
EvalSplit = Literal["development", "validation"]


@dataclass(frozen=True)
class Variant:
    """A sub-network or an operating point."""

    name: str  # ``0.5x0.75``, or of a sub-network found by search, or of an operating point
    kind: Literal["subnet", "policy"]
    policy: Policy  # what the engine runs
    quality: float | None  # value of the task's primary metric; None: not measured
    metric: str
    eval_split: EvalSplit | None  # that the quality was measured on; qualities on different data are not compared
    flops: int  # of `FLOPS_SEQUENCE_LENGTH` tokens; of an operating point the mean over validation examples
    runtime: str = "torch"  # that computes it
    precision: RuntimePrecision = "fp32"
    memory_bytes: int = 0  # that it holds alone; on torch all share the weights, which count for the full model


@dataclass(frozen=True)
class ModelVariants:
    """All variants of one model, those with the most FLOPs first."""

    variants: tuple[Variant, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Variant]:
        """Variants by name."""
        return {variant.name: variant for variant in self.variants}

    @classmethod
    def from_run(cls, run_dir: str | Path, model: ElasticModel, *, task: Task) -> Self:
        """The variants of a trained model, with the qualities in its run directory.

        Raises:
            CheckpointError: if a file of the run is broken.
        """
        cost, variants, qualities = CostModel(model), [], _subnet_qualities(Path(run_dir), task)
        for name, subnet in {**model.subnets(), **model.searched_subnets()}.items():
            split: EvalSplit | None = "development" if name in qualities else None
            flops = cost.flops(subnet, FLOPS_SEQUENCE_LENGTH)
            policy, metric = Policy(subnet=name), task.primary_metric
            variants.append(Variant(name, "subnet", policy, qualities.get(name), metric, split, flops))
        full_flops = cost.flops(model.full, FLOPS_SEQUENCE_LENGTH)
        for name, point in operating_points(model.record).items():
            try:
                resolve_policy(point.policy, model, task_type=task.task_type)
            except LimbertError:  # its gates may have been removed since
                continue
            quality, metric, split = point.value, point.metric, "validation"
            if (measured := _policy_quality(Path(run_dir), name, point.policy, task)) is not None:
                quality, metric, split = measured, task.primary_metric, "development"
            flops = round(point.flops_share * full_flops)
            variants.append(Variant(name, "policy", point.policy, quality, metric, split, flops))
        return cls(tuple(sorted(variants, key=lambda variant: -variant.flops)))

    def names(self, kind: Literal["subnet", "policy"]) -> list[str]:
        """Names of the sub-networks, or of the operating points."""
        return [variant.name for variant in self.variants if variant.kind == kind]

    @property
    def full(self) -> Variant:
        """The sub-network with the most FLOPs; where only operating points are loaded the first of these."""
        return next((variant for variant in self.variants if variant.kind == "subnet"), self.variants[0])

    def find(self, name: str) -> Variant | None:
        """A variant by name in any spelling: ``0.5x1.0`` and ``static:0.5x1`` are ``0.5x1``."""
        plain = name.removeprefix("static:")
        if is_width_depth_name(plain):
            plain = width_depth_name(*parse_width_depth(plain))
        return self.by_name.get(plain)

    def comparable_quality(self, variant: Variant) -> float | None:
        """The quality, if it was measured on the data that counts: development if any was, otherwise validation."""
        splits = {other.eval_split for other in self.variants}
        split = "development" if "development" in splits else "validation"
        return variant.quality if variant.eval_split == split else None

    def pareto_front(self, seconds: Mapping[str, float]) -> tuple[Variant, ...]:
        """The variants that no faster one beats in quality, best first; by FLOPs where no quality is known."""
        measured = {name: self.comparable_quality(variant) for name, variant in self.by_name.items()}
        known = {name: quality for name, quality in measured.items() if quality is not None}
        value = known or {name: float(self.by_name[name].flops) for name in self.names("subnet")}
        candidates = [variant for variant in self.variants if variant.name in value]
        front = pareto_front(
            candidates, cost=lambda variant: seconds[variant.name], value=lambda variant: value[variant.name]
        )
        return tuple(reversed(front))


def _subnet_qualities(run_dir: Path, task: Task) -> dict[str, float]:
    """The primary metric by sub-network, from the run's results."""
    results = read_results(run_dir) if (run_dir / RESULTS_NAME).is_file() else []
    measured = {result.subnet: _primary_metric(result.metrics, task) for result in results}
    return {name: value for name, value in measured.items() if value is not None}


def _policy_quality(run_dir: Path, name: str, policy: Policy, task: Task) -> float | None:
    """The primary metric of an operating point on the development set, with its present settings."""
    path, wanted = run_dir / POLICIES_NAME, (name, "development", policy.to_dict())
    keys: dict[str, type] = {"name": str, "data": str, "settings": dict, "metrics": dict}
    rows = read_json_lines(path, required_keys=keys) if path.is_file() else []
    measured = (row["metrics"] for row in rows if (row["name"], row["data"], row["settings"]) == wanted)
    return next((value for metrics in measured if (value := _primary_metric(metrics, task)) is not None), None)


def _primary_metric(metrics: Mapping[str, float], task: Task) -> float | None:
    """Its mean over the development sets; None if it was not measured."""
    values = [value for name, value in metrics.items() if name.rpartition("/")[2] == task.primary_metric]
    return sum(values) / len(values) if values else None
