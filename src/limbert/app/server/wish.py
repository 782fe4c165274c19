"""What one request may cost, as its client writes it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from limbert.serve.errors import BadRequest


@dataclass(frozen=True)
class Wish:
    """What one request may cost; all None: the server's own policy decides.

    Attributes:
        subnet: the sub-network that must answer, such as ``0.5x0.75`` or a found one.
        policy: an operating point such as ``balanced``, or ``static:WIDTHxDEPTH``.
        latency_budget: seconds from arrival to answer; the request is refused at once where they do not suffice.
        min_quality: in the metric's own unit (accuracy from 0 to 1); no size below it answers.

    Raises:
        BadRequest: for a contradiction or a number out of range.
    """

    subnet: str | None = None
    policy: str | None = None
    latency_budget: float | None = None
    min_quality: float | None = None

    def __post_init__(self) -> None:
        if self.subnet is not None and self.policy is not None:
            raise BadRequest(f"subnet {self.subnet!r} and policy {self.policy!r} contradict each other; give one")
        if self.latency_budget is not None and not 0 < self.latency_budget < math.inf:
            raise BadRequest(f"latency_budget_ms is {1000 * self.latency_budget:g}; it must be more than 0")
        if self.min_quality is not None and not math.isfinite(self.min_quality):
            raise BadRequest(f"min_quality is {self.min_quality}; it must be a finite number")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """Read ``subnet``, ``policy``, ``latency_budget_ms`` and ``min_quality``; null is absent, others are ignored.

        Raises:
            BadRequest: for a value of another type, a number out of range, or a contradiction.
        """
        budget = _number(parameters, "latency_budget_ms")
        return cls(
            subnet=_name(parameters, "subnet"),
            policy=_name(parameters, "policy"),
            latency_budget=None if budget is None else budget / 1000,
            min_quality=_number(parameters, "min_quality"),
        )


def _name(parameters: Mapping[str, Any], key: str) -> str | None:
    value = parameters.get(key)
    if value is None or (isinstance(value, str) and value):
        return value
    raise BadRequest(f"{key} is {value!r}; it must be a name")


def _number(parameters: Mapping[str, Any], key: str) -> float | None:
    value = parameters.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest(f"{key} is {value!r}; it must be a number")
    try:
        return float(value)
    except OverflowError:
        raise BadRequest(f"{key} has {len(str(value))} digits; it must be a finite number") from None
