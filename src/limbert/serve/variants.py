"""What a model can run as: its sub-networks and operating points, each with what it reaches and computes.

It knows neither requests nor time. Qualities are compared only where they were measured on the same data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from limbert.core.config import TaskType
from limbert.core.pareto import pareto_front
from limbert.core.space import is_width_depth_name, parse_width_depth, width_depth_name
from limbert.data.tasks import Task
from limbert.errors import LimbertError
from limbert.evaluation.results import POLICIES_NAME, RESULTS_NAME, read_results
from limbert.files import read_json_lines
from limbert.inference.policy import Policy, operating_points, resolve_policy
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel

FLOPS_SEQUENCE_LENGTH = 32  # FLOPs of a size are stated for an input of this many tokens
EvalSplit = Literal["development", "validation"]


@dataclass(frozen=True)
class Variant:
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
    eval_split: EvalSplit | None
    flops: int


@dataclass(frozen=True)
class ModelVariants:
    """All sizes of one model, those with the most FLOPs first."""

    variants: tuple[Variant, ...]
    by_name: Mapping[str, Variant] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {size.name: size for size in self.variants})

    @classmethod
    def from_run(cls, run_dir: str | Path, model: ElasticModel, *, task: Task) -> Self:
        """What a run's model can run as.

        Args:
            run: its folder; results and rows of policies are read from it where they are.
            model: the model itself.
            task: what it answers.

        Raises:
            CheckpointError: if a file of the run is broken.
        """
        reached = _development_qualities(Path(run_dir), task)
        cost, full = CostModel(model), model.full
        most = cost.flops(full, FLOPS_SEQUENCE_LENGTH)
        sizes = [
            Variant(
                name,
                "subnet",
                Policy(subnet=name),
                *_measured_quality(reached, name, task),
                cost.flops(subnet, FLOPS_SEQUENCE_LENGTH),
            )
            for name, subnet in {**model.subnets(), **model.searched_subnets()}.items()
        ]
        rows = _policy_results(Path(run_dir), task)
        for name, point in operating_points(model.record).items():
            if not _can_run(point.policy, model, task_type=task.task_type):
                continue
            value = next((value for settings, value in rows.get(name, ()) if settings == point.policy.to_dict()), None)
            quality: tuple[float, str, EvalSplit] = (
                (point.value, point.metric, "validation")
                if value is None
                else (value, task.primary_metric, "development")
            )
            sizes.append(Variant(name, "policy", point.policy, *quality, round(point.flops_share * most)))
        return cls(tuple(sorted(sizes, key=lambda size: -size.flops)))

    @property
    def full(self) -> Variant:
        """The whole model, or what comes nearest."""
        return max((size for size in self.variants if size.kind == "subnet"), key=lambda size: size.flops)

    @property
    def eval_split(self) -> EvalSplit | None:
        """What those qualities that are compared were measured on; None where none was measured."""
        known = {size.eval_split for size in self.variants}
        return "development" if "development" in known else "validation" if "validation" in known else None

    def find(self, name: str) -> Variant | None:
        """The size of a name in any of its spellings: ``0.5x1.0`` and ``static:0.5x1`` are ``0.5x1``."""
        plain = name.removeprefix("static:")
        if is_width_depth_name(plain):
            plain = width_depth_name(*parse_width_depth(plain))
        return self.by_name.get(plain)

    def comparable_quality(self, variant: Variant) -> float | None:
        """The size's quality where it was measured on the data that counts here."""
        return variant.quality if variant.eval_split == self.eval_split else None

    def pareto_front(self, latency_of: Callable[[Variant], float]) -> tuple[Variant, ...]:
        """The sizes that nothing as quick beats, best first. Without measured qualities FLOPs stand for them.

        Args:
            seconds: what a size takes here.
        """
        known = [size for size in self.variants if self.comparable_quality(size) is not None]
        value: Callable[[Variant], float] = lambda size: size.quality or 0.0  # noqa: E731 - both are one-liners
        if not known:
            known, value = [size for size in self.variants if size.kind == "subnet"], lambda size: float(size.flops)
        return tuple(reversed(pareto_front(known, cost=latency_of, value=value)))


def _measured_quality(
    qualities: Mapping[str, float], name: str, task: Task
) -> tuple[float | None, str, EvalSplit | None]:
    return qualities.get(name), task.primary_metric, "development" if name in qualities else None


def _development_qualities(run_dir: Path, task: Task) -> dict[str, float]:
    """The first metric by sub-network, from the run's results; empty where it has none."""
    if not (run_dir / RESULTS_NAME).is_file():
        return {}
    return {
        result.subnet: result.mean_metric(task.primary_metric)
        for result in read_results(run_dir)
        if any(name.rpartition("/")[2] == task.primary_metric for name in result.metrics)
    }


def _policy_results(run_dir: Path, task: Task) -> dict[str, list[tuple[object, float]]]:
    """What operating points reached on the development set, with their settings then, by name."""
    path = run_dir / POLICIES_NAME
    found: dict[str, list[tuple[object, float]]] = {}
    if not path.is_file():
        return found
    for row in read_json_lines(path, required_keys={"name": str, "data": str, "settings": dict, "metrics": dict}):
        values = [value for name, value in row["metrics"].items() if name.rpartition("/")[2] == task.primary_metric]
        if row["data"] == "development" and values:
            found.setdefault(row["name"], []).append((row["settings"], sum(values) / len(values)))
    return found


def _can_run(policy: Policy, model: ElasticModel, *, task_type: TaskType) -> bool:
    """Whether the model can still run a saved point: its gates may be gone since."""
    try:
        resolve_policy(policy, model, task_type=task_type)
    except LimbertError:
        return False
    return True
