"""The rows of a run's JSON lines files (results, profile, policies, search): types, names, one reader and one writer.

Imports neither torch nor the trainer, so that tables and reports can read a run quickly.
"""

import json
import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from limbert.core.config import RuntimePrecision
from limbert.core.space import is_width_depth_name, parse_width_depth
from limbert.errors import CheckpointError, StorageError
from limbert.files import read_json_lines, write_json_lines

if TYPE_CHECKING:
    from limbert.inference.policy import Policy

RESULTS_NAME = "results.jsonl"  # metrics and costs of sub-networks on the development set
PROFILE_NAME = "profile.jsonl"  # measured latency and memory of sub-networks
POLICIES_NAME = "policies.jsonl"  # metrics and costs of operating points
TUNE_NAME = "tune.jsonl"  # every policy that `limbert tune` tried
LOG_NAME = "log.jsonl"  # the training log

DatasetSplit = Literal["validation", "development"]


def mean_metric(metrics: Mapping[str, float], metric: str) -> float:
    """One metric; its mean over the development sets where there are several (``SET/METRIC``)."""
    values = [value for name, value in metrics.items() if name.rpartition("/")[2] == metric]
    return sum(values) / len(values)


@dataclass(frozen=True)
class Calibration:
    """How far the confidence of predictions is from their accuracy: expected calibration errors, from 0 to 1."""

    error: float  # of the scores that predictions have
    raw_error: float  # the same without temperatures
    temperature: float | None = None  # of a sub-network; None: a policy, which has one for each exit


@dataclass(frozen=True)
class SubnetResult:
    """Metrics and costs of one sub-network: a row of ``results.jsonl``."""

    subnet: str  # its name, ``WIDTHxDEPTH`` or one from a search
    params: int  # parameters, embeddings and head included
    flops: float  # mean floating-point operations per example, at the examples' own lengths
    metrics: dict[str, float]  # by name; with several development sets, ``SET/METRIC``
    calibration: Calibration | None = None  # of the confidence; None where there is none, or where it was not measured

    def mean_metric(self, metric: str) -> float:
        """One metric, its mean over the development sets."""
        return mean_metric(self.metrics, metric)

    def to_dict(self) -> dict[str, Any]:
        """A JSON row; width and depth are None for a sub-network from a search."""
        width, depth = parse_width_depth(self.subnet) if is_width_depth_name(self.subnet) else (None, None)
        return {
            "subnet": self.subnet,
            "width": width,
            "depth": depth,
            "params": self.params,
            "flops": round(self.flops),
            "metrics": self.metrics,
            **_calibration_entry(self.calibration),
        }


@dataclass(frozen=True)
class PolicyResult:
    """Metrics and costs of one policy: the measured part of a row of ``policies.jsonl``."""

    policy: "Policy"  # the policy that ran
    metrics: dict[str, float]  # by name; with several development sets, ``SET/METRIC``
    flops_mean: float  # mean floating-point operations per example, gates and exits included
    flops_full: float  # those of the full model on the same examples
    time_per_example: float  # seconds of the engine on this machine at this batch size, without tokenisation
    width_shares: list[dict[float, float]]  # for each layer, the fraction of examples by its width; 0: not run
    exit_shares: dict[int, float]  # the fraction of examples by the number of layers that ran
    calibration: Calibration | None = None  # as of `SubnetResult`

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "policy": self.policy.name,
            "settings": self.policy.to_dict(),
            "metrics": self.metrics,
            "flops_mean": round(self.flops_mean),
            "flops_full": round(self.flops_full),
            "time_per_example": self.time_per_example,
            "widths": [{f"{width:g}": share for width, share in layer.items()} for layer in self.width_shares],
            "exits": {str(layers): share for layers, share in self.exit_shares.items()},
            **_calibration_entry(self.calibration),
        }


def _calibration_entry(calibration: Calibration | None) -> dict[str, Any]:
    return {} if calibration is None else {"calibration": asdict(calibration)}


def policy_row_key(row: Mapping[str, Any]) -> Hashable:
    """What a later row of ``policies.jsonl`` replaces: the same operating point on the same dataset split."""
    return row["name"], row["data"]


