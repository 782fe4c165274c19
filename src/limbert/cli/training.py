"""What ``train`` and ``pretrain`` share: the progress of a training in the terminal."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from limbert.cli.console import note, stderr
from limbert.errors import TrainingInterrupted
from limbert.evaluation.results import RESULTS_NAME
from limbert.files import read_json_lines

Result = TypeVar("Result")

_LINES_EVERY = 100  # steps, if the output is no terminal


def baseline_of(run: str) -> dict[str, float] | None:
    """The metrics of the best constant prediction, from the results of a run; None where there are none."""
    path = Path(run) / RESULTS_NAME
    rows = read_json_lines(path, required_keys={}) if path.exists() else [{}]
    return rows[0].get("baseline")


def run_in_terminal(run: "Callable[[TerminalProgress], Result]") -> "Result":
    """Call a training with its progress shown.

    Raises:
        typer.Exit: when interrupted by Ctrl-C or SIGTERM; what is finished is saved.
    """
    from limbert.train.callbacks import stop_on_signals

    with stop_on_signals() as stop_requested, TerminalProgress(stop_requested) as progress:
        try:
            return run(progress)
        except TrainingInterrupted as interrupted:
            note(f"{interrupted} Run the same command to resume.")
        except KeyboardInterrupt:
            note("Interrupted. Run the same command to resume.")
    raise typer.Exit(130)


class TerminalProgress(TrainerCallback):
    """Shows a training: a bar for each phase with loss and speed, a line for each validation, and log messages.

    Args:
        stop_requested: ends preparations, of which no checkpoint is saved.
    """

    def __init__(self, stop_requested: threading.Event) -> None:
        self._stop_requested = stop_requested
        self._progress = Progress(
            TextColumn("[bold]{task.description:9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=stderr,
            disable=not stderr.is_terminal,  # lines are printed instead
        )
        self._task: Any = None

    def __enter__(self) -> "TerminalProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def prepare(self, description: str, done: int, total: int) -> None:
        """Show a computation before the first step of a phase."""
        if self._stop_requested.is_set():
            raise KeyboardInterrupt
        if self._task is None or self._progress.tasks[-1].description != description:
            self._add_task(description, description)
        self._progress.update(self._task, completed=done + 1, total=total)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, steps = state.global_step, state.max_steps
        line = f"{args.phase}: {steps} steps" + (f", resuming from step {step}" if step else "")
        self._add_task(args.phase, line, total=steps, completed=step)

    def _add_task(self, description: str, line: str, **progress: int) -> None:
        self._task = self._progress.add_task(description, state="", **progress)  # type: ignore[arg-type]
        if not stderr.is_terminal:
            note(line)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" not in logs:
            return
        shown = f"loss {logs['loss']:.4f}  {logs['examples_per_second']:.0f} examples/s"
        self._progress.update(self._task, completed=state.global_step, state=shown)
        last = state.global_step == state.max_steps
        if not stderr.is_terminal and (state.global_step % _LINES_EVERY == 0 or last):
            note(f"{args.phase}: step {state.global_step} of {state.max_steps}, {shown}")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        name = args.metric_for_best_model
        if name is None:
            return
        value, count = metrics[f"eval_{name}"], sum(key.endswith(f"/{name}") for key in metrics)
        best = state.best_metric is None or (value > state.best_metric) == bool(args.greater_is_better)
        remark = ", best so far" * best
        if args.baseline is not None and value <= args.baseline:
            remark = f", no better than always predicting the same ({100 * args.baseline:.1f})"
        note(
            f"{args.phase}, step {state.global_step}: validation {name} {100 * value:.1f} "
            f"(mean of {count} sub-network{'s' * (count != 1)}){remark}"
        )
