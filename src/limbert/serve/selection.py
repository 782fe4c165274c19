"""From a wish to the sizes that may answer it and the time it has: what the server's policy means for each request."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from limbert.serve.errors import InvalidRequestError
from limbert.serve.variants import ModelVariants, Variant


@dataclass(frozen=True)
class RequestOptions:
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
            raise InvalidRequestError(
                f"subnet {self.subnet!r} and policy {self.policy!r} contradict each other; give one"
            )
        if self.latency_budget is not None and not 0 < self.latency_budget < math.inf:
            raise InvalidRequestError(f"latency_budget_ms is {1000 * self.latency_budget:g}; it must be more than 0")
        if self.min_quality is not None and not math.isfinite(self.min_quality):
            raise InvalidRequestError(f"min_quality is {self.min_quality}; it must be a finite number")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """Read ``subnet``, ``policy``, ``latency_budget_ms`` and ``min_quality``; null is absent, others are ignored.

        Raises:
            BadRequest: for a value of another type, a number out of range, or a contradiction.
        """
        budget = _read_number(parameters, "latency_budget_ms")
        return cls(
            subnet=_read_name(parameters, "subnet"),
            policy=_read_name(parameters, "policy"),
            latency_budget=None if budget is None else budget / 1000,
            min_quality=_read_number(parameters, "min_quality"),
        )


def _read_name(parameters: Mapping[str, Any], key: str) -> str | None:
    value = parameters.get(key)
    if value is None or (isinstance(value, str) and value):
        return value
    raise InvalidRequestError(f"{key} is {value!r}; it must be a name")


def _read_number(parameters: Mapping[str, Any], key: str) -> float | None:
    value = parameters.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRequestError(f"{key} is {value!r}; it must be a number")
    try:
        return float(value)
    except OverflowError:
        raise InvalidRequestError(f"{key} has {len(str(value))} digits; it must be a finite number") from None


class VariantSelector:
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

    def __init__(
        self, variants: ModelVariants, *, policy: str, slo: float, latency_of: Callable[[Variant], float]
    ) -> None:
        self._variants, self._slo, self._policy = variants, slo, policy
        self._latency_of = latency_of
        front = variants.pareto_front(latency_of)
        self.adaptive = policy == "adaptive"
        fixed = variants.full if self.adaptive else variants.find(policy)
        assert fixed is not None
        below = tuple(size for size in front if size != fixed and latency_of(size) < latency_of(fixed))
        #: sizes that levels go through, best first
        self.ranked_variants: tuple[Variant, ...] = front if self.adaptive else (fixed, *below)

    def select(self, options: RequestOptions) -> tuple[tuple[str, ...], float | None]:
        """Names of the sizes that may answer, best first, and the seconds from arrival to answer (None: no deadline).

        Raises:
            BadRequest: for a size or quality that there is not.
        """
        budget = options.latency_budget
        if budget is None and self.adaptive:
            budget = self._slo
        named = self._requested_variant(options)
        if named is not None:
            self._check_quality(named, options.min_quality)
            return (named.name,), budget
        allowed = (
            self.ranked_variants if self.adaptive or options.latency_budget is not None else self.ranked_variants[:1]
        )
        if options.min_quality is not None:
            allowed = tuple(size for size in allowed if self._reaches_quality(size, options.min_quality))
            if not allowed:
                allowed = (self._fastest_variant(options.min_quality),)
        return tuple(size.name for size in allowed), budget

    def _requested_variant(self, options: RequestOptions) -> Variant | None:
        """The size that a wish names; None where it names none, or the server's own policy."""
        if options.subnet is None and (options.policy is None or options.policy == self._policy == "adaptive"):
            return None
        kind, name = ("subnet", options.subnet) if options.subnet is not None else ("policy", options.policy)
        assert name is not None
        size = self._variants.find(name)
        if size is None or (kind == "subnet" and size.kind != "subnet"):
            known = [one.name for one in self._variants.variants if kind == "policy" or one.kind == "subnet"]
            raise InvalidRequestError(f"no {kind} {name!r}; there are {', '.join(known)}")
        return size

    def _check_quality(self, variant: Variant, min_quality: float | None) -> None:
        if min_quality is not None and not self._reaches_quality(variant, min_quality):
            quality = self._variants.comparable_quality(variant)
            known = "was not measured" if quality is None else f"reaches {quality:.4g}"
            raise InvalidRequestError(
                f"{variant.name} {known} ({variant.metric}); min_quality {min_quality:g} contradicts it"
            )

    def _reaches_quality(self, variant: Variant, min_quality: float) -> bool:
        quality = self._variants.comparable_quality(variant)
        return quality is not None and quality >= min_quality

    def _fastest_variant(self, min_quality: float) -> Variant:
        """The quickest size that reaches a quality."""
        reaching = [size for size in self._variants.variants if self._reaches_quality(size, min_quality)]
        if not reaching:
            known = [
                value
                for size in self._variants.variants
                if (value := self._variants.comparable_quality(size)) is not None
            ]
            best = f"the best reaches {max(known):.4g}" if known else "none was measured"
            raise InvalidRequestError(f"min_quality is {min_quality:g} ({self._variants.full.metric}); {best}")
        return min(reaching, key=self._latency_of)
