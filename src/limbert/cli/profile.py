"""``limbert profile``: what every sub-network costs on this machine, kept with the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbert.cli import options as opt
from limbert.cli.budget import MaxFlops, MaxLatency, MaxParams, MaxSize, profile_table
from limbert.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from limbert.core.subnet import Subnet
    from limbert.evaluation.choose import Constraint, MeasuredSubnet
    from limbert.evaluation.profile import Profiler
    from limbert.evaluation.profile_rows import ProfileRow, ProfileSetup
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
    from limbert.evaluation.choose import parse_constraints
    from limbert.evaluation.profile import Profiler, check_setup
    from limbert.evaluation.profile_rows import PROFILE_NAME, read_profile, save_profile
    from limbert.model.checkpoint import read_record
    from limbert.model.elastic import ElasticModel

    given = {"--max-latency": max_latency, "--max-params": max_params, "--max-flops": max_flops, "--max-size": max_size}
    limits = parse_constraints(given)
    batches, lengths = opt.parse_positive_ints(batch, "--batch"), opt.parse_positive_ints(tokens or "128", "--tokens")
    if not Path(run).is_dir() or not read_record(run):
        raise CheckpointError(f"{run} is no model trained by Limbert")
    if (Path(run) / PROFILE_NAME).exists():
        read_profile(Path(run) / PROFILE_NAME)  # refuses a broken one before the work
    model = ElasticModel.from_pretrained(run)
    if tokens is None:
        lengths = (min(128, model.max_input_length),)
    cells = _benchmark_settings(backend, device, batches=batches, lengths=lengths)
    for cell in cells:
        check_setup(cell, model)
    wanted = _select_subnets(run, model, subnets)
    rows: list[ProfileRow] = []
    with (
        TemporaryDirectory(prefix="limbert-") as folder,
        Profiler(model, wanted, Path(folder), rounds=rounds, max_seconds=seconds) as profiler,
    ):
        if limits or len(wanted) > 3:
            _measure_preview(profiler, cells[0], wanted, limits, run=run, as_json=as_json)
        for cell in cells:
            with show.titled_progress_bar() as advance:
                found = profiler.measure(cell, list(wanted), progress=advance)
            save_profile(run, found)
            rows += found
            if not as_json:
                _print_profile(run, cell, found)
    if as_json:
        show.print_json([row.to_dict() for row in rows])
    else:
        if len(cells) > 1:
            _print_constraint_checks(limits, rows)
        note = f"{len(rows)} rows in {run}/{PROFILE_NAME}; next: limbert choose {run} --max-latency ..."
        show.stdout.print(note, highlight=False, soft_wrap=True)


def _benchmark_settings(
    backend: str, device: str, *, batches: Sequence[int], lengths: Sequence[int]
) -> "list[ProfileSetup]":
    import torch

    from limbert.evaluation.profile_rows import ProfileSetup

    threads = torch.get_num_threads()
    cells = [
        ProfileSetup(name, device, threads, batch, tokens)
        for name in opt.split_commas(backend) or ()
        for batch in batches
        for tokens in lengths
    ]
    if not cells:
        raise ConfigError("nothing to measure: --backend is empty; write torch, onnxruntime or openvino")
    return cells


def _select_subnets(run: str, model: "ElasticModel", spec: str) -> "dict[str, Subnet]":
    from limbert.evaluation.choose import resolve_measured_names

    every = model.subnets() | model.searched_subnets()
    asked = resolve_measured_names(run, opt.split_commas(spec) or ())
    wanted = every if spec.strip() == "all" else {name: model.subnet(name) for name in asked}
    if not wanted:
        raise ConfigError(f"--subnets is {spec!r}; write all, or names such as 1x1,0.5x0.75")
    for subnet in wanted.values():
        model.check(subnet)
    return wanted


def _measure_preview(
    profiler: "Profiler",
    setting: "ProfileSetup",
    subnets: "dict[str, Subnet]",
    constraints: "Sequence[Constraint]",
    *,
    run: str,
    as_json: bool,
) -> None:
    """The smallest, the middle and the largest, and whether the limits can be met at all."""
    from limbert.cli import show

    by_work = sorted(subnets, key=lambda name: sum(subnets[name].heads) + sum(subnets[name].neurons))
    three = list(dict.fromkeys((by_work[0], by_work[len(by_work) // 2], by_work[-1])))
    with show.titled_progress_bar() as advance:
        rows = profiler.measure(setting, three, progress=advance)
    if as_json:
        return
    show.stdout.print("A first look at the smallest, a middle and the largest:")
    _print_profile(run, setting, rows)
    _print_constraint_checks(constraints, rows)


def _print_constraint_checks(constraints: "Sequence[Constraint]", rows: "Sequence[ProfileRow]") -> None:
    from limbert.cli import show

    for limit in constraints:
        show.stdout.print(_describe_constraint(limit, rows), highlight=False, soft_wrap=True)


def _describe_constraint(constraint: "Constraint", rows: "Sequence[ProfileRow]") -> str:
    from limbert.core.units import format_quantity
    from limbert.evaluation.choose import MeasuredSubnet

    found = [MeasuredSubnet(row, 0.0) for row in rows]
    best = min(found, key=constraint.budget_metric.value_of)
    shown = (
        f"{constraint.option} {format_quantity(constraint.limit, quantity_type=constraint.budget_metric.quantity_kind)}"
    )
    how = f"on {best.profile.setup.backend}, batch {best.profile.setup.batch}, {best.profile.setup.tokens} tokens"
    if constraint.excess(best):
        return f"{shown} cannot be met {how}: {best.profile.subnet} has {constraint.describe(best)}"
    fitting = max((one for one in found if not constraint.excess(one)), key=constraint.budget_metric.value_of)
    value = format_quantity(
        constraint.budget_metric.value_of(fitting), quantity_type=constraint.budget_metric.quantity_kind
    )
    return f"{shown} can be met: {fitting.profile.subnet} has {constraint.budget_metric.description} {value}"


def _print_profile(run: str, setting: "ProfileSetup", rows: "Sequence[ProfileRow]") -> None:
    from limbert.cli import show
    from limbert.evaluation.hardware import describe_hardware

    title = f"\n{setting}; {describe_hardware(rows[0].hardware, device=setting.device)}; {rows[0].rounds} rounds"
    show.stdout.print(title, highlight=False, soft_wrap=True)
    show.stdout.print(profile_table(rows, _candidates_by_subnet(run, rows)))


def _candidates_by_subnet(run: str, rows: "Sequence[ProfileRow]") -> "dict[str, MeasuredSubnet]":
    """Metrics where the run has results; a run without any is measured all the same."""
    from limbert.evaluation.choose import measured_subnets
    from limbert.evaluation.results import RESULTS_NAME

    if not (Path(run) / RESULTS_NAME).exists():
        return {}
    return {one.profile.subnet: one for one in measured_subnets(run, rows)}
