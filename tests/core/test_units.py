"""Quantities are a number with a known unit; everything else is refused."""

import pytest

from limbert.core.units import QuantityType, format_quantity, parse_quantity
from limbert.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "quantity_type", "value"),
    [
        ("5ms", "latency", 0.005),
        ("0.005s", "latency", 0.005),
        (" 250 us ", "latency", 0.00025),
        ("12M", "count", 12e6),
        ("1.5G", "count", 1.5e9),
        ("22713986", "count", 22713986),
        ("20MB", "size", 20e6),
        ("1MiB", "size", 2**20),
        ("90%", "share", 0.9),
        ("0.90", "share", 0.9),
        (".5", "share", 0.5),
        ("92.5", "share", 0.925),
        ("0", "points", 0.0),
        ("1.5", "points", 0.015),
    ],
)
def test_valid_quantities(text: str, quantity_type: QuantityType, value: float) -> None:
    assert parse_quantity(text, quantity_type=quantity_type, option="--limit") == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "quantity_type"),
    [
        ("5", "latency"),
        ("5 seconds", "latency"),
        ("fast", "latency"),
        ("-5ms", "latency"),
        ("0ms", "latency"),
        ("5MS", "latency"),
        ("1e3", "count"),
        ("12m", "count"),
        ("12MB", "count"),
        ("20", "size"),
        ("20mb", "size"),
        ("101", "share"),
        ("101%", "share"),
        ("101", "points"),
        ("nan", "share"),
        ("", "share"),
    ],
)
def test_invalid_quantities_are_refused(text: str, quantity_type: QuantityType) -> None:
    with pytest.raises(ConfigError, match="--limit"):
        parse_quantity(text, quantity_type=quantity_type, option="--limit")


def test_format_chooses_the_unit() -> None:
    assert format_quantity(0.00314, quantity_type="latency") == "3.1 ms"
    assert format_quantity(0.000314, quantity_type="latency") == "0.31 ms"
    assert format_quantity(22713986, quantity_type="count") == "22.71 M"
    assert format_quantity(53_600_000, quantity_type="size") == "53.60 MB"
    assert format_quantity(0.914, quantity_type="share") == "91.4"
