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

from limbert.train.progress import Monitor
from limbert.train.progress import Progress as Report

if TYPE_CHECKING:
    from limbert.data.readers import Examples
    from limbert.evaluation.policies import PolicyResult
    from limbert.evaluation.results import Result
    from limbert.evaluation.tune import Candidate
    from limbert.model.elastic import ElasticModel

output = Console()
messages = Console(stderr=True)  # progress and notes, so that standard output holds results alone


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    print(json.dumps(value, ensure_ascii=False), flush=True)  # noqa: T201 - the command's own voice


def skipped_rows(parts: Mapping[str, "Examples"]) -> None:
    """Say how many malformed rows each part of the data has lost, where it lost any."""
    for name, examples in parts.items():
        if examples.bad_rows:
            what = "row" if examples.bad_rows == 1 else "rows"
            messages.print(f"{examples.bad_rows} malformed {what} of {name} skipped", highlight=False)


def untrained(model: "ElasticModel", name: str) -> None:
    """Say so where a sub-network is asked for that no phase has trained; its answers are what cutting leaves."""
    if model.record and model.subnet(name) not in {**model.subnets(), **model.found()}.values():
        messages.print(f"{name} was not trained; trained are {', '.join(model.subnets())}", highlight=False)


def amount(value: float) -> str:
    """A count for people: ``1.2 M``, ``340.0 k``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"


def answer(row: Mapping[str, Any]) -> str:
    """One prediction in one line."""
    if "labels" in row:
        return ", ".join(f"{one['label']} {one['score']:.3f}" for one in row["labels"]) or "(no label)"
    if "entities" in row:
        return ", ".join(f"{one['text']} ({one['type']} {one['score']:.3f})" for one in row["entities"]) or "(none)"
    if "words" in row:
        return " ".join(f"{one['text']}/{one['tag']}" for one in row["words"])
    name = row.get("label", row.get("answer"))
    return f"{row['score']:.3f}" if name is None else f"{name}  {row['score']:.3f}"


def results_table(results: Sequence["Result"], latency: Mapping[str, float] | None = None) -> Table:
    """Sub-networks with what they cost and reach; with measured latency (seconds) also the speed-up.

    The speed-up is over the first row, which is the full model.
    """
    table = Table(header_style="bold", row_styles=["", "dim"])
    table.add_column("sub-network")
    for name in ("parameters", "FLOPs", *results[0].metrics, *(("latency", "speed-up") if latency else ())):
        table.add_column(name, justify="right")
    for result in results:
        cells = [result.subnet, amount(result.params), amount(result.flops)]
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
    table.add_row("FLOPs an example", f"{amount(result.flops_mean)}, {100 * share:.1f} % of the full model's")
    table.add_row("time an example", f"{1000 * result.time_per_example:.2f} ms (batches of {batch_size})")
    output.print(table)
    used = sorted({width for layer in result.widths for width in layer})
    output.print("Share of the inputs, by the width that each layer ran at:")
    layers = Table(header_style="bold")
    layers.add_column("layer", justify="right")
    for width in used:
        layers.add_column(f"{width:g}" if width else "not run", justify="right")
    for index, widths in enumerate(result.widths):
        layers.add_row(str(index), *(f"{100 * widths[width]:.1f} %" if width in widths else "" for width in used))
    output.print(layers)
    exits = ", ".join(f"{layers} for {100 * share:.1f} %" for layers, share in result.exits.items())
    output.print(f"layers run: {exits}", highlight=False, soft_wrap=True)


def candidates_table(candidates: Sequence["Candidate"], names: Mapping[int, str], metric: str) -> Table:
    """Policies by what they compute and reach on the examples of a search; ``names`` by their place in the list."""
    table = Table(header_style="bold")
    table.add_column("operating point")
    table.add_column("policy")
    table.add_column("FLOPs of full", justify="right")
    table.add_column(metric, justify="right")
    for place, candidate in enumerate(candidates):
        cells = str(candidate.policy), f"{100 * candidate.flops:.1f} %", f"{100 * candidate.value:.1f}"
        table.add_row(names.get(place, ""), *cells, style="bold" if place in names else "")
    return table


@contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """A bar on standard error; yields ``advance(done, total)``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as progress:
        task = progress.add_task(title, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield advance


@contextmanager
def task_bar() -> Iterator[Any]:
    """A bar on standard error that changes its title; yields ``advance(title, done, total)``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as progress:
        task = progress.add_task("loading", total=None)

        def advance(title: str, done: int, total: int) -> None:
            progress.update(task, description=title, completed=done, total=total)

        yield advance


class TerminalMonitor(Monitor):
    """Shows a training run: one bar a phase with loss and rate, one line a validation."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description:9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=messages,
            disable=not messages.is_terminal,  # the monitor then prints lines instead
        )
        self._task: Any = None

    def __enter__(self) -> "TerminalMonitor":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def phase_starts(self, phase: str, *, step: int, steps: int) -> None:
        self._task = self._progress.add_task(phase, total=steps, completed=step, state="")
        if not messages.is_terminal:
            messages.print(f"{phase}: {steps} steps" + (f", going on from step {step}" if step else ""))

    def preparing(self, phase: str, what: str, done: int, total: int) -> None:
        if self._task is None or self._progress.tasks[-1].description != what:
            self._task = self._progress.add_task(what, state="")
            if not messages.is_terminal:
                messages.print(f"{phase}: {what}")
        self._progress.update(self._task, completed=done + 1, total=total)

    def progress(self, progress: Report) -> None:
        state = f"loss {progress.loss:.4f}  {progress.examples_per_second:.0f} examples/s"
        self._progress.update(self._task, completed=progress.step, state=state)
        if not messages.is_terminal and (progress.step % 100 == 0 or progress.step == progress.steps):
            messages.print(f"{progress.phase}: step {progress.step} of {progress.steps}, {state}")

    def validated(self, phase: str, *, step: int, score: float, best: bool) -> None:
        mark = ", the best so far" if best else ""
        self._progress.console.print(f"{phase}: validation after step {step}: mean {100 * score:.1f}{mark}")

    def note(self, text: str) -> None:
        self._progress.console.print(text, style="dim", highlight=False)
