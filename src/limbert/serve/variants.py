"""What a model can run as: its sub-networks and operating points, each with what it reaches and computes.

It knows neither requests nor time. Qualities are compared only where they were measured on the same data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from limbert.core.config import TaskKind
from limbert.core.pareto import pareto_front
from limbert.core.space import is_point, parse_point, point_name
from limbert.data.tasks import Task
from limbert.errors import LimbertError
from limbert.evaluation.policies import POLICIES_NAME
from limbert.evaluation.results import RESULTS_NAME, read_results
from limbert.files import read_json_lines
from limbert.inference.policy import Policy, operating_points, resolve
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel

MENU_TOKENS = 32  # FLOPs of a size are stated for an input of this many tokens
DataName = Literal["development", "validation"]


@dataclass(frozen=True)
class Size:
    """One thing that the model can run as.

    Attributes:
        name: ``0.5x0.75``, that of a found sub-network, or of an operating point.
        kind: ``subnet`` or ``policy``.
        policy: what the engine executes.
        quality: the task's first metric; None where it was not measured.
        metric: its name.
        data: what it was measured on; an operating point without a development row has its validation value.
        flops: of an input of `MENU_TOKENS` tokens; of an operating point the mean over the validation slice.
    """

    name: str
    kind: Literal["subnet", "policy"]
    policy: Policy
    quality: float | None
    metric: str
    data: DataName | None
    flops: int


@dataclass(frozen=True)
class Menu:
    """All sizes of one model, those with the most FLOPs first."""

    sizes: tuple[Size, ...]
    by_name: Mapping[str, Size] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {size.name: size for size in self.sizes})

    @classmethod
    def of(cls, run: str | Path, model: ElasticModel, *, task: Task) -> Self:
        """What a run's model can run as.

        Args:
            run: its folder; results and rows of policies are read from it where they are.
            model: the model itself.
            task: what it answers.

        Raises:
            CheckpointError: if a file of the run is broken.
        """
        reached = _development_qualities(Path(run), task)
        cost, full = CostModel(model), model.full
        most = cost.flops(full, MENU_TOKENS)
        sizes = [
            Size(name, "subnet", Policy(subnet=name), *_quality(reached, name, task), cost.flops(subnet, MENU_TOKENS))
            for name, subnet in {**model.subnets(), **model.found()}.items()
        ]
        rows = _policy_rows(Path(run), task)
        for name, point in operating_points(model.record).items():
            if not _fits(point.policy, model, kind=task.kind):
                continue
            value = next((value for settings, value in rows.get(name, ()) if settings == point.policy.to_dict()), None)
            quality: tuple[float, str, DataName] = (
                (point.value, point.metric, "validation") if value is None else (value, task.primary, "development")
            )
            sizes.append(Size(name, "policy", point.policy, *quality, round(point.flops * most)))
        return cls(tuple(sorted(sizes, key=lambda size: -size.flops)))

    @property
    def full(self) -> Size:
        """The whole model, or what comes nearest."""
        return max((size for size in self.sizes if size.kind == "subnet"), key=lambda size: size.flops)

    @property
    def data(self) -> DataName | None:
        """What those qualities that are compared were measured on; None where none was measured."""
        known = {size.data for size in self.sizes}
        return "development" if "development" in known else "validation" if "validation" in known else None

    def find(self, name: str) -> Size | None:
        """The size of a name in any of its spellings: ``0.5x1.0`` and ``static:0.5x1`` are ``0.5x1``."""
        plain = name.removeprefix("static:")
        if is_point(plain):
            plain = point_name(*parse_point(plain))
        return self.by_name.get(plain)

    def comparable(self, size: Size) -> float | None:
        """The size's quality where it was measured on the data that counts here."""
        return size.quality if size.data == self.data else None

    def front(self, seconds: Callable[[Size], float]) -> tuple[Size, ...]:
        """The sizes that nothing as quick beats, best first. Without measured qualities FLOPs stand for them.

        Args:
            seconds: what a size takes here.
        """
        known = [size for size in self.sizes if self.comparable(size) is not None]
        value: Callable[[Size], float] = lambda size: size.quality or 0.0  # noqa: E731 - both are one-liners
        if not known:
            known, value = [size for size in self.sizes if size.kind == "subnet"], lambda size: float(size.flops)
        return tuple(reversed(pareto_front(known, cost=seconds, value=value)))


def _quality(reached: Mapping[str, float], name: str, task: Task) -> tuple[float | None, str, DataName | None]:
    return reached.get(name), task.primary, "development" if name in reached else None


def _development_qualities(run: Path, task: Task) -> dict[str, float]:
    """The first metric by sub-network, from the run's results; empty where it has none."""
    if not (run / RESULTS_NAME).is_file():
        return {}
    return {
        result.subnet: result.primary(task.primary)
        for result in read_results(run)
        if any(name.rpartition("/")[2] == task.primary for name in result.metrics)
    }


def _policy_rows(run: Path, task: Task) -> dict[str, list[tuple[object, float]]]:
    """What operating points reached on the development set, with their settings then, by name."""
    path = run / POLICIES_NAME
    found: dict[str, list[tuple[object, float]]] = {}
    if not path.is_file():
        return found
    for row in read_json_lines(path, needs={"name": str, "data": str, "settings": dict, "metrics": dict}):
        values = [value for name, value in row["metrics"].items() if name.rpartition("/")[2] == task.primary]
        if row["data"] == "development" and values:
            found.setdefault(row["name"], []).append((row["settings"], sum(values) / len(values)))
    return found


def _fits(policy: Policy, model: ElasticModel, *, kind: TaskKind) -> bool:
    """Whether the model can still run a saved point: its gates may be gone since."""
    try:
        resolve(policy, model, kind=kind)
    except LimbertError:
        return False
    return True
