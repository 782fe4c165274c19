"""A sub-network as a value: which layers run, and how many heads and neurons each of them keeps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Self

from limbert.deprecation import RenamedAttribute
from limbert.errors import SubnetError

LayerRule = Literal["first", "spread"]
LAYER_RULES: tuple[LayerRule, ...] = ("first", "spread")


@dataclass(frozen=True)
class Shape:
    """Layers of a full encoder, and heads and feed-forward neurons of each layer."""

    layers: int
    heads: int
    neurons: int


@dataclass(frozen=True)
class Subnet:
    """The part of the encoder that runs: the kept layers, and the first heads and neurons of each.

    Attributes:
        layers: indices into the full stack, increasing.
        heads: ``heads[i]`` attention heads are kept in ``layers[i]``, always the first ones.
        neurons: ``neurons[i]`` feed-forward neurons are kept in ``layers[i]``, always the first ones.

    Raises:
        SubnetError: if the lengths differ, a layer is repeated or out of order, or nothing is kept.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.layers) == len(self.heads) == len(self.neurons) > 0:
            raise SubnetError(f"a sub-network needs one head count and one neuron count per kept layer, got {self}")
        if sorted({*self.layers}) != [*self.layers] or self.layers[0] < 0:
            raise SubnetError(f"layers must be increasing indices from 0, got {self.layers}")
        if min(self.heads + self.neurons) < 1:
            raise SubnetError(f"every kept layer needs at least one head and one neuron, got {self}")

    @classmethod
    def full(cls, shape: Shape) -> Self:
        """The whole encoder."""
        return cls(tuple(range(shape.layers)), (shape.heads,) * shape.layers, (shape.neurons,) * shape.layers)

    @classmethod
    def uniform(cls, shape: Shape, *, width: float = 1.0, depth: float = 1.0, layers: LayerRule = "spread") -> Self:
        """The same width in every kept layer (DynaBERT, arXiv 2004.04037; Flexible BERT).

        Args:
            width: fraction of the heads, rounded to whole heads; neurons are the same fraction, rounded down.
            depth: fraction of the layers, rounded to whole layers.
            layers: ``"spread"`` keeps layers ``floor(i / depth)`` (DynaBERT), ``"first"`` the lowest (Flexible BERT).

        Raises:
            SubnetError: if a fraction is outside (0, 1], or keeps no head, neuron or layer.
        """
        for name, value in (("width", width), ("depth", depth)):
            if not 0 < value <= 1:
                raise SubnetError(f"{name} {value:g} is not in (0, 1]")
        if layers not in LAYER_RULES:
            raise SubnetError(f"unknown layer rule {layers!r}; allowed: {', '.join(LAYER_RULES)}")
        kept = round(depth * shape.layers)
        heads = round(width * shape.heads)
        neurons = heads * shape.neurons // shape.heads
        if kept == 0:
            raise SubnetError(
                f"depth {depth:g} of {shape.layers} layers keeps no layer; one layer is {1 / shape.layers:.3g}"
            )
        if heads == 0 or neurons == 0:
            raise SubnetError(
                f"width {width:g} of {shape.heads} heads keeps no head; one head is {1 / shape.heads:.3g}"
            )
        return cls(_kept_layers(kept, depth, layers), (heads,) * kept, (neurons,) * kept)

    def check(self, shape: Shape) -> None:
        """Raise SubnetError if this sub-network needs more than an encoder of ``shape`` has."""
        for name, needed, available in (
            ("layer index", max(self.layers), shape.layers - 1),
            ("number of heads", max(self.heads), shape.heads),
            ("number of neurons", max(self.neurons), shape.neurons),
        ):
            if needed > available:
                raise SubnetError(f"{name} {needed} is too large for this model; at most {available}")

    def layer_widths(self) -> dict[int, tuple[int, int]]:
        """``{layer: (heads, neurons)}`` for the kept layers."""
        return dict(zip(self.layers, zip(self.heads, self.neurons, strict=True), strict=True))

    widths = RenamedAttribute("layer_widths")

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON; `from_dict` is the inverse."""
        return {"layers": [*self.layers], "heads": [*self.heads], "neurons": [*self.neurons]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; other keys are ignored.

        Raises:
            SubnetError: if a key is missing or a value is invalid.
        """
        try:
            return cls(*(tuple(int(number) for number in values[name]) for name in ("layers", "heads", "neurons")))
        except (KeyError, TypeError, ValueError) as error:
            raise SubnetError(f"a sub-network needs layers, heads and neurons, got {values!r}") from error


def _kept_layers(num_kept: int, depth: float, rule: LayerRule) -> tuple[int, ...]:
    if rule == "first":
        return tuple(range(num_kept))
    exact = Fraction(str(depth))  # as written: floor(3 / 0.6) is 5, also if 3 / 0.6 is rounded down
    return tuple(math.floor(i / exact) for i in range(num_kept))
