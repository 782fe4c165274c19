"""``limbert profile``: what every sub-network costs on this machine, kept with the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbert.cli import options as opt
from limbert.cli.budget import MaxFlops, MaxLatency, MaxParams, MaxSize, measured_table
from limbert.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from limbert.core.subnet import Subnet
    from limbert.evaluation.choose import Candidate, Constraint
    from limbert.evaluation.profile import Profiler
    from limbert.evaluation.profile_rows import Cell, ProfileRow
    from limbert.model.elastic import ElasticModel


def profile(
    run: Annotated[str, typer.Argument(help="elastic model", metavar="RUN")],
    batch: Annotated[str, typer.Option(help="batch sizes, such as 1,32")] = "1",
    tokens: Annotated[
        str | None, typer.Option(help="tokens of each example, such as 32,128 (default: 128, or the model's longest)")
    ] = None,
    backend: Annotated[str, typer.Option(help="any of torch,onnxruntime,openvino")] = "torch",
    device: Annotated[str, typer.Option(help="cpu, or cuda for torch")] = "cpu",
    subnets: Annotated[str, typer.Option(help="all, or names such as 1x1,0.5x0.75")] = "all",
    rounds: Annotated[int, typer.Option(help="passes of each sub-network", min=5)] = 50,
    seconds: Annotated[
        float, typer.Option(help="time for the passes of one batch size, length and backend; at least 5 rounds", min=0)
    ] = 20.0,
    max_latency: MaxLatency = None,
    max_params: MaxParams = None,
    max_flops: MaxFlops = None,
    max_size: MaxSize = None,
    threads: opt.Threads = None,
    as_json: opt.AsJson = False,
) -> None:
    """Measure parameters, FLOPs, file size, peak memory, latency and throughput of every sub-network on this machine.

    First the smallest, a middle and the largest, which says whether a budget can be met at all; then all, taking turns.
    The rows go to profile.jsonl in the model's folder; earlier ones of the same kind on this machine are replaced.

    Example: limbert profile runs/mrpc --batch 1,32 --tokens 32,128 --backend torch,onnxruntime

    Example: limbert profile runs/mrpc --tokens 64 --max-latency 5ms
    """
    opt.prepare_libraries(threads)
    from tempfile import TemporaryDirectory

    from limbert.cli import show
    from limbert.evaluation.choose import constraints
    from limbert.evaluation.profile import Profiler, check_cell
    from limbert.evaluation.profile_rows import PROFILE_NAME, read_profile, save_profile
    from limbert.model.checkpoint import read_record
    from limbert.model.elastic import ElasticModel

    given = {"--max-latency": max_latency, "--max-params": max_params, "--max-flops": max_flops, "--max-size": max_size}
    limits = constraints(given)
    batches, lengths = opt.counts(batch, "--batch"), opt.counts(tokens or "128", "--tokens")
    if not Path(run).is_dir() or not read_record(run):
        raise CheckpointError(f"{run} is no model trained by Limbert")
    if (Path(run) / PROFILE_NAME).exists():
        read_profile(Path(run) / PROFILE_NAME)  # refuses a broken one before the work
    model = ElasticModel.from_pretrained(run)
    if tokens is None:
        lengths = (min(128, model.longest_input),)
    cells = _cells(backend, device, batches=batches, lengths=lengths)
    for cell in cells:
        check_cell(cell, model)
    wanted = _named(run, model, subnets)
    rows: list[ProfileRow] = []
    with (
        TemporaryDirectory(prefix="limbert-") as folder,
        Profiler(model, wanted, Path(folder), rounds=rounds, seconds=seconds) as profiler,
    ):
        if limits or len(wanted) > 3:
            _first_look(profiler, cells[0], wanted, limits, run=run, as_json=as_json)
        for cell in cells:
            with show.task_bar() as advance:
                found = profiler.measure(cell, list(wanted), advance=advance)
            save_profile(run, found)
            rows += found
            if not as_json:
                _print(run, cell, found)
    if as_json:
        show.print_json([row.to_dict() for row in rows])
    else:
        if len(cells) > 1:
            _print_verdicts(limits, rows)
        note = f"{len(rows)} rows in {run}/{PROFILE_NAME}; next: limbert choose {run} --max-latency ..."
        show.output.print(note, highlight=False, soft_wrap=True)


def _cells(backend: str, device: str, *, batches: Sequence[int], lengths: Sequence[int]) -> "list[Cell]":
    import torch

    from limbert.evaluation.profile_rows import Cell

    threads = torch.get_num_threads()
    cells = [
        Cell(name, device, threads, batch, tokens)
        for name in opt.split(backend) or ()
        for batch in batches
        for tokens in lengths
    ]
    if not cells:
        raise ConfigError("nothing to measure: --backend is empty; write torch, onnxruntime or openvino")
    return cells


def _named(run: str, model: "ElasticModel", names: str) -> "dict[str, Subnet]":
    from limbert.evaluation.choose import plain_names

    every = model.subnets() | model.found()
    asked = plain_names(run, opt.split(names) or ())
    wanted = every if names.strip() == "all" else {name: model.subnet(name) for name in asked}
    if not wanted:
        raise ConfigError(f"--subnets is {names!r}; write all, or names such as 1x1,0.5x0.75")
    for subnet in wanted.values():
        model.check(subnet)
    return wanted


def _first_look(
    profiler: "Profiler",
    cell: "Cell",
    subnets: "dict[str, Subnet]",
    limits: "Sequence[Constraint]",
    *,
    run: str,
    as_json: bool,
) -> None:
    """The smallest, the middle and the largest, and whether the limits can be met at all."""
    from limbert.cli import show

    by_work = sorted(subnets, key=lambda name: sum(subnets[name].heads) + sum(subnets[name].neurons))
    three = list(dict.fromkeys((by_work[0], by_work[len(by_work) // 2], by_work[-1])))
    with show.task_bar() as advance:
        rows = profiler.measure(cell, three, advance=advance)
    if as_json:
        return
    show.output.print("A first look at the smallest, a middle and the largest:")
    _print(run, cell, rows)
    _print_verdicts(limits, rows)


def _print_verdicts(limits: "Sequence[Constraint]", rows: "Sequence[ProfileRow]") -> None:
    from limbert.cli import show

    for limit in limits:
        show.output.print(_verdict(limit, rows), highlight=False, soft_wrap=True)


def _verdict(limit: "Constraint", rows: "Sequence[ProfileRow]") -> str:
    from limbert.core.units import show_quantity
    from limbert.evaluation.choose import Candidate

    found = [Candidate(row, 0.0) for row in rows]
    best = min(found, key=limit.measure.of)
    shown = f"{limit.option} {show_quantity(limit.limit, kind=limit.measure.kind)}"
    how = f"on {best.row.cell.backend}, batch {best.row.cell.batch}, {best.row.cell.tokens} tokens"
    if limit.excess(best):
        return f"{shown} cannot be met {how}: {best.row.subnet} has {limit.shown(best)}"
    fitting = max((one for one in found if not limit.excess(one)), key=limit.measure.of)
    value = show_quantity(limit.measure.of(fitting), kind=limit.measure.kind)
    return f"{shown} can be met: {fitting.row.subnet} has {limit.measure.what} {value}"


def _print(run: str, cell: "Cell", rows: "Sequence[ProfileRow]") -> None:
    from limbert.cli import show
    from limbert.evaluation.hardware import describe

    title = f"\n{cell}; {describe(rows[0].hardware, device=cell.device)}; {rows[0].rounds} rounds"
    show.output.print(title, highlight=False, soft_wrap=True)
    show.output.print(measured_table(rows, _metrics(run, rows)))


def _metrics(run: str, rows: "Sequence[ProfileRow]") -> "dict[str, Candidate]":
    """Metrics where the run has results; a run without any is measured all the same."""
    from limbert.evaluation.choose import candidates
    from limbert.evaluation.results import RESULTS_NAME

    if not (Path(run) / RESULTS_NAME).exists():
        return {}
    return {one.row.subnet: one for one in candidates(run, rows)}
