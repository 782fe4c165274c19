"""Choice of a sub-network or operating point, runtime and precision within a budget, from what was measured."""

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbert.core.config import configs_from_options, shows_options
from limbert.core.pareto import pareto_front
from limbert.core.units import QuantityType, format_quantity, parse_quantity
from limbert.core.verb_config import BudgetConfig, MeasurementConfig
from limbert.errors import CheckpointError, ConfigError
from limbert.evaluation.hardware import describe_hardware, hardware_info
from limbert.evaluation.results import (
    POLICIES_NAME,
    PROFILE_NAME,
    RESULTS_NAME,
    ProfileRow,
    mean_metric,
    read_profile,
    read_results,
)
from limbert.files import read_json_lines
from limbert.inference.policy import operating_points
from limbert.model.checkpoint import read_record

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuredSubnet:
    """A sub-network, or an operating point, measured in one runtime and precision."""

    profile: ProfileRow  # its measured costs
    metric_value: float  # the task's primary metric on the development set, in this precision
    drop: float = 0.0  # of the metric to the full sub-network's in fp32
    is_policy: bool = False  # whether the profile's name is that of an operating point

    @property
    def measured_name(self) -> str:
        """Median latency and metric in percent: ``3.1ms-91.4``."""
        milliseconds = self.profile.latency_p50_ms
        shown = f"{milliseconds:.1f}" if milliseconds >= 1 else f"{milliseconds:.2g}"
        return f"{shown}ms-{100 * self.metric_value:.1f}"

    def to_dict(self) -> dict[str, Any]:
        """A JSON row: measured name, metric, of an operating point ``policy``, and the row of the profile."""
        policy = {"policy": self.profile.subnet} if self.is_policy else {}
        return {"name": self.measured_name, "metric": self.metric_value} | policy | self.profile.to_dict()


@dataclass(frozen=True)
class _BudgetMetric:
    """A quantity that can be limited."""

    quantity_type: QuantityType
    value_of: Callable[[MeasuredSubnet], float]
    description: str
    is_minimum: bool = False
    is_metric: bool = False  # limits the metric, not a cost


BUDGET_METRICS: Mapping[str, _BudgetMetric] = {
    "--max-latency": _BudgetMetric("latency", lambda subnet: subnet.profile.latency_p50_ms / 1000, "median latency"),
    "--max-params": _BudgetMetric("count", lambda subnet: subnet.profile.params, "parameters"),
    "--max-flops": _BudgetMetric("count", lambda subnet: subnet.profile.flops, "FLOPs per example"),
    "--max-size": _BudgetMetric("size", lambda subnet: subnet.profile.file_bytes, "file size"),
    "--min-metric": _BudgetMetric(
        "share", lambda subnet: subnet.metric_value, "metric", is_minimum=True, is_metric=True
    ),
    "--max-drop": _BudgetMetric("points", lambda subnet: subnet.drop, "loss of metric", is_metric=True),
}


@dataclass(frozen=True)
class Constraint:
    """One limit of a budget."""

    option: str  # its name, a key of `BUDGET_METRICS`
    limit: float  # in base units: seconds, a count, bytes, a fraction

    @property
    def budget_metric(self) -> _BudgetMetric:
        """The quantity that is limited."""
        return BUDGET_METRICS[self.option]

    @property
    def shown_limit(self) -> str:
        """``--max-latency 5.0 ms``."""
        return f"{self.option} {self._format(self.limit)}"

    def shown_value(self, subnet: MeasuredSubnet) -> str:
        """``median latency 7.3 ms``."""
        return f"{self.budget_metric.description} {self._format(self.budget_metric.value_of(subnet))}"

    def excess(self, subnet: MeasuredSubnet) -> float:
        """How far a sub-network misses the limit, as a fraction of the limit; 0 if it meets it."""
        value = self.budget_metric.value_of(subnet)
        over = self.limit - value if self.budget_metric.is_minimum else value - self.limit
        return max(0.0, over - 1e-9) / (self.limit or 0.01)

    def describe_excess(self, subnet: MeasuredSubnet) -> str:
        """``median latency 7.3 ms, 2.3 ms (46 %) over --max-latency 5.0 ms``."""
        missing = self._format(abs(self.budget_metric.value_of(subnet) - self.limit))
        side = "under" if self.budget_metric.is_minimum else "over"
        unit = " points" if self.budget_metric.is_metric else f" ({100 * self.excess(subnet):.0f} %)"
        return f"{self.shown_value(subnet)}, {missing}{unit} {side} {self.shown_limit}"

    def _format(self, value: float) -> str:
        return format_quantity(value, quantity_type=self.budget_metric.quantity_type)


