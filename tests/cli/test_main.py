"""The command itself: help, suggestions for misspelt options, signals, terminals and full disks."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.factories.runs import call, command, environment
from typer.main import get_command

from limbert.cli.main import app
from limbert.train.phases import warn_about_phases

VERBS = [verb.callback.__name__ for verb in app.registered_commands if verb.callback is not None]


def test_help_imports_no_large_library(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom limbert.cli.main import main\nsys.argv = ['limbert', '--help']\n"
        "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    )
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, env=environment(tmp_path), capture_output=True, text=True, check=True)
    loaded = {*done.stderr.split()}
    assert "typer" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "datasets", "accelerate", "fastapi"}


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb: str, tmp_path: Path) -> None:
    assert "Example: limbert" in call(tmp_path, verb, "--help").stdout


def test_help_of_train_fits_two_screens(tmp_path: Path) -> None:
    env = environment(tmp_path) | {"COLUMNS": "100"}
    shown = subprocess.run(command("train", "--help"), env=env, capture_output=True, text=True, check=True)
    assert len(shown.stdout.splitlines()) <= 80
    panels = [shown.stdout.index(f"─ {name} ─") for name in ("Data", "Model and training", "Gates", "Output")]
    assert panels == sorted(panels)


@pytest.mark.parametrize(
    ("arguments", "suggested"),
    [
        (["train", "--top-k", "3"], None),
        (["train", "--learnig-rate", "1e-4"], "--learning-rate"),
        (["train", "--max_lenght", "64"], "--max-length"),
        (["train", "--wrong"], None),
        (["fly"], None),
    ],
)
def test_unknown_options_get_near_suggestions(arguments: list[str], suggested: str | None, tmp_path: Path) -> None:
    done = call(tmp_path, *arguments)
    assert done.returncode == 2
    if suggested is None:
        assert "Possible options" not in done.stderr
    else:
        assert suggested in done.stderr


@pytest.mark.parametrize(
    ("verb", "given", "known"),
    [
        ("train", ["--lr", "1e-4", "--bs=8"], {"learning_rate": 1e-4, "batch_size": 8}),
        ("train", ["--max_seq_length", "64", "--num_train_epochs=2"], {"max_length": 64, "epochs": 2.0}),
        ("predict", ["-i", "in.csv", "-o", "-o"], {"input": "in.csv", "output": "-o"}),
        ("predict", ["--text", "--lr"], {"text": ["--lr"]}),
        ("choose", ["run", "--backend", "onnxruntime"], {"runtime": "onnxruntime"}),
    ],
)
def test_other_names_of_options_are_known(verb: str, given: list[str], known: dict[str, object]) -> None:
    required = ["--model", "m", "--output", "x"] if verb == "train" else []
    context = get_command(app).commands[verb].make_context(verb, [*required, *given])  # type: ignore[attr-defined]
    assert {name: context.params[name] for name in known} == known


INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["limbert", "predict", "absent", "--text", "a"]
from limbert.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["typer", "torch", "transformers"])
def test_interrupt_during_imports_is_quiet(module: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", INTERRUPTED.format(module=module)]
    done = subprocess.run(words, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr == "limbert: interrupted\n"


VERB = """
import os, signal, sys
from limbert.cli import console, main
from limbert.files import atomic_file

def verb(arguments):
    {body}

main.app, sys.argv = verb, ["limbert"]
main.main()
"""


def run_verb(folder: Path, body: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The command with these statements for its verb."""
    options = {"stdout": subprocess.PIPE} | options
    script = VERB.format(body=body.replace("\n", "\n    "))
    return subprocess.run([sys.executable, "-c", script], cwd=folder, stderr=subprocess.PIPE, check=False, **options)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_killed_command_leaves_nothing_half_written(name: str, tmp_path: Path) -> None:
    body = f"with atomic_file('out.csv') as file:\n    file.write('half')\n    signal.raise_signal(signal.{name})"
    done = run_verb(tmp_path, body, preexec_fn=lambda: signal.signal(getattr(signal, name), signal.SIG_DFL))
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, b"")
    assert not [*tmp_path.iterdir()]


def test_nohup_outlives_the_terminal(tmp_path: Path) -> None:
    body = "signal.raise_signal(signal.SIGHUP)\nconsole.say('alive')"
    done = run_verb(tmp_path, body, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert (done.returncode, done.stdout) == (0, b"alive\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_shows_any_text(encoding: str, tmp_path: Path) -> None:
    texts = ["größer → \U0001f600", "file-\udcff"]
    body = "".join(f"console.say({text!a}); console.note({text!a}); console.print_json({text!a})\n" for text in texts)
    done = run_verb(tmp_path, body, env=environment(tmp_path) | {"PYTHONIOENCODING": encoding})
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    said, value, *_ = done.stdout.decode(encoding).splitlines()
    assert said.startswith("gr")
    assert json.loads(value) == texts[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_standard_output_is_one_line(tmp_path: Path) -> None:
    for body in ("console.say('text')", "console.print_json([1])", "print('text', end='')\nopen('absent/file')"):
        with open("/dev/full", "w") as full:
            done = run_verb(tmp_path, body, stdout=full)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(b"limbert: error: ")


@pytest.mark.parametrize(
    ("phases", "completed", "is_finetuned", "warned"),
    [
        (("finetune", "gates"), (), False, ["gates"]),
        (("gates",), ("finetune", "width"), True, []),
        (("width", "depth"), (), False, ["width", "depth"]),
        (("width", "gates"), (), True, []),
        (("finetune", "width", "depth", "gates"), (), False, []),
        (("final", "gates"), (), False, []),
    ],
)
def test_phases_without_their_base_are_warned_about(phases, completed, is_finetuned, warned, caplog):
    warn_about_phases(phases, completed=completed, is_finetuned=is_finetuned)
    assert [record.args[0] for record in caplog.records if record.args] == warned
