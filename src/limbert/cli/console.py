"""What the commands print: messages, JSON, tables of results and progress bars."""

import logging
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from limbert.core.units import format_quantity
from limbert.files import json_line

if TYPE_CHECKING:
    from limbert.evaluation.results import PolicyResult, SubnetResult

stdout = Console()
stderr = Console(stderr=True)  # progress and notes, so that standard output holds results alone


def say(text: str = "") -> None:
    """Print a line of the result on standard output."""
    stdout.print(text, markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Print a message on standard error."""
    stderr.print(text, markup=False, highlight=False, soft_wrap=True)


class _LogHandler(logging.Handler):
    """Prints the library's log messages on standard error, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        stderr.print(record.getMessage(), style=style, markup=False, highlight=False, soft_wrap=True)


log_handler = _LogHandler()


def print_json(value: Any) -> None:
    """Print one JSON value on standard output."""
    print(json_line(value, sys.stdout), end="", flush=True)  # noqa: T201


def print_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    text_columns: int = 1,
    bold: Collection[int] = (),
    dim: Collection[int] = (),
    compact: bool = False,
) -> None:
    """Print a table on standard output.

    Args:
        header: names of the columns; those of numbers are broken at spaces.
        rows: cells.
        text_columns: the first columns, left-aligned and, if there are several, wrapped; the others are numbers.
        bold: indices of rows in bold.
        dim: indices of rows in grey.
        compact: without vertical lines.
    """
    table = Table(header_style="bold")
    if compact:
        table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, name in enumerate(header):
        is_text = index < text_columns
        table.add_column(
            name if is_text else name.replace(" ", "\n"),
            justify="left" if is_text else "right",
            no_wrap=not is_text or text_columns == 1,
            overflow="fold",
        )
    for index, row in enumerate(rows):
        table.add_row(*row, style="bold" if index in bold else "dim" if index in dim else "")
    stdout.print(table)


def print_results(
    results: Sequence["SubnetResult"],
    latency: Mapping[str, float] | None = None,
    *,
    baseline: Mapping[str, float] | None = None,
    spread: Sequence[Mapping[str, float]] = (),
) -> None:
    """Print sub-networks with their costs and metrics.

    Args:
        results: in the order of the rows.
        latency: in seconds by name; adds the speed-up over the first, in place of calibration errors.
        baseline: metrics of a constant prediction: a last row. Sub-networks no better in the first metric are marked.
        spread: of each result, the standard deviations of its metrics.
    """
    from limbert.evaluation.results import mean_metric

    errors = ("calibration error", "uncalibrated") if results[0].calibration and not latency else ()
    header = ["sub-network", "parameters", "FLOPs", *results[0].metrics, *errors]
    header += ["latency", "speed-up"] if latency else []
    primary, rows, marked = next(iter(results[0].metrics)).rpartition("/")[2], list[list[str]](), False
    for index, result in enumerate(results):
        degenerate = baseline is not None and result.mean_metric(primary) <= mean_metric(baseline, primary)
        marked |= degenerate
        costs = [format_quantity(cost, quantity_type="count") for cost in (result.params, result.flops)]
        cells = [result.subnet + " *" * degenerate, *costs]
        for name, value in result.metrics.items():
            cells.append(_percent(value) + (f" ± {_percent(spread[index][name])}" if spread else ""))
        if errors:
            calibration = result.calibration
            cells += [_percent(calibration.error), _percent(calibration.raw_error)] if calibration else ["", ""]
        if latency:
            own, full = latency[result.subnet], latency[results[0].subnet]
            cells += [f"{1000 * own:.2f} ms", f"{full / own:.2f} x"]
        rows.append(cells)
    if baseline is not None:
        shown = [_percent(baseline[name]) if name in baseline else "" for name in results[0].metrics]
        rows.append(["baseline", "", "", *shown, *[""] * (len(header) - 3 - len(shown))])
    print_table(header, rows, dim=range(1, len(rows), 2))
    if marked:
        say(
            "* no better than the baseline (always the same prediction); train for more steps or with a higher "
            "--learning-rate"
        )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def print_policy_result(result: "PolicyResult", *, batch_size: int) -> None:
    """Print metrics and costs of a policy, and the widths and exits that inputs used."""
    rows = {"policy": str(result.policy)} | {name: _percent(value) for name, value in result.metrics.items()}
    if result.calibration:
        error, raw = _percent(result.calibration.error), _percent(result.calibration.raw_error)
        rows["calibration error"] = f"{error}, uncalibrated {raw}"
    flops, share = format_quantity(result.flops_mean, quantity_type="count"), result.flops_mean / result.flops_full
    rows["FLOPs per example"] = f"{flops}, {_percent(share)} % of the full model's"
    rows["time per example"] = f"{1000 * result.time_per_example:.2f} ms (batches of {batch_size})"
    table = Table(show_header=False)
    for row in rows.items():
        table.add_row(*row)
    stdout.print(table)
    used = sorted({width for layer in result.width_shares for width in layer})
    say("Fraction of the inputs by the width of each layer:")
    cells = [
        [str(index), *(f"{_percent(widths[width])} %" if width in widths else "" for width in used)]
        for index, widths in enumerate(result.width_shares)
    ]
    print_table(["layer", *(f"{width:g}" if width else "not run" for width in used)], cells, text_columns=0)
    exits = ", ".join(f"{layers} for {_percent(share)} %" for layers, share in result.exit_shares.items())
    say(f"layers run: {exits}")


class ProgressBar:
    """A bar on standard error, started by its first call ``(title, done, total)`` inside a ``with`` block."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
        self._task = self._progress.add_task("loading", total=None)

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()

    def __call__(self, title: str, done: int, total: int) -> None:
        self._progress.start()  # after a pause
        self._progress.update(self._task, description=title, completed=done, total=total)

    def pause(self) -> None:
        """Remove the bar until the next call, so that results can be printed."""
        self._progress.stop()