def parse_constraints(options: Mapping[str, str | None]) -> list[Constraint]:
    """The limits of a budget by option; those that are None are left out."""
    return [
        Constraint(option, parse_quantity(text, quantity_type=BUDGET_METRICS[option].quantity_type, option=option))
        for option, text in options.items()
        if text is not None
    ]


@dataclass(frozen=True)
class Choice:
    """Sub-networks and operating points, each in the runtimes and precisions that were measured."""

    ranked: list[MeasuredSubnet]  # those within the budget, the best first; never empty
    num_measured: int  # comparable measurements, within the budget or not
    front: list[MeasuredSubnet]  # the Pareto front of latency and metric of all of them, the fastest first

    @property
    def best(self) -> MeasuredSubnet:
        """The sub-network with the highest metric within the budget."""
        return self.ranked[0]


@shows_options(BudgetConfig, MeasurementConfig)
def choose(run: str | Path, **options: Any) -> Choice:
    """Choose the highest metric within a budget; with limits of the metric alone the fastest sub-network.

    Every runtime and precision that was measured takes part, and operating points that were evaluated. Nothing is run:
    costs come from the profile, metrics from the results on the development set, less what bf16 or int8 lost when they
    were measured.

    Args:
        run: elastic model with a profile.
        options: those below, at least one limit; for those of measurements see `comparable_rows`.

    Raises:
        CheckpointError: if the run has no profile or no results.
        ConfigError: without a limit, or if none can be met; the message then names the nearest sub-network.
    """
    run = os.path.expanduser(run)
    budget, measurements = configs_from_options(options, BudgetConfig, MeasurementConfig)
    limits = {f"--{name.replace('_', '-')}": limit for name, limit in vars(budget).items()}
    constraints = parse_constraints(limits)
    if not constraints:
        raise ConfigError(f"give at least one limit: {', '.join(limits)}")
    if not Path(run).is_dir():
        raise CheckpointError(f"there is no folder {run}; give the output folder of limbert train")
    rows = comparable_rows(run, **vars(measurements))
    measured = measured_subnets(run, rows)
    for name in {row.subnet for row in rows} & {*operating_points(read_record(run))}:
        if name not in {subnet.profile.subnet for subnet in measured}:
            _logger.warning(
                "%s is left out: its metric on dev is unknown; limbert evaluate %s --policy %s", *(name, run, name)
            )
    if not measured:
        raise ConfigError(f"no sub-network of the profile is in {run}/{RESULTS_NAME}; measure those of this run")
    ranked = rank_within_budget(measured, constraints)
    if not ranked:
        row = measured[0].profile
        machine = describe_hardware(row.hardware, device=row.setup.device)
        raise ConfigError(f"{describe_unmet_budget(measured, constraints)} (measured: {row.setup}; {machine})")
    return Choice(ranked, len(measured), latency_front(measured))


def latency_front(subnets: Sequence[MeasuredSubnet]) -> list[MeasuredSubnet]:
    """The Pareto front of median latency and metric, the fastest first."""
    return pareto_front(
        subnets, cost=lambda subnet: subnet.profile.latency_p50_ms, value=lambda subnet: subnet.metric_value
    )


def rank_within_budget(subnets: Sequence[MeasuredSubnet], constraints: Sequence[Constraint]) -> list[MeasuredSubnet]:
    """Sub-networks that meet every limit, best first: by metric, or with limits of the metric alone by latency.

    Ties go to the faster, then to the one with fewer FLOPs.
    """
    meeting = [subnet for subnet in subnets if all(limit.excess(subnet) == 0 for limit in constraints)]
    fastest_first = all(limit.budget_metric.is_metric for limit in constraints)

    def rank(subnet: MeasuredSubnet) -> tuple[float, float, int]:
        metric = 0.0 if fastest_first else subnet.metric_value
        return -metric, subnet.profile.latency_p50_ms, subnet.profile.flops

    return sorted(meeting, key=rank)


