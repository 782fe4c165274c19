"""What a request may ask for, and the variants that may run it under the server's policy."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from limbert.serve.errors import InvalidRequestError
from limbert.serve.schemas import RequestModel, refusal, suggestion
from limbert.serve.variants import ModelVariants, Variant

_BOTH: Any = {
    "required": ["subnet", "policy"],
    "properties": {"subnet": {"type": "string"}, "policy": {"type": "string"}},
}

_Number = Annotated[float | None, Field(allow_inf_nan=False)]


class RequestOptions(RequestModel):
    """What a request may ask for; without any, the server's policy decides."""

    model_config = ConfigDict(json_schema_extra={"not": _BOTH})

    subnet: Annotated[str | None, Field(description="sub-network to run; not together with policy")] = None
    policy: Annotated[str | None, Field(description="operating point to run")] = None
    latency_budget_ms: Annotated[_Number, Field(gt=0, description="milliseconds from arrival to response")] = None
    min_quality: Annotated[_Number, Field(description="no variant below this quality runs, in the metric's unit")] = (
        None
    )
    abstain_below: Annotated[
        _Number, Field(ge=0, le=1, description="classification: no label where its score is below this")
    ] = None

    @model_validator(mode="after")
    def _check_contradiction(self) -> Self:
        if self.subnet is not None and self.policy is not None:
            both = f"subnet {self.subnet!r} and policy {self.policy!r}"
            raise refusal(f"has {both}, which contradict each other; give one")
        return self


class VariantSelector:
    """Chooses the variants that may run a request, and its latency budget.

    Under the policy ``adaptive`` every request may run at any variant of the Pareto front, within the SLO or its own
    latency budget, shorter or longer. Under a fixed policy all run at that variant; only a request with a latency
    budget has a deadline, and may run at faster variants.

    Args:
        variants: all variants.
        usual_seconds: of a usual batch, by variant.
        policy: of the server: ``adaptive`` or the name of a variant.
        slo: seconds.
    """

    def __init__(self, variants: ModelVariants, usual_seconds: Mapping[str, float], *, policy: str, slo: float) -> None:
        self._variants, self._usual_seconds, self._slo, self._policy = variants, usual_seconds, slo, policy
        self.adaptive = policy == "adaptive"
        front = variants.pareto_front(usual_seconds)
        fixed = variants.full if self.adaptive else variants.find(policy)
        assert fixed is not None
        faster = tuple(variant for variant in front if usual_seconds[variant.name] < usual_seconds[fixed.name])
        #: variants of the quality levels, best first
        self.ranked_variants: tuple[Variant, ...] = front if self.adaptive else (fixed, *faster)

    def select(self, options: RequestOptions) -> tuple[tuple[str, ...], float | None]:
        """Names of the variants that may run, best first, and the seconds from arrival to deadline (None: no deadline).

        Raises:
            InvalidRequestError: for an unknown variant, or a quality that none reaches.
        """
        has_budget = options.latency_budget_ms is not None
        budget = (options.latency_budget_ms or 0.0) / 1000 if has_budget else self._slo if self.adaptive else None
        named = self._requested_variant(options)
        allowed = self.ranked_variants if self.adaptive or has_budget else self.ranked_variants[:1]
        if named is not None:
            allowed = (named,)
        if options.min_quality is not None:
            reaching = self._reaching(allowed, options.min_quality)
            allowed = reaching or (self._fastest_variant(options.min_quality, named),)
        return tuple(variant.name for variant in allowed), budget

    def _requested_variant(self, options: RequestOptions) -> Variant | None:
        option, name = ("subnet", options.subnet) if options.subnet is not None else ("policy", options.policy)
        if name is None or (option == "policy" and name == self._policy == "adaptive"):
            return None
        variant = self._variants.find(name)
        if variant is None or (option == "subnet" and variant.kind != "subnet"):
            known = self._variants.names("subnet") + (self._variants.names("policy") if option == "policy" else [])
            raise InvalidRequestError(f"{option} {name[:100]!r} is unknown{suggestion(name, known)}")
        return variant

    def _reaching(self, variants: Sequence[Variant], min_quality: float) -> tuple[Variant, ...]:
        quality = self._variants.comparable_quality
        return tuple(one for one in variants if (value := quality(one)) is not None and value >= min_quality)

    def _fastest_variant(self, min_quality: float, named: Variant | None) -> Variant:
        """Of all variants that reach a quality, or of one that the request names."""
        variants = self._variants.variants if named is None else (named,)
        if reaching := self._reaching(variants, min_quality):
            return min(reaching, key=lambda variant: self._usual_seconds[variant.name])
        known = [quality for variant in variants if (quality := self._variants.comparable_quality(variant)) is not None]
        which = "the best variant" if named is None else named.name
        best = f"that of {which} is {max(known):.4g}" if known else f"that of {which} was not measured"
        raise InvalidRequestError(f"min_quality is {min_quality:g} ({self._variants.full.metric}); {best}")
