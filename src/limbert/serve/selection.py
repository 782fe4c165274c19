"""From a wish to the sizes that may answer it and the time it has: what the server's policy means for each request."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from limbert.serve.errors import BadRequest
from limbert.serve.variants import Menu, Size


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


class Offer:
    """What a server gives to whom.

    With ``adaptive`` every request may run at any size of the front and has the SLO as its deadline, or its own budget
    in the SLO's place, shorter or longer. A server with a fixed policy runs everything at that, and only requests that
    name a budget have a deadline; those may run below. Without a deadline a request is refused only where the queue is
    full.

    Args:
        menu: all sizes.
        policy: the server's own, known to the menu or ``adaptive``.
        slo: seconds.
        seconds: what a size takes here.
    """

    def __init__(self, menu: Menu, *, policy: str, slo: float, seconds: Callable[[Size], float]) -> None:
        self._menu, self._slo, self._policy = menu, slo, policy
        self._seconds = seconds
        front = menu.front(seconds)
        self.adaptive = policy == "adaptive"
        fixed = menu.full if self.adaptive else menu.find(policy)
        assert fixed is not None
        below = tuple(size for size in front if size != fixed and seconds(size) < seconds(fixed))
        #: sizes that levels go through, best first
        self.ladder: tuple[Size, ...] = front if self.adaptive else (fixed, *below)

    def sizes_for(self, wish: Wish) -> tuple[tuple[str, ...], float | None]:
        """Names of the sizes that may answer, best first, and the seconds from arrival to answer (None: no deadline).

        Raises:
            BadRequest: for a size or quality that there is not.
        """
        budget = wish.latency_budget
        if budget is None and self.adaptive:
            budget = self._slo
        named = self._named(wish)
        if named is not None:
            self._check_quality(named, wish.min_quality)
            return (named.name,), budget
        allowed = self.ladder if self.adaptive or wish.latency_budget is not None else self.ladder[:1]
        if wish.min_quality is not None:
            allowed = tuple(size for size in allowed if self._reaches(size, wish.min_quality))
            if not allowed:
                allowed = (self._cheapest(wish.min_quality),)
        return tuple(size.name for size in allowed), budget

    def _named(self, wish: Wish) -> Size | None:
        """The size that a wish names; None where it names none, or the server's own policy."""
        if wish.subnet is None and (wish.policy is None or wish.policy == self._policy == "adaptive"):
            return None
        kind, name = ("subnet", wish.subnet) if wish.subnet is not None else ("policy", wish.policy)
        assert name is not None
        size = self._menu.find(name)
        if size is None or (kind == "subnet" and size.kind != "subnet"):
            known = [one.name for one in self._menu.sizes if kind == "policy" or one.kind == "subnet"]
            raise BadRequest(f"no {kind} {name!r}; there are {', '.join(known)}")
        return size

    def _check_quality(self, size: Size, least: float | None) -> None:
        if least is not None and not self._reaches(size, least):
            quality = self._menu.comparable(size)
            known = "was not measured" if quality is None else f"reaches {quality:.4g}"
            raise BadRequest(f"{size.name} {known} ({size.metric}); min_quality {least:g} contradicts it")

    def _reaches(self, size: Size, least: float) -> bool:
        quality = self._menu.comparable(size)
        return quality is not None and quality >= least

    def _cheapest(self, least: float) -> Size:
        """The quickest size that reaches a quality."""
        reaching = [size for size in self._menu.sizes if self._reaches(size, least)]
        if not reaching:
            known = [value for size in self._menu.sizes if (value := self._menu.comparable(size)) is not None]
            best = f"the best reaches {max(known):.4g}" if known else "none was measured"
            raise BadRequest(f"min_quality is {least:g} ({self._menu.full.metric}); {best}")
        return min(reaching, key=self._seconds)
