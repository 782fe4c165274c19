"""The command's entry: verbs by name, errors as one line. Nothing heavy is imported before a verb runs."""

import sys

import typer

from limbert.cli import together
from limbert.cli.augment import augment
from limbert.cli.choose import choose
from limbert.cli.demo import demo
from limbert.cli.evaluate import evaluate
from limbert.cli.export import export
from limbert.cli.predict import predict
from limbert.cli.pretrain import pretrain
from limbert.cli.profile import profile
from limbert.cli.report import report
from limbert.cli.search import search
from limbert.cli.serve import serve
from limbert.cli.train import train
from limbert.cli.tune import tune
from limbert.errors import LimbertError

app = typer.Typer(
    name="limbert",
    help="One pretrained Transformer encoder, trained once, run at any width and depth.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (demo, augment, pretrain, train, evaluate, tune, search, profile, choose, predict, serve, export, report):
    app.command()(verb)


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
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        with together.mute_other_ranks(arguments):
            app(arguments)
    except LimbertError as error:
        if debug:
            raise
        together.exit_if_error_already_reported()
        print(f"limbert: error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201 - the command's own voice
        sys.exit(1)
    except KeyboardInterrupt:
        print("limbert: interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except Exception:
        together.exit_if_error_already_reported()
        raise
