"""Parse and format quantities with units, such as ``5ms``, ``12M`` or ``20MB``."""

import re
from collections.abc import Mapping
from typing import Literal

from limbert.errors import ConfigError

QuantityType = Literal["latency", "count", "size", "share", "points"]

_UNITS: Mapping[QuantityType, Mapping[str, float]] = {
    "latency": {"us": 1e-6, "ms": 1e-3, "s": 1.0},
    "count": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    "size": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    "share": {"": 1.0, "%": 0.01},
    "points": {"": 0.01},
}
_EXAMPLES: Mapping[QuantityType, str] = {
    "latency": "5ms or 0.005s",
    "count": "12M, 1.5G or a plain number",
    "size": "20MB or 20MiB",
    "share": "0.90, 90 or 90%",
    "points": "1 or 0.5 (of 100)",
}
_QUANTITY_PATTERN = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z%]*)")


def parse_quantity(text: str, *, quantity_type: QuantityType, option: str) -> float:
    """Parse a positive number with a unit; the result is in seconds, a count, bytes, or a fraction of 1.

    A share above 1 without a unit is a percentage, as tables print it. Points, of 100, may be 0.

    Args:
        text: a number and a unit; units are case-sensitive.
        quantity_type: which units are allowed.
        option: name of the command-line option, for the error.

    Raises:
        ConfigError: if the text does not parse, the unit is unknown, the value is 0, or a fraction is above 1.
    """
    match = _QUANTITY_PATTERN.fullmatch(text.strip())
    if match is None or match[2] not in _UNITS[quantity_type]:
        raise ConfigError(f"{option} {text!r} cannot be read; write {_EXAMPLES[quantity_type]}")
    value = float(match[1]) * _UNITS[quantity_type][match[2]]
    is_fraction = quantity_type in ("share", "points")
    if quantity_type == "share" and value > 1 and not match[2]:
        value /= 100
    if (value <= 0 and quantity_type != "points") or (is_fraction and value > 1):
        allowed = "above 0 and at most 100 %" if is_fraction else "more than 0"
        raise ConfigError(f"{option} is {text!r}; it must be {allowed}, such as {_EXAMPLES[quantity_type]}")
    return value


def format_quantity(value: float, *, quantity_type: QuantityType) -> str:
    """Format for people: ``3.1 ms``, ``12.3 M``, ``20.1 MB``; fractions as a percentage without sign, ``90.1``."""
    if quantity_type in ("share", "points"):
        return f"{100 * value:.1f}"
    if quantity_type == "latency":
        return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms" if value >= 1e-3 else f"{1e3 * value:.2g} ms"
    suffix = "B" if quantity_type == "size" else ""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.2f} {unit}{suffix}"
    return f"{value:.0f} {suffix}".strip()
