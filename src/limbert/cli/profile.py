"""``limbert profile``: measured costs of every sub-network on this machine, saved in the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbert.cli import options as opt
from limbert.cli.budget import MaxFlops, MaxLatency, MaxParams, MaxSize, profile_table
from limbert.errors import ConfigError

if TYPE_CHECKING:
    from limbert.evaluation.choose import Constraint
    from limbert.evaluation.results import ProfileRow


def profile(
    run: Annotated[str, typer.Argument(help="elastic model", metavar="RUN")],
    batch: Annotated[str, typer.Option(help="batch sizes, such as 1,32")] = "1",
    tokens: Annotated[
        str | None, typer.Option(help="tokens per example, such as 32,128 (default: 128, or the model's longest)")
    ] = None,
    backend: Annotated[str, typer.Option(help="any of torch,onnxruntime,openvino")] = "torch",
    device: Annotated[str, typer.Option(help="cpu, or cuda for torch")] = "cpu",
    subnets: Annotated[str, typer.Option(help="all, or names such as 1x1,0.5x0.75")] = "all",
    rounds: Annotated[int, typer.Option(help="forward passes of each sub-network", min=5)] = 50,
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

    First the smallest, a middle and the largest, which shows whether a budget can be met at all; then all, taking
    turns. The rows are saved in the run (profile.jsonl), in place of earlier ones of the same setup on this machine.

    Example: limbert profile runs/mrpc --batch 1,32 --tokens 32,128 --backend torch,onnxruntime

    Example: limbert profile runs/mrpc --tokens 64 --max-latency 5ms
    """
    opt.prepare_libraries(threads)
    from limbert.cli import show
    from limbert.evaluation.benchmark import benchmark
    from limbert.evaluation.choose import parse_constraints
    from limbert.evaluation.results import PROFILE_NAME

    limits = parse_constraints(
        {"--max-latency": max_latency, "--max-params": max_params, "--max-flops": max_flops, "--max-size": max_size}
    )
    names = opt.split_commas(subnets) or ()
    if not names:
        raise ConfigError(f"--subnets is {subnets!r}; write all, or names such as 1x1,0.5x0.75")
    backends, batch_sizes = opt.split_commas(backend) or (), opt.parse_positive_ints(batch, "--batch")
    lengths = () if tokens is None else opt.parse_positive_ints(tokens, "--tokens")

    bar = show.titled_progress_bar()

    def print_preview(rows: "list[ProfileRow]") -> None:
        bar.pause()
        show.stdout.print("Preview: the smallest, a middle and the largest sub-network")
        _print_profile(run, rows)
        _print_constraint_checks(limits, rows)

    def print_setup(rows: "list[ProfileRow]") -> None:
        bar.pause()
        if not as_json:
            _print_profile(run, rows)

    with bar:
        rows = benchmark(
            run,
            subnets=() if names == ("all",) else names,
            backends=backends,
            batch_sizes=batch_sizes,
            lengths=lengths,
            device=device,
            rounds=rounds,
            max_seconds=seconds,
            on_preview=None if as_json or (len(names) <= 3 and names != ("all",) and not limits) else print_preview,
            on_setup=print_setup,
            progress=bar,
        )
    if as_json:
        show.print_json([row.to_dict() for row in rows])
        return
    if len({row.setup for row in rows}) > 1:
        _print_constraint_checks(limits, rows)
    show.stdout.print(
        f"Saved {len(rows)} rows in {run}/{PROFILE_NAME}. Next: limbert choose {run} --max-latency ...",
        highlight=False,
        soft_wrap=True,
    )


def _print_constraint_checks(constraints: "Sequence[Constraint]", rows: "Sequence[ProfileRow]") -> None:
    from limbert.cli import show

    for constraint in constraints:
        show.stdout.print(_describe_constraint(constraint, rows), highlight=False, soft_wrap=True)


def _describe_constraint(constraint: "Constraint", rows: "Sequence[ProfileRow]") -> str:
    """Whether any of the sub-networks meets the limit, and the most expensive that does."""
    from limbert.evaluation.choose import MeasuredSubnet

    subnets, value_of = [MeasuredSubnet(row, 0.0) for row in rows], constraint.budget_metric.value_of
    cheapest = min(subnets, key=value_of)
    if constraint.excess(cheapest):
        setup, name = cheapest.profile.setup, cheapest.profile.subnet
        where = f"on {setup.backend}, batch {setup.batch}, {setup.tokens} tokens"
        return f"{constraint.shown_limit} cannot be met {where}: {name} has {constraint.describe_excess(cheapest)}"
    largest = max((subnet for subnet in subnets if not constraint.excess(subnet)), key=value_of)
    return f"{constraint.shown_limit} can be met: {largest.profile.subnet} has {constraint.shown_value(largest)}"


def _print_profile(run: str, rows: "Sequence[ProfileRow]") -> None:
    """The table of one setup, with measured names if the run has results."""
    from limbert.cli import show
    from limbert.evaluation.choose import measured_subnets
    from limbert.evaluation.hardware import describe_hardware
    from limbert.evaluation.results import RESULTS_NAME

    folder, setup = Path(run).expanduser(), rows[0].setup
    machine = describe_hardware(rows[0].hardware, device=setup.device)
    show.stdout.print(f"\n{setup}; {machine}; {rows[0].rounds} rounds", highlight=False, soft_wrap=True)
    measured = measured_subnets(folder, rows) if (folder / RESULTS_NAME).exists() else []
    show.stdout.print(profile_table(rows, {subnet.profile.subnet: subnet for subnet in measured}))
