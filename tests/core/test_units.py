"""Quantities are a number with a known unit; everything else is refused."""

import pytest

from limbert.core.units import QuantityType, format_quantity, parse_quantity
from limbert.errors import ConfigError

VALID: dict[QuantityType, dict[str, float]] = {
    "latency": {"5ms": 0.005, "0.005s": 0.005, " 250 us ": 0.00025},
    "count": {"12M": 12e6, "1.5G": 1.5e9, "22713986": 22713986},
    "size": {"20MB": 20e6, "1MiB": 2**20},
    "share": {"90%": 0.9, "0.90": 0.9, ".5": 0.5, "92.5": 0.925},
    "points": {"0": 0.0, "1.5": 0.015},
}
INVALID: dict[QuantityType, tuple[str, ...]] = {
    "latency": ("5", "5 seconds", "fast", "-5ms", "0ms", "5MS"),
    "count": ("1e3", "12m", "12MB"),
    "size": ("20", "20mb"),
    "share": ("101", "101%", "nan", ""),
    "points": ("101",),
}


@pytest.mark.parametrize("quantity_type", VALID)
def test_only_numbers_with_known_units_are_read(quantity_type: QuantityType) -> None:
    for text, value in VALID[quantity_type].items():
        assert parse_quantity(text, quantity_type=quantity_type, option="--limit") == pytest.approx(value), text
    for text in INVALID[quantity_type]:
        with pytest.raises(ConfigError, match="--limit"):
            parse_quantity(text, quantity_type=quantity_type, option="--limit")


def test_format_chooses_the_unit() -> None:
    assert format_quantity(0.00314, quantity_type="latency") == "3.1 ms"
    assert format_quantity(0.000314, quantity_type="latency") == "0.31 ms"
    assert format_quantity(22713986, quantity_type="count") == "22.71 M"
    assert format_quantity(53_600_000, quantity_type="size") == "53.60 MB"
    assert format_quantity(0.914, quantity_type="share") == "91.4"
