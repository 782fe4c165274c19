"""How results and progress look in a terminal."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from limbert.data.readers import Examples
    from limbert.evaluation.results import PolicyResult, SubnetResult
    from limbert.evaluation.tune import PolicyCandidate

stdout = Console()
stderr = Console(stderr=True)  # progress and notes, so that standard output holds results alone


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    print(json.dumps(value, ensure_ascii=False), flush=True)  # noqa: T201 - the command's own voice


def print_skipped_rows(splits: Mapping[str, "Examples"]) -> None:
    """Say how many malformed rows each part of the data has lost, where it lost any."""
    for name, examples in splits.items():
        if examples.bad_rows:
            what = "row" if examples.bad_rows == 1 else "rows"
            stderr.print(f"{examples.bad_rows} malformed {what} of {name} skipped", highlight=False)


def format_count(value: float) -> str:
    """A count for people: ``1.2 M``, ``340.0 k``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"


def format_prediction(row: Mapping[str, Any]) -> str:
    """One prediction in one line."""
    if "labels" in row:
        return ", ".join(f"{one['label']} {one['score']:.3f}" for one in row["labels"]) or "(no label)"
    if "entities" in row:
        return ", ".join(f"{one['text']} ({one['type']} {one['score']:.3f})" for one in row["entities"]) or "(none)"
    if "words" in row:
        return " ".join(f"{one['text']}/{one['tag']}" for one in row["words"])
    name = row.get("label", row.get("answer"))
    return f"{row['score']:.3f}" if name is None else f"{name}  {row['score']:.3f}"


def results_table(results: Sequence["SubnetResult"], latency: Mapping[str, float] | None = None) -> Table:
    """Sub-networks with what they cost and reach; with measured latency (seconds) also the speed-up.

    The speed-up is over the first row, which is the full model.
    """
    table = Table(header_style="bold", row_styles=["", "dim"])
    table.add_column("sub-network")
    for name in ("parameters", "FLOPs", *results[0].metrics, *(("latency", "speed-up") if latency else ())):
        table.add_column(name, justify="right")
    for result in results:
        cells = [result.subnet, format_count(result.params), format_count(result.flops)]
        cells += [f"{100 * value:.1f}" for value in result.metrics.values()]
        if latency:
            mine, full = latency[result.subnet], latency[results[0].subnet]
            cells += [f"{1000 * mine:.2f} ms", f"{full / mine:.2f} x"]
        table.add_row(*cells)
    return table


def print_policy_result(result: "PolicyResult", *, batch_size: int) -> None:
    """What a policy reaches and costs, and how it spends it layer by layer."""
    share = result.flops_mean / result.flops_full
    table = Table(show_header=False)
    table.add_row("policy", str(result.policy))
    for name, value in result.metrics.items():
        table.add_row(name, f"{100 * value:.1f}")
    table.add_row("FLOPs an example", f"{format_count(result.flops_mean)}, {100 * share:.1f} % of the full model's")
    table.add_row("time an example", f"{1000 * result.time_per_example:.2f} ms (batches of {batch_size})")
    stdout.print(table)
    used = sorted({width for layer in result.width_shares for width in layer})
    stdout.print("Share of the inputs, by the width that each layer ran at:")
    layers = Table(header_style="bold")
    layers.add_column("layer", justify="right")
    for width in used:
        layers.add_column(f"{width:g}" if width else "not run", justify="right")
    for index, widths in enumerate(result.width_shares):
        layers.add_row(str(index), *(f"{100 * widths[width]:.1f} %" if width in widths else "" for width in used))
    stdout.print(layers)
    exits = ", ".join(f"{layers} for {100 * share:.1f} %" for layers, share in result.exit_shares.items())
    stdout.print(f"layers run: {exits}", highlight=False, soft_wrap=True)


def candidates_table(candidates: Sequence["PolicyCandidate"], point_names: Mapping[int, str], metric: str) -> Table:
    """Policies by what they compute and reach on the examples of a search; ``names`` by their place in the list."""
    table = Table(header_style="bold")
    table.add_column("operating point")
    table.add_column("policy")
    table.add_column("FLOPs of full", justify="right")
    table.add_column(metric, justify="right")
    for place, candidate in enumerate(candidates):
        cells = str(candidate.policy), f"{100 * candidate.flops_share:.1f} %", f"{100 * candidate.metric_value:.1f}"
        table.add_row(point_names.get(place, ""), *cells, style="bold" if place in point_names else "")
    return table


@contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """A bar on standard error; yields ``advance(done, total)``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task(title, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield advance


class TitledProgressBar:
    """A bar on standard error that changes its title; called with ``(title, done, total)`` inside a ``with`` block."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
        self._task = self._progress.add_task("loading", total=None)

    def __enter__(self) -> "TitledProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, title: str, done: int, total: int) -> None:
        self._progress.start()  # after a pause
        self._progress.update(self._task, description=title, completed=done, total=total)

    def pause(self) -> None:
        """Remove the bar until the next call, so that results can be printed."""
        self._progress.stop()


def titled_progress_bar() -> TitledProgressBar:
    """A new `TitledProgressBar`."""
    return TitledProgressBar()
