"""Every option in README, docs and examples of the help exists."""

import re
from pathlib import Path

import pytest
import typer

from limbert.cli.main import app

ROOT = Path(__file__).parents[2]
GROUP = typer.main.get_command(app)
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
TEXTS |= {f"help of {verb.callback.__name__}": verb.callback.__doc__ or "" for verb in app.registered_commands}


def typed_options(text: str) -> list[tuple[str, str]]:
    """``(verb, option)`` of all commands in a text, except what follows ``#``, ``|`` or ``&``."""
    commands = re.findall(r"\blimbert ([a-z]+)([^\n`#|&]*)", text.replace("\\\n", " "))
    return [(verb, option) for verb, words in commands for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", words)]


@pytest.mark.parametrize("name", TEXTS)
def test_documented_options_exist(name: str) -> None:
    verbs = GROUP.commands  # type: ignore[attr-defined]
    known = {verb: {option for param in verbs[verb].params for option in param.opts} for verb in verbs}
    assert [typed for typed in typed_options(TEXTS[name]) if typed[1] not in known.get(typed[0], ())] == []


def test_documents_type_options() -> None:
    assert ("choose", "--max-drop") in typed_options(TEXTS["choosing.md"])
    for verb in (
        "demo",
        "train",
        "evaluate",
        "tune",
        "profile",
        "choose",
        "search",
        "predict",
        "serve",
        "export",
        "report",
    ):
        assert re.search(rf"^\$ limbert {verb}\b", TEXTS["README.md"], re.MULTILINE), verb
    assert ("profile", "--runtime") in typed_options(TEXTS["help of profile"])
