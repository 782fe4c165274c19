"""The set of sub-networks that a model is trained for, and the names that people give them."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from limbert.core.subnet import LAYER_RULES, LayerRule, Shape, Subnet
from limbert.errors import ConfigError, SubnetError


def width_depth_name(width: float, depth: float) -> str:
    """How people write a uniform sub-network: ``0.5x0.75`` is width 0.5, depth 0.75."""
    return f"{width:g}x{depth:g}"


def parse_width_depth(name: str) -> tuple[float, float]:
    """Width and depth of a name like ``0.5x0.75``.

    Raises:
        SubnetError: if the name has another form.
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
    """A sub-network of the grid: its name ``WIDTHxDEPTH``, the two fractions, and its layers, heads and neurons."""

    name: str
    width: float
    depth: float
    subnet: Subnet


@dataclass(frozen=True)
class Space:
    """Widths times depths, with the rule that says which layers a depth keeps.

    Attributes:
        widths: fractions of the heads and neurons; 1.0 is always among them.
        depths: fractions of the layers; 1.0 is always among them.
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

        Any width and depth that the shape can express is given, in the trained set or not.
        """
        width, depth = parse_width_depth(name)
        return Subnet.uniform(shape, width=width, depth=depth, layers=self.layers)

    def named_subnets(self, shape: Shape) -> tuple[NamedSubnet, ...]:
        """All sub-networks, full size first, each once.

        Two fractions that keep the same whole numbers are one sub-network, named after the larger.
        """
        found: dict[Subnet, NamedSubnet] = {}
        for depth in reversed(self.depths):
            for width in reversed(self.widths):
                subnet = Subnet.uniform(shape, width=width, depth=depth, layers=self.layers)
                found.setdefault(subnet, NamedSubnet(width_depth_name(width, depth), width, depth, subnet))
        return tuple(found.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The space that `to_dict` wrote.

        Raises:
            ConfigError: for unknown keys or values.
        """
        try:
            return cls(widths=tuple(values["widths"]), depths=tuple(values["depths"]), layers=values["layers"])
        except (KeyError, TypeError) as error:
            raise ConfigError(f"a space needs widths, depths and layers, got {values!r}") from error