@dataclass(frozen=True)
class ProfileSetup:
    """How sub-networks were run for a measurement."""

    backend: str  # ``torch``, ``onnxruntime`` or ``openvino``
    device: str  # ``cpu`` or ``cuda``
    threads: int  # CPU threads
    batch: int  # examples per forward pass
    tokens: int  # tokens per example
    precision: RuntimePrecision = "fp32"

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.device == "cpu" else ""
        precision = "" if self.precision == "fp32" else f" {self.precision}"
        return f"{self.backend}{precision} on {self.device}, batch {self.batch}, {self.tokens} tokens{threads}"


@dataclass(frozen=True)
class ProfileRow:
    """Measured costs of one sub-network in one setup: a row of ``profile.jsonl``."""

    subnet: str
    params: int  # parameters, embeddings and head included
    flops: int  # floating-point operations of one example with this many tokens
    file_bytes: int  # of the weights file (safetensors), or of the files that the other runtimes load
    peak_memory_bytes: int | None  # see `limbert.evaluation.memory`; None where it cannot be measured
    latency_p50_ms: float  # median milliseconds per forward pass
    latency_p95_ms: float  # 95th percentile
    throughput: float  # examples per second at the median
    rounds: int  # forward passes counted
    setup: ProfileSetup  # how it was run
    hardware: dict[str, Any]  # of the machine, see `limbert.evaluation.hardware`
    versions: dict[str, str]  # of the libraries
    measured: str  # time of the measurement, ISO 8601
    metric_loss: float = 0.0  # of the primary metric on dev to fp32, as a fraction: what bf16 or int8 costs

    def to_dict(self) -> dict[str, Any]:
        """A flat JSON row."""
        values = asdict(self)
        return values | values.pop("setup")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The row that `to_dict` wrote; KeyError if a value is missing."""
        setup = ProfileSetup(**{field.name: values[field.name] for field in fields(ProfileSetup)})
        values = {"metric_loss": 0.0} | dict(values)  # rows of earlier versions are all fp32
        return cls(setup=setup, **{field.name: values[field.name] for field in fields(cls) if field.name != "setup"})


def profile_row_key(row: Mapping[str, Any]) -> Hashable:
    """What a later row of ``profile.jsonl`` replaces: the same sub-network and setup on the same hardware."""
    setup = tuple(row[field.name] for field in fields(ProfileSetup))
    return row["subnet"], setup, json.dumps(row["hardware"], sort_keys=True)


def read_results(run: str | Path) -> list[SubnetResult]:
    """The sub-network results of a finished run."""
    needed: dict[str, type] = {"subnet": str, "params": float, "flops": float, "metrics": dict}
    rows = read_json_lines(Path(run) / RESULTS_NAME, required_keys=needed)
    return [
        SubnetResult(
            **{name: row[name] for name in needed},
            calibration=row.get("calibration") and Calibration(**row["calibration"]),
        )
        for row in rows
    ]


def read_profile(path: str | Path) -> list[ProfileRow]:
    """The rows of a profile, in their order."""
    rows: list[ProfileRow] = []
    for number, row in enumerate(read_json_lines(path, required_keys={"subnet": str}), start=1):
        try:
            rows.append(ProfileRow.from_dict(row))
        except KeyError as error:
            raise CheckpointError(f"{path}, row {number}: lacks {error}; run limbert profile again") from error
    return rows


def replace_json_lines(
    path: str | Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    key: Callable[[Mapping[str, Any]], Hashable],
    keep: Callable[[Mapping[str, Any]], bool] = lambda row: True,
) -> None:
    """Write rows in place of earlier ones with the same key; others stay in their order, unless ``keep`` is False."""
    earlier = read_json_lines(path, required_keys={}) if Path(path).exists() else []
    try:
        merged = {key(row): row for row in earlier if keep(row)}
    except KeyError as error:
        raise CheckpointError(f"{path}: a row lacks {error}; delete the file to start anew") from error
    write_json_lines(path, (merged | {key(row): row for row in rows}).values())


def require_writable_run(run: str | Path) -> None:
    """Refuse, before any work, a run directory that results could not be written into."""
    if not Path(run).is_dir():
        raise CheckpointError(f"there is no folder {run}; give the output folder of limbert train")
    if not os.access(run, os.W_OK | os.X_OK):
        raise StorageError(f"the folder {run} cannot be written, so no result could be saved; copy it first")
