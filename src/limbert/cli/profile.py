"""``limbert profile``: measured costs of every sub-network on this machine, saved in the run."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbert.cli import options as opt
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.core.verb_config import BenchmarkConfig

if TYPE_CHECKING:
    from limbert.evaluation.choose import Constraint, MeasuredSubnet
    from limbert.evaluation.results import ProfileRow


@config_options(config=ConfigOptions(BenchmarkConfig), limits=opt.COSTS)
def profile(
    run: opt.Run,
    config: BenchmarkConfig,
    limits: dict[str, str],
    threads: opt.Threads = None,
    as_json: opt.AsJson = False,
) -> None:
    """Measure parameters, FLOPs, file size, peak memory, latency and throughput of every sub-network on this machine.

    They take turns. The rows are saved in the run (profile.jsonl), in place of earlier ones of the same setup on this
    machine.
    Files of onnxruntime and openvino are verified against torch, and what bf16 and int8 cost is measured on dev.
    Operating points with gates, exits or cascades are measured on torch, on real texts of the given length.

    \b
    Example: limbert profile runs/mrpc --batch 1,32 --tokens 32,128 --runtime torch,onnxruntime
    Example: limbert profile runs/mrpc --runtime all --precision all
    Example: limbert profile runs/mrpc --tokens 64 --max-latency 5ms
    """
    opt.prepare_libraries(threads)
    from limbert.cli import console
    from limbert.evaluation.benchmark import benchmark
    from limbert.evaluation.choose import parse_constraints
    from limbert.evaluation.results import PROFILE_NAME

    constraints = parse_constraints({f"--{name.replace('_', '-')}": limit for name, limit in limits.items()})
    bar = console.ProgressBar()

    def print_setup(rows: "list[ProfileRow]") -> None:
        bar.pause()
        if not as_json:
            _print_profile(run, rows)
            _print_constraint_checks(constraints, rows)

    with bar:
        rows = benchmark(run, **vars(config), on_setup=print_setup, progress=bar)
    if as_json:
        console.print_json([row.to_dict() for row in rows])
        return
    console.say(f"Saved {len(rows)} rows in {run}/{PROFILE_NAME}. Next: limbert choose {run} --max-latency ...")


def _print_constraint_checks(constraints: "Sequence[Constraint]", rows: "Sequence[ProfileRow]") -> None:
    """Print whether any of the sub-networks meets each limit, and the most expensive that does."""
    from limbert.cli.console import say
    from limbert.evaluation.choose import MeasuredSubnet

    for constraint in constraints:
        subnets = sorted((MeasuredSubnet(row, 0.0) for row in rows), key=constraint.budget_metric.value_of)
        within = [subnet for subnet in subnets if not constraint.excess(subnet)]
        cheapest, limit = subnets[0], constraint.shown_limit
        if within:
            say(f"{limit} can be met: {within[-1].profile.subnet} has {constraint.shown_value(within[-1])}")
        else:
            setup, name = cheapest.profile.setup, cheapest.profile.subnet
            where = f"on {setup.backend} {setup.precision}, batch {setup.batch}, {setup.tokens} tokens"
            say(f"{limit} cannot be met {where}: {name} has {constraint.describe_excess(cheapest)}")


def _print_profile(run: str, rows: "Sequence[ProfileRow]") -> None:
    """Print the table of one setup, with the metric on dev if the run has results."""
    from limbert.cli.console import say
    from limbert.evaluation.choose import measured_subnets
    from limbert.evaluation.hardware import describe_hardware
    from limbert.evaluation.results import RESULTS_NAME

    folder, setup = Path(run).expanduser(), rows[0].setup
    say(f"\n{setup}; {describe_hardware(rows[0].hardware, device=setup.device)}; {rows[0].rounds} rounds")
    print_profile_table(rows, measured_subnets(folder, rows) if (folder / RESULTS_NAME).exists() else [])


def print_profile_table(
    rows: "Sequence[ProfileRow]", measured: "Sequence[MeasuredSubnet]", *, bold: Collection[int] = ()
) -> None:
    """Print measured costs in the given order, and the metric of ``measured``, the rows that have one, in percent."""
    from limbert.cli.console import print_table

    metrics = {id(subnet.profile): f"{100 * subnet.metric_value:.1f}" for subnet in measured}
    several = len({(row.setup.backend, row.setup.precision) for row in rows}) > 1
    header = ["sub-network", *["runtime"] * several]
    header += ["params M", "GFLOPs", "file MB", "memory MB", "p50 ms", "p95 ms", "per s", "metric"]
    cells: list[list[str]] = []
    for row in rows:
        memory: Any = None if row.peak_memory_bytes is None else row.peak_memory_bytes / 1e6
        costs = (row.params / 1e6, row.flops / 1e9, row.file_bytes / 1e6, memory)
        numbers = map(_format_number, (*costs, row.latency_p50_ms, row.latency_p95_ms, row.throughput))
        runtime = [f"{row.setup.backend} {row.setup.precision}"] * several
        cells.append([row.subnet, *runtime, *numbers, metrics.get(id(row), "")])
    print_table(header, cells, bold=bold, compact=True, text_columns=1 + several)


def _format_number(value: float | None) -> str:
    """About three digits; empty for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
