"""What ``train`` and ``pretrain`` share: a recipe out of options, and a run that a terminal can stop."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import typer

from limbert.cli import together
from limbert.core.config import TrainConfig

if TYPE_CHECKING:
    from limbert.evaluation.results import SubnetResult
    from limbert.train.progress import TrainingCallback
    from limbert.train.recipes import Recipe


class TrainableRun(Protocol):
    """A training that is ready to start."""

    def run(self) -> "list[SubnetResult]": ...


def build_recipe(config: TrainConfig, overrides: dict[str, Any]) -> "Recipe":
    """The recipe with the options' overrides; without any for sizes, an elastic model goes on with its own.

    Raises:
        ConfigError: if the recipe or an override is wrong.
        CheckpointError: if the model's folder is missing.
    """
    from limbert.cli import show
    from limbert.inference.base_model import trained_space
    from limbert.model.checkpoint import check_checkpoint_path
    from limbert.train.recipes import load_recipe, override_recipe

    recipe = override_recipe(load_recipe(config.recipe), **overrides)
    check_checkpoint_path(config.model)
    space = trained_space(config.model)
    if space is None or space == recipe.space or any(overrides["space"].values()):
        return recipe
    shown = f"widths {space.widths}, depths {space.depths}, layers {space.layers!r}"
    show.stderr.print(f"going on with what {config.model} was trained for: {shown}", soft_wrap=True)
    return replace(recipe, space=space)


def finished_results(output: str, settings: dict[str, Any], *, overwrite: bool) -> "list[SubnetResult] | None":
    """The results of a run with these settings that is finished already; None where there is something to do."""
    from limbert.cli import show
    from limbert.evaluation.results import read_results
    from limbert.train.run_folder import is_run_finished

    if not is_run_finished(output, settings, overwrite=overwrite):
        return None
    note = f"{output} is finished already, with these settings (--overwrite trains it again)"
    show.stderr.print(note, soft_wrap=True)
    return read_results(output)


def run_with_terminal_progress(
    create_run: "Callable[[TrainingCallback, Callable[[], bool]], TrainableRun]",
) -> "list[SubnetResult]":
    """Run what ``prepare(monitor, should_stop)`` returns, with its progress shown.

    Raises:
        typer.Exit: when stopped by Ctrl-C or SIGTERM, after saving the state.
    """
    from limbert.cli import show
    from limbert.errors import TrainingInterrupted

    with show.TerminalProgressCallback() as monitor, interrupt_on_signal() as should_stop:
        run = create_run(monitor, should_stop)
        try:
            return run.run()
        except TrainingInterrupted as interrupted:
            show.stderr.print(f"{interrupted}; the same command goes on from there")
            raise typer.Exit(130) from None


@contextmanager
def interrupt_on_signal() -> Iterator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM asks the run to stop after its step; a second one ends it at once.

    Not where a launcher started the process: it passes on a Ctrl-C that the terminal sends to all of them anyway, and
    itself ends those that do not stop.
    """
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        if not together.is_distributed_launch():
            signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
