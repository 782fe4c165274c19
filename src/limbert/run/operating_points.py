"""Named operating points: policies that ``limbert tune`` chose and the checkpoint's ``limbert.json`` keeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from limbert.errors import ConfigError
from limbert.model.checkpoint import change_record
from limbert.inference.policy import FORMS, Policy

_KEY = "operating_points"


@dataclass(frozen=True)
class OperatingPoint:
    """A policy, and what it reached on the validation slice when it was chosen.

    Attributes:
        policy: what runs.
        metric: name of the metric.
        value: of the metric, on the validation slice.
        flops: mean floating-point operations an example, as a share of the full model's.
    """

    policy: Policy
    metric: str
    value: float
    flops: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return self.policy.to_dict() | {"validation": {self.metric: self.value}, "flops_share": self.flops}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The point that `to_dict` wrote.

        Raises:
            ConfigError: for values that are none.
        """
        try:
            ((metric, value),) = values["validation"].items()
            return cls(Policy.from_dict(values), metric, value, values["flops_share"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"cannot read the saved operating point {values!r}") from error


def operating_points(record: Mapping[str, Any]) -> dict[str, OperatingPoint]:
    """The points in a checkpoint's record, by name."""
    return {name: OperatingPoint.from_dict(values) for name, values in record.get(_KEY, {}).items()}


def named_policy(record: Mapping[str, Any], name: str) -> Policy:
    """A policy by the name of an operating point.

    Raises:
        ConfigError: if the checkpoint has no point of this name.
    """
    points = operating_points(record)
    if name not in points:
        known = ", ".join(points) or "none yet, limbert tune makes some"
        raise ConfigError(f"unknown policy {name!r}; write {FORMS}, or an operating point of this model: {known}")
    return points[name].policy


def save_operating_points(run: str | Path, points: Mapping[str, OperatingPoint]) -> None:
    """Write the points into the run's ``limbert.json``; all else in it stays.

    Raises:
        CheckpointError: if the run is no elastic checkpoint on this machine.
        StorageError: if the file cannot be written; the old one stays.
    """
    saved = {name: point.to_dict() for name, point in points.items()}
    change_record(run, lambda record: record.update({_KEY: saved}))
