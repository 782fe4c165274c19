"""Choose a sub-network by budget, from what was measured: costs in a profile, metrics in the run's results."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbert.core.units import Kind, parse_quantity, show_quantity
from limbert.errors import CheckpointError, ConfigError, SubnetError
from limbert.evaluation.hardware import describe, hardware
from limbert.evaluation.profile_rows import PROFILE_NAME, ProfileRow, read_profile
from limbert.evaluation.results import read_results
from limbert.model.checkpoint import read_record


@dataclass(frozen=True)
class Candidate:
    """A measured sub-network.

    Attributes:
        row: what it costs.
        metric: the task's primary metric on the development set.
    """

    row: ProfileRow
    metric: float

    @property
    def measured_name(self) -> str:
        """Named by what was measured: ``3.1ms-91.4``."""
        return measured_name(self.row.latency_p50_ms, self.metric)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.measured_name, "metric": self.metric} | self.row.to_dict()


@dataclass(frozen=True)
class _Measure:
    """Something that can be constrained: how it is written, and where it is found."""

    kind: Kind
    of: Callable[[Candidate], float]
    what: str
    at_least: bool = False


MEASURES: Mapping[str, _Measure] = {
    "--max-latency": _Measure("latency", lambda one: one.row.latency_p50_ms / 1000, "median latency"),
    "--max-params": _Measure("count", lambda one: one.row.params, "parameters"),
    "--max-flops": _Measure("count", lambda one: one.row.flops, "FLOPs an example"),
    "--max-size": _Measure("size", lambda one: one.row.file_bytes, "file size"),
    "--min-metric": _Measure("share", lambda one: one.metric, "metric", at_least=True),
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
    def measure(self) -> _Measure:
        """What is constrained."""
        return MEASURES[self.option]

    def excess(self, candidate: Candidate) -> float:
        """By how much a candidate misses the limit, as a share of it; 0 where it holds."""
        value = self.measure.of(candidate)
        over = self.limit - value if self.measure.at_least else value - self.limit
        return max(0.0, over / self.limit)

    def shown(self, candidate: Candidate) -> str:
        """``median latency 7.3 ms, 2.3 ms (46 %) over --max-latency 5.0 ms``."""
        kind, value = self.measure.kind, self.measure.of(candidate)
        missing = show_quantity(abs(value - self.limit), kind=kind)
        side = "under" if self.measure.at_least else "over"
        share = f" ({100 * self.excess(candidate):.0f} %)" if kind != "share" else " points"
        limit = f"{self.option} {show_quantity(self.limit, kind=kind)}"
        return f"{self.measure.what} {show_quantity(value, kind=kind)}, {missing}{share} {side} {limit}"


def constraints(given: Mapping[str, str | None]) -> list[Constraint]:
    """What people wrote, read strictly; options that are None are left out.

    Raises:
        ConfigError: for a text that is no quantity of its kind.
    """
    return [
        Constraint(option, parse_quantity(text, kind=MEASURES[option].kind, name=option))
        for option, text in given.items()
        if text is not None
    ]


def measured_name(latency_ms: float, metric: float) -> str:
    """``3.1ms-91.4``: median latency, and the metric in percent."""
    shown = f"{latency_ms:.1f}" if latency_ms >= 1 else f"{latency_ms:.2g}"
    return f"{shown}ms-{100 * metric:.1f}"


_MEASURED_NAME = re.compile(r"\d+(\.\d+)?ms--?\d+(\.\d+)?")


def plain_names(run: str | Path, names: Sequence[str]) -> list[str]:
    """The names with those like ``3.1ms-91.4`` replaced by the sub-network that was measured so in this run.

    Raises:
        CheckpointError: if the run has no profile or no results.
        SubnetError: if nothing, or more than one sub-network, was measured so.
    """
    return [_plain_name(run, name) if _MEASURED_NAME.fullmatch(name) else name for name in names]


def _plain_name(run: str | Path, name: str) -> str:
    every = candidates(run, _profile_of(run))
    found = sorted({one.row.subnet for one in every if one.measured_name == name})
    if len(found) == 1:
        return found[0]
    if found:
        raise SubnetError(f"{name} could be {' or '.join(found)}, which were measured alike; name one of them")
    near = sorted({one.measured_name for one in every}, key=_distance_to(name))[:5]
    raise SubnetError(f"no sub-network of {run} was measured as {name}; near it: {', '.join(near)}")


def _distance_to(name: str) -> Callable[[str], float]:
    def distance(other: str) -> float:
        return abs(float(other.partition("ms")[0]) - float(name.partition("ms")[0]))

    return distance


def candidates(run: str | Path, rows: Sequence[ProfileRow]) -> list[Candidate]:
    """Rows of a profile with the metric of the run's results; rows without results are left out.

    Raises:
        CheckpointError: if the run has no results, or does not say what its task is.
    """
    task = read_record(run).get("task", {}) if Path(run).is_dir() else {}
    if not task.get("metrics"):
        raise CheckpointError(f"{run} has no limbert.json that names its task; train it with limbert train first")
    metrics = {result.subnet: result.primary(task["metrics"][0]) for result in read_results(run)}
    return [Candidate(row, metrics[row.subnet]) for row in rows if row.subnet in metrics]


def _profile_of(run: str | Path) -> list[ProfileRow]:
    path = Path(run) / PROFILE_NAME
    if not path.exists():
        raise CheckpointError(f"{run} has not been measured yet; run limbert profile {run} first")
    return read_profile(path)


@dataclass(frozen=True)
class Wanted:
    """Which measurements count; None leaves it to `comparable`."""

    backend: str | None = None
    batch: int | None = None
    tokens: int | None = None


def comparable(run: str | Path, wanted: Wanted, *, file: str | Path | None = None) -> list[ProfileRow]:
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
    rows = _profile_of(run) if file is None else read_profile(file)
    name = Path(run) / PROFILE_NAME if file is None else file
    if not rows:
        raise CheckpointError(f"{name} is empty; run limbert profile")
    if file is None:
        here = hardware()
        others = sorted({describe(row.hardware, device="cpu") for row in rows})
        rows = [row for row in rows if row.hardware == here]
        if not rows:
            raise ConfigError(
                f"{name} was measured on another machine ({'; '.join(others)}); run limbert profile here, or choose "
                f"for that machine with --device-profile {name}"
            )
    rows = _alike(rows, lambda row: row.hardware, latest(rows).hardware)
    for option, key in (("batch", wanted.batch), ("tokens", wanted.tokens), ("backend", wanted.backend)):
        known = sorted({getattr(row.cell, option) for row in rows})
        if key is not None and key not in known:
            raise ConfigError(f"no measurement with {option} {key} in {name}; measured: {', '.join(map(str, known))}")
        rows = rows if key is None else [row for row in rows if getattr(row.cell, option) == key]
    for place in ("device", "threads", "precision"):
        rows = _alike(rows, lambda row, place=place: getattr(row.cell, place), getattr(latest(rows).cell, place))  # type: ignore[misc]
    rows = _alike(rows, lambda row: row.cell.batch, min(row.cell.batch for row in rows))
    rows = _alike(rows, lambda row: row.cell.tokens, max(row.cell.tokens for row in rows))
    largest = max(rows, key=lambda row: (row.flops, -row.latency_p50_ms))
    return _alike(rows, lambda row: row.cell, largest.cell)


def latest(rows: Sequence[ProfileRow]) -> ProfileRow:
    """The row measured last."""
    return max(rows, key=lambda row: row.measured)


def _alike(rows: Sequence[ProfileRow], of: Callable[[ProfileRow], object], value: object) -> list[ProfileRow]:
    return [row for row in rows if of(row) == value]


def rank(found: Sequence[Candidate], limits: Sequence[Constraint]) -> list[Candidate]:
    """Those that hold every constraint, best first: the highest metric, or with a smallest metric alone the fastest.

    Ties go to the faster, then to the one with fewer FLOPs.
    """
    holding = [one for one in found if all(limit.excess(one) == 0 for limit in limits)]
    cheapest = all(limit.measure.at_least for limit in limits)
    return sorted(holding, key=lambda one: (0.0 if cheapest else -one.metric, one.row.latency_p50_ms, one.row.flops))


def cannot_be_met(found: Sequence[Candidate], limits: Sequence[Constraint]) -> str:
    """The sentence for constraints that nothing holds: the sub-network that comes nearest, and what it misses."""
    nearest = min(found, key=lambda one: (sum(limit.excess(one) for limit in limits), -one.metric))
    missed = [limit.shown(nearest) for limit in limits if limit.excess(nearest) > 0]
    return f"cannot be met; nearest is {nearest.row.subnet} ({nearest.measured_name}): {'; '.join(missed)}"
