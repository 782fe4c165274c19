"""The command ``limbert``: its verbs by name, and errors in one line. A verb imports what it needs when it runs."""

import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperCommand

from limbert.cli.augment import augment
from limbert.cli.choose import choose
from limbert.cli.demo import demo
from limbert.cli.evaluate import evaluate
from limbert.cli.export import export
from limbert.cli.interrupt import clean_up_on_signals
from limbert.cli.predict import predict
from limbert.cli.pretrain import pretrain
from limbert.cli.profile import profile
from limbert.cli.report import report
from limbert.cli.search import search
from limbert.cli.serve import serve
from limbert.cli.train import train
from limbert.cli.tune import tune
from limbert.errors import ConfigError, LimbertError, explain_out_of_memory

DISTRIBUTED_VERBS = ("train", "pretrain", "demo")  # all others run in one process

_OTHER_NAMES = {  # of options, as other programs call them
    "-i": "--input", "-o": "--output", "--all-scores": "--scores", "--backend": "--runtime", "--topk": "--top-k",
    "--base-model": "--model", "--model-name-or-path": "--model", "--output-dir": "--output",
    "--dataset": "--data", "--dataset-name": "--data", "--train-file": "--train", "--validation-file": "--dev",
    "--bs": "--batch-size", "--per-device-eval-batch-size": "--batch-size",
    "--per-device-train-batch-size": "--batch-size", "--lr": "--learning-rate", "--max-seq-length": "--max-length",
    "--num-epochs": "--epochs", "--num-train-epochs": "--epochs",
}  # fmt: skip


class _Verb(TyperCommand):
    """A command that knows other names of its options, and suggests options for a misspelt one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = [name for param in self.params for name in param.opts if name.startswith("--")]
        while True:
            try:
                return super().parse_args(ctx, [*args])
            except Exception as error:
                given = getattr(error, "option_name", None)
                if type(error).__name__ != "NoSuchOption" or given is None:  # Typer does not export the class
                    raise
                plain = given.replace("_", "-")
                name = _OTHER_NAMES.get(plain, plain)
                if name == given or name not in known:  # the dashes do not count as likeness
                    matches = get_close_matches(plain[2:], [option[2:] for option in known], cutoff=0.7)
                    error.possibilities = [f"--{option}" for option in matches]  # type: ignore[attr-defined]
                    raise
                index = [part.partition("=")[0] for part in args].index(given)
                args = [*args[:index], name + args[index][len(given) :], *args[index + 1 :]]


app = typer.Typer(
    name="limbert",
    help="One pretrained Transformer encoder, trained once, run at any width and depth.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (demo, augment, pretrain, train, evaluate, tune, search, profile, choose, predict, serve, export, report):
    app.command(cls=_Verb)(verb)


@app.callback(invoke_without_command=True)
def _global_options(
    version: bool = typer.Option(False, "--version", help="print the version and exit"),
    debug: bool = typer.Option(False, "--debug", help="show a traceback for errors (anywhere on the line)"),
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"limbert {installed('limbert')}")
        raise typer.Exit


def main() -> None:
    """Run the command of ``sys.argv``; exit status 1 for an error, 2 for a wrong option, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a label or a path may have characters that a terminal lacks
            stream.reconfigure(errors="backslashreplace")
    clean_up_on_signals()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    batch_size = re.search(r"--(?:batch-size|bs)[ =](\d+)", " ".join(arguments))
    try:
        for argument in arguments:
            if re.search("[\ud800-\udfff]", argument):  # libraries cannot write to such a path, nor JSON as UTF-8
                raise ConfigError(f"{argument!r} is invalid Unicode; write it in UTF-8, or rename the file")
        with _output_of_rank_zero(arguments), explain_out_of_memory(batch_size and int(batch_size[1])):
            app(arguments)
    except (LimbertError, OSError) as error:  # of the latter those that no function expects: a full standard output
        if "--debug" in sys.argv:
            raise
        _exit_if_error_already_reported()
        message = str(error)
        if isinstance(error, OSError):
            message = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
            with suppress(OSError, ValueError):  # what is left to write must not fail again at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        typer.echo(f"limbert: error: {' '.join(message.split())}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("limbert: interrupted", err=True)
        sys.exit(130)
    except Exception:
        _exit_if_error_already_reported()
        raise


def _is_distributed_launch() -> bool:
    """Whether torchrun or accelerate launch started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def _output_of_rank_zero(arguments: Sequence[str]) -> Iterator[None]:
    """Let only rank 0 write to the terminal; errors of the others are raised all the same.

    Raises:
        ConfigError: for a verb that runs in one process.
    """
    verb = next(iter(arguments), "-")
    if _is_distributed_launch() and not verb.startswith("-") and verb not in DISTRIBUTED_VERBS:
        known = ", ".join(DISTRIBUTED_VERBS)
        raise ConfigError(f"limbert {verb} runs in one process; these run in several: {known}")
    if not _is_distributed_launch() or os.environ.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as devnull, redirect_stdout(devnull), redirect_stderr(devnull):
        yield


def _exit_if_error_already_reported() -> None:
    if _is_distributed_launch():
        from limbert.train.distributed import is_first_failed_process

        if not is_first_failed_process():
            sys.exit(1)
