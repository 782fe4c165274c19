"""The sub-networks that a model is trained for, and their names such as ``0.5x0.75``."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from limbert.core.subnet import LAYER_RULES, LayerRule, Shape, Subnet
from limbert.deprecation import warn_renamed
from limbert.errors import ConfigError, SubnetError


def width_depth_name(width: float, depth: float) -> str:
    """Name of a uniform sub-network: ``0.5x0.75`` is width 0.5, depth 0.75."""
    return f"{width:g}x{depth:g}"


def parse_width_depth(name: str) -> tuple[float, float]:
    """Width and depth of a name such as ``0.5x0.75``.

    Raises:
        SubnetError: if the name is not of that form.
    """
    parts = name.lower().split("x")
    try:
        width, depth = (float(part) for part in parts)
    except ValueError:
        raise SubnetError(f"cannot read sub-network {name!r}; write WIDTHxDEPTH, for example 0.5x0.75") from None
    return width, depth


def is_width_depth_name(name: str) -> bool:
    """Whether the name is of the form ``WIDTHxDEPTH``."""
    try:
        parse_width_depth(name)
    except SubnetError:
        return False
    return True


@dataclass(frozen=True)
class NamedSubnet:
    """A sub-network of a space: its name ``WIDTHxDEPTH``, the two fractions, and its layers, heads and neurons."""

    name: str
    width: float
    depth: float
    subnet: Subnet


@dataclass(frozen=True)
class Space:
    """All combinations of widths and depths, with the rule that says which layers a depth keeps.

    Attributes:
        widths: fractions of the heads and neurons, including 1.0.
        depths: fractions of the layers, including 1.0.
        layers: ``"spread"`` (DynaBERT) or ``"first"`` (Flexible BERT; needed for early exit).

    Raises:
        ConfigError: for an empty list, a fraction outside (0, 1], a missing 1.0 or an unknown rule.
    """

    widths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    depths: tuple[float, ...] = (0.5, 0.75, 1.0)
    layers: LayerRule = "spread"

    def __post_init__(self) -> None:
        for name in ("widths", "depths"):
            values = tuple(sorted({float(value) for value in getattr(self, name)}))
            if not values or values[0] <= 0 or values[-1] != 1.0:
                shown = ", ".join(f"{value:g}" for value in values) or "nothing"
                raise ConfigError(f"{name} must be fractions in (0, 1] that include 1.0, got {shown}")
            object.__setattr__(self, name, values)
        if self.layers not in LAYER_RULES:
            raise ConfigError(f"unknown layer rule {self.layers!r}; allowed: {', '.join(LAYER_RULES)}")

    def subnet(self, shape: Shape, name: str) -> Subnet:
        """The uniform sub-network called ``name`` (``"0.5x0.75"``), by this space's layer rule.

        The width and depth need not be among those of the space.

        Raises:
            SubnetError: if the name is not WIDTHxDEPTH, or the sub-network keeps no head, neuron or layer.
        """
        width, depth = parse_width_depth(name)
        return Subnet.uniform(shape, width=width, depth=depth, layers=self.layers)

    def named_subnets(self, shape: Shape) -> tuple[NamedSubnet, ...]:
        """All distinct sub-networks, full size first.

        Fractions that round to the same heads, neurons and layers are one sub-network, named after the larger.

        Raises:
            SubnetError: if one keeps no head or no layer; names the fractions to use instead.
        """
        unique: dict[Subnet, NamedSubnet] = {}
        for depth in reversed(self.depths):
            for width in reversed(self.widths):
                try:
                    subnet = Subnet.uniform(shape, width=width, depth=depth, layers=self.layers)
                except SubnetError as error:
                    options = {"widths": (self.widths, shape.heads), "depths": (self.depths, shape.layers)}
                    usable = " ".join(f"--{name} {_usable(*values)}" for name, values in options.items())
                    raise SubnetError(f"{error}; use {usable}") from None
                unique.setdefault(subnet, NamedSubnet(width_depth_name(width, depth), width, depth, subnet))
        return tuple(unique.values())

    def named(self, shape: Shape) -> dict[str, Subnet]:
        """Deprecated: use `named_subnets`."""
        warn_renamed("Space.named", "named_subnets")
        return {item.name: item.subnet for item in self.named_subnets(shape)}

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            ConfigError: if a key is missing or a value is invalid.
        """
        try:
            return cls(widths=tuple(values["widths"]), depths=tuple(values["depths"]), layers=values["layers"])
        except (KeyError, TypeError) as error:
            raise ConfigError(f"a space needs widths, depths and layers, got {values!r}") from error


def _usable(fractions: tuple[float, ...], count: int) -> str:
    """The fractions of ``count`` that they round to, each once and none of them nothing: ``0.5,1``."""
    kept = {max(1, round(fraction * count)) for fraction in fractions}
    return ",".join(f"{number / count:.3g}" for number in sorted(kept))
