"""Choose a sub-network by budget, from what was measured: costs in a profile, metrics in the run's results."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbert.core.units import QuantityType, format_quantity, parse_quantity
from limbert.errors import CheckpointError, ConfigError, SubnetError
from limbert.evaluation.hardware import describe_hardware, hardware_info
from limbert.evaluation.profile_rows import PROFILE_NAME, ProfileRow, read_profile
from limbert.evaluation.results import read_results
from limbert.model.checkpoint import read_record


@dataclass(frozen=True)
class MeasuredSubnet:
    """A measured sub-network.

    Attributes:
        row: what it costs.
        metric: the task's primary metric on the development set.
    """

    profile: ProfileRow
    metric_value: float

    @property
    def measured_name(self) -> str:
        """Named by what was measured: ``3.1ms-91.4``."""
        return measured_name(self.profile.latency_p50_ms, self.metric_value)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.measured_name, "metric": self.metric_value} | self.profile.to_dict()


@dataclass(frozen=True)
class _BudgetMetric:
    """Something that can be constrained: how it is written, and where it is found."""

    quantity_kind: QuantityType
    value_of: Callable[[MeasuredSubnet], float]
    description: str
    is_minimum: bool = False


BUDGET_METRICS: Mapping[str, _BudgetMetric] = {
    "--max-latency": _BudgetMetric("latency", lambda one: one.profile.latency_p50_ms / 1000, "median latency"),
    "--max-params": _BudgetMetric("count", lambda one: one.profile.params, "parameters"),
    "--max-flops": _BudgetMetric("count", lambda one: one.profile.flops, "FLOPs an example"),
    "--max-size": _BudgetMetric("size", lambda one: one.profile.file_bytes, "file size"),
    "--min-metric": _BudgetMetric("share", lambda one: one.metric_value, "metric", is_minimum=True),
}


@dataclass(frozen=True)
class Constraint:
    """One thing that the choice must hold.

    Attributes:
        option: as people write it, a key of `MEASURES`.
        limit: in base units: seconds, a count, bytes, a share.
    """

    option: str
    limit: float

    @property
    def budget_metric(self) -> _BudgetMetric:
        """What is constrained."""
        return BUDGET_METRICS[self.option]

    def excess(self, candidate: MeasuredSubnet) -> float:
        """By how much a candidate misses the limit, as a share of it; 0 where it holds."""
        value = self.budget_metric.value_of(candidate)
        over = self.limit - value if self.budget_metric.is_minimum else value - self.limit
        return max(0.0, over / self.limit)

    def describe(self, candidate: MeasuredSubnet) -> str:
        """``median latency 7.3 ms, 2.3 ms (46 %) over --max-latency 5.0 ms``."""
        kind, value = self.budget_metric.quantity_kind, self.budget_metric.value_of(candidate)
        missing = format_quantity(abs(value - self.limit), quantity_type=kind)
        side = "under" if self.budget_metric.is_minimum else "over"
        share = f" ({100 * self.excess(candidate):.0f} %)" if kind != "share" else " points"
        limit = f"{self.option} {format_quantity(self.limit, quantity_type=kind)}"
        return f"{self.budget_metric.description} {format_quantity(value, quantity_type=kind)}, {missing}{share} {side} {limit}"


def parse_constraints(options: Mapping[str, str | None]) -> list[Constraint]:
    """What people wrote, read strictly; options that are None are left out.

    Raises:
        ConfigError: for a text that is no quantity of its kind.
    """
    return [
        Constraint(option, parse_quantity(text, quantity_type=BUDGET_METRICS[option].quantity_kind, option=option))
        for option, text in options.items()
        if text is not None
    ]


def measured_name(latency_ms: float, metric_value: float) -> str:
    """``3.1ms-91.4``: median latency, and the metric in percent."""
    shown = f"{latency_ms:.1f}" if latency_ms >= 1 else f"{latency_ms:.2g}"
    return f"{shown}ms-{100 * metric_value:.1f}"


_MEASURED_NAME = re.compile(r"\d+(\.\d+)?ms--?\d+(\.\d+)?")


def resolve_measured_names(run_dir: str | Path, names: Sequence[str]) -> list[str]:
    """The names with those like ``3.1ms-91.4`` replaced by the sub-network that was measured so in this run.

    Raises:
        CheckpointError: if the run has no profile or no results.
        SubnetError: if nothing, or more than one sub-network, was measured so.
    """
    return [_resolve_measured_name(run_dir, name) if _MEASURED_NAME.fullmatch(name) else name for name in names]


def _resolve_measured_name(run_dir: str | Path, name: str) -> str:
    every = measured_subnets(run_dir, _read_run_profile(run_dir))
    found = sorted({one.profile.subnet for one in every if one.measured_name == name})
    if len(found) == 1:
        return found[0]
    if found:
        raise SubnetError(f"{name} could be {' or '.join(found)}, which were measured alike; name one of them")
    near = sorted({one.measured_name for one in every}, key=_latency_distance(name))[:5]
    raise SubnetError(f"no sub-network of {run_dir} was measured as {name}; near it: {', '.join(near)}")


def _latency_distance(name: str) -> Callable[[str], float]:
    def distance(other: str) -> float:
        return abs(float(other.partition("ms")[0]) - float(name.partition("ms")[0]))

    return distance


def measured_subnets(run_dir: str | Path, rows: Sequence[ProfileRow]) -> list[MeasuredSubnet]:
    """Rows of a profile with the metric of the run's results; rows without results are left out.

    Raises:
        CheckpointError: if the run has no results, or does not say what its task is.
    """
    task = read_record(run_dir).get("task", {}) if Path(run_dir).is_dir() else {}
    if not task.get("metrics"):
        raise CheckpointError(f"{run_dir} has no limbert.json that names its task; train it with limbert train first")
    metrics = {result.subnet: result.mean_metric(task["metrics"][0]) for result in read_results(run_dir)}
    return [MeasuredSubnet(row, metrics[row.subnet]) for row in rows if row.subnet in metrics]


def _read_run_profile(run_dir: str | Path) -> list[ProfileRow]:
    path = Path(run_dir) / PROFILE_NAME
    if not path.exists():
        raise CheckpointError(f"{run_dir} has not been measured yet; run limbert profile {run_dir} first")
    return read_profile(path)


@dataclass(frozen=True)
class ProfileFilter:
    """Which measurements count; None leaves it to `comparable`."""

    backend: str | None = None
    batch: int | None = None
    tokens: int | None = None


def comparable_rows(
    run_dir: str | Path, profile_filter: ProfileFilter, *, profile_path: str | Path | None = None
) -> list[ProfileRow]:
    """Rows that were measured in the same way: one machine, runtime, batch size and length.

    Not told otherwise: of the run's own profile this machine, of a given file the machine measured last; the device and
    threads measured last; batch 1 if it was measured, else the smallest; the most tokens; and the runtime in which the
    full-size model (that with the most FLOPs) is fastest.

    Args:
        run: a trained model.
        wanted: what the choice is for.
        file: a profile from another machine, instead of the run's.

    Raises:
        CheckpointError: if there is no such profile.
        ConfigError: if it holds nothing of what is wanted.
    """
    rows = _read_run_profile(run_dir) if profile_path is None else read_profile(profile_path)
    name = Path(run_dir) / PROFILE_NAME if profile_path is None else profile_path
    if not rows:
        raise CheckpointError(f"{name} is empty; run limbert profile")
    if profile_path is None:
        here = hardware_info()
        others = sorted({describe_hardware(row.hardware, device="cpu") for row in rows})
        rows = [row for row in rows if row.hardware == here]
        if not rows:
            raise ConfigError(
                f"{name} was measured on another machine ({'; '.join(others)}); run limbert profile here, or choose "
                f"for that machine with --device-profile {name}"
            )
    rows = _rows_where(rows, lambda row: row.hardware, latest_row(rows).hardware)
    for option, key in (
        ("batch", profile_filter.batch),
        ("tokens", profile_filter.tokens),
        ("backend", profile_filter.backend),
    ):
        known = sorted({getattr(row.setup, option) for row in rows})
        if key is not None and key not in known:
            raise ConfigError(f"no measurement with {option} {key} in {name}; measured: {', '.join(map(str, known))}")
        rows = rows if key is None else [row for row in rows if getattr(row.setup, option) == key]
    for name in ("device", "threads", "precision"):
        rows = [row for row in rows if getattr(row.setup, name) == getattr(latest_row(rows).setup, name)]
    rows = _rows_where(rows, lambda row: row.setup.batch, min(row.setup.batch for row in rows))
    rows = _rows_where(rows, lambda row: row.setup.tokens, max(row.setup.tokens for row in rows))
    largest = max(rows, key=lambda row: (row.flops, -row.latency_p50_ms))
    return _rows_where(rows, lambda row: row.setup, largest.setup)


def latest_row(rows: Sequence[ProfileRow]) -> ProfileRow:
    """The row measured last."""
    return max(rows, key=lambda row: row.measured)


def _rows_where(rows: Sequence[ProfileRow], key: Callable[[ProfileRow], object], value: object) -> list[ProfileRow]:
    return [row for row in rows if key(row) == value]


def rank_within_budget(subnets: Sequence[MeasuredSubnet], constraints: Sequence[Constraint]) -> list[MeasuredSubnet]:
    """Those that hold every constraint, best first: the highest metric, or with a smallest metric alone the fastest.

    Ties go to the faster, then to the one with fewer FLOPs.
    """
    holding = [one for one in subnets if all(limit.excess(one) == 0 for limit in constraints)]
    cheapest = all(limit.budget_metric.is_minimum for limit in constraints)
    return sorted(
        holding, key=lambda one: (0.0 if cheapest else -one.metric_value, one.profile.latency_p50_ms, one.profile.flops)
    )


def describe_unmet_budget(subnets: Sequence[MeasuredSubnet], constraints: Sequence[Constraint]) -> str:
    """The sentence for constraints that nothing holds: the sub-network that comes nearest, and what it misses."""
    nearest = min(subnets, key=lambda one: (sum(limit.excess(one) for limit in constraints), -one.metric_value))
    missed = [limit.describe(nearest) for limit in constraints if limit.excess(nearest) > 0]
    return f"cannot be met; nearest is {nearest.profile.subnet} ({nearest.measured_name}): {'; '.join(missed)}"