def describe_unmet_budget(subnets: Sequence[MeasuredSubnet], constraints: Sequence[Constraint]) -> str:
    """The message for a budget that no sub-network meets: the nearest one, and which limits it misses."""
    nearest = min(
        subnets, key=lambda subnet: (sum(limit.excess(subnet) for limit in constraints), -subnet.metric_value)
    )
    missed = [limit.describe_excess(nearest) for limit in constraints if limit.excess(nearest) > 0]
    return f"cannot be met; nearest is {nearest.profile.subnet} ({nearest.measured_name}): {'; '.join(missed)}"


def measured_subnets(run: str | Path, rows: Sequence[ProfileRow]) -> list[MeasuredSubnet]:
    """Rows of a profile with the metric of the run's results on dev; rows without results are left out."""
    record = read_record(run) if Path(run).is_dir() else {}
    task = record.get("task", {})
    if not task.get("metrics"):
        raise CheckpointError(f"{run} has no limbert.json that names its task; train it with limbert train first")
    results = read_results(run)
    metrics = {result.subnet: result.mean_metric(task["metrics"][0]) for result in results}
    full = metrics[max(results, key=lambda result: result.flops).subnet] if results else 0.0
    points = _operating_point_metrics(run, task["metrics"][0], operating_points(record))
    metrics = points | metrics
    values = [(row, metrics[row.subnet] - row.metric_loss) for row in rows if row.subnet in metrics]
    return [MeasuredSubnet(row, value, full - value, row.subnet in points) for row, value in values]


def _operating_point_metrics(run: str | Path, metric: str, points: Collection[str]) -> dict[str, float]:
    """The metric on the development set of the operating points that were evaluated on it."""
    path = Path(run) / POLICIES_NAME
    rows = read_json_lines(path, required_keys={"name": str, "metrics": dict}) if points and path.exists() else []
    evaluated = [row for row in rows if row["name"] in points and row.get("data") == "development"]
    return {row["name"]: mean_metric(row["metrics"], metric) for row in evaluated}


def _read_run_profile(run: str | Path) -> list[ProfileRow]:
    path = Path(run) / PROFILE_NAME
    if not path.exists():
        raise CheckpointError(f"{run} has not been measured yet; run limbert profile {run} first")
    return read_profile(path)


def comparable_rows(
    run: str | Path, *, profile_path: str | Path | None = None, **wanted: int | str | None
) -> list[ProfileRow]:
    """Rows that were measured in the same way: one machine, device, number of threads, batch size and length.

    By default: of the run's own profile those of this machine, of a given file those of the machine measured last; the
    device and threads measured last; batch 1 if it was measured, else the smallest; the most tokens; and all runtimes
    and precisions. ``wanted`` fixes ``backend``, ``precision``, ``batch`` or ``tokens``.
    """
    name = Path(run) / PROFILE_NAME if profile_path is None else Path(profile_path).expanduser()
    rows = _read_run_profile(run) if profile_path is None else read_profile(name)
    if not rows:
        raise CheckpointError(f"{name} is empty; run limbert profile")
    if profile_path is None:
        here = hardware_info()
        machines = sorted({describe_hardware(row.hardware, device="cpu") for row in rows})
        rows = [row for row in rows if row.hardware == here]
        if not rows:
            raise ConfigError(
                f"{name} was measured on another machine ({'; '.join(machines)}); run limbert profile here, or choose "
                f"for that machine with --device-profile {name}"
            )
    hardware = _latest_row(rows).hardware
    rows = [row for row in rows if row.hardware == hardware]
    for option, value in wanted.items():
        known = sorted({getattr(row.setup, option) for row in rows})
        if value is not None and value not in known:
            raise ConfigError(f"no measurement with {option} {value} in {name}; measured: {', '.join(map(str, known))}")
        rows = [row for row in rows if value in (None, getattr(row.setup, option))]
    for option in ("device", "threads"):
        latest = getattr(_latest_row(rows).setup, option)
        rows = [row for row in rows if getattr(row.setup, option) == latest]
    smallest_batch = min(row.setup.batch for row in rows)
    rows = [row for row in rows if row.setup.batch == smallest_batch]
    most_tokens = max(row.setup.tokens for row in rows)
    return [row for row in rows if row.setup.tokens == most_tokens]


def _latest_row(rows: Sequence[ProfileRow]) -> ProfileRow:
    return max(rows, key=lambda row: row.measured)
