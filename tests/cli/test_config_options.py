"""Options generated from config dataclasses."""

from dataclasses import dataclass
from typing import Literal

import pytest
import typer
from typer.testing import CliRunner

from limbert.cli.config_options import ConfigOptions, config_options
from limbert.core.config import config_field, require
from limbert.errors import ConfigError


@dataclass(frozen=True)
class Example:
    source: str = config_field("", "a folder", required=True)
    limit: int | None = config_field(None, "at most this many")
    rate: float = config_field(0.1, "a rate")
    names: tuple[str, ...] | None = config_field(None, "names")
    widths: tuple[float, ...] = config_field((0.5, 1.0), "widths")
    files: tuple[str, ...] = config_field((), "files", repeats=True)
    budget: float = config_field(0.05, "a time", quantity="latency")
    mode: Literal["a", "b"] = config_field("a", "a or b")
    count: int = config_field(1, "a count", option="gates")
    skip: bool = config_field(False, "skip")

    def __post_init__(self) -> None:
        require(self.rate > 0, "rate", self.rate, "more than 0")


def run(*words: str, as_overrides: bool = False) -> object:
    app, received = typer.Typer(pretty_exceptions_enable=False), []

    @app.command()
    @config_options(example=ConfigOptions(Example, "Data", as_overrides=as_overrides))
    def verb(example: object, other: bool = typer.Option(False, "--other")) -> None:
        received.append((example, other))

    result = CliRunner().invoke(app, [*words])
    if result.exception is not None:
        raise result.exception
    return received[0] if received else result.output


def test_defaults_are_those_of_the_dataclass() -> None:
    assert run("--source", "x") == (Example(source="x"), False)


def test_values_are_parsed_by_the_fields_type() -> None:
    words = (
        "--source x --limit 3 --rate 0.2 --names a,b --widths 0.25,1 --files p --files q --budget 20ms --gates 4 --skip"
    )
    expected = Example("x", 3, 0.2, ("a", "b"), (0.25, 1.0), ("p", "q"), 0.02, "a", 4, True)
    assert run(*words.split(), "--gates", "4", "--other") == (expected, True)


def test_overrides_hold_given_values_alone() -> None:
    assert run("--source", "x", "--rate", "0.3", as_overrides=True)[0] == {"source": "x", "rate": 0.3}


@pytest.mark.parametrize("words", [("--rate", "-1"), ("--widths", "a,b"), ("--budget", "5")])
def test_bad_values_are_config_errors(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        run("--source", "x", *words)


def test_a_required_option_must_be_given() -> None:
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2


def test_help_has_panel_flag_and_default() -> None:
    text = str(run("--help"))
    for word in ("Data", "--gates", "--rate", "50ms", "0.5,1.0"):
        assert word in text
