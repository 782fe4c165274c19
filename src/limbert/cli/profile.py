"""``limbert profile``: measured costs of every sub-network on this machine, saved in the run."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbert.cli import options as opt
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.core.config import config_field
from limbert.errors import ConfigError

if TYPE_CHECKING:
    from limbert.evaluation.choose import Constraint, MeasuredSubnet
    from limbert.evaluation.results import ProfileRow


@dataclass(frozen=True)
class _Measurements:
    batch_sizes: str = config_field("1", "batch sizes, such as 1,32", option="batch")
    lengths: str | None = config_field(
        None, "tokens per example, such as 32,128 (default: 128, or the model's longest)", option="tokens"
    )
    backends: str = config_field(
        "torch", "any of torch,onnxruntime,openvino; or all that are installed", option="runtime"
    )
    precisions: str = config_field(
        "fp32", "any of fp32,bf16,int8, in the runtimes that have them (torch: fp32); or all", option="precision"
    )
    device: str = config_field("cpu", "cpu, or cuda for torch")
    subnets: str = config_field("all", "all, or names such as 1x1,0.5x0.75,balanced")
    rounds: int = config_field(50, "forward passes of each sub-network", minimum=5)
    max_seconds: float = config_field(
        20.0,
        "time limit per runtime, precision, batch size and length; at least 5 rounds",
        option="seconds",
        minimum=0,
    )

    def parsed(self) -> dict[str, Any]:
        """The parameters of `limbert.benchmark`.

        Raises:
            ConfigError: for an option that cannot be parsed.
        """
        names = opt.split_commas(self.subnets)
        if not names:
            raise ConfigError(f"--subnets is {self.subnets!r}; write all, or names such as 1x1,0.5x0.75")
        return vars(self) | {
            "subnets": () if names == ("all",) else names,
            "backends": opt.split_commas(self.backends),
            "precisions": opt.split_commas(self.precisions),
            "batch_sizes": _parse_positive_ints(self.batch_sizes, "--batch"),
            "lengths": () if self.lengths is None else _parse_positive_ints(self.lengths, "--tokens"),
        }


@config_options(options=ConfigOptions(_Measurements), limits=opt.COSTS)
def profile(
    run: opt.Run,
    options: _Measurements,
    limits: dict[str, str],
    threads: opt.Threads = None,
    as_json: opt.AsJson = False,
) -> None:
    """Measure parameters, FLOPs, file size, peak memory, latency and throughput of every sub-network on this machine.

    First the smallest, a middle and the largest, which shows whether a budget can be met at all; then all, taking
    turns. The rows are saved in the run (profile.jsonl), in place of earlier ones of the same setup on this machine.
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
    settings, bar = options.parsed(), console.ProgressBar()
    has_preview = not as_json and (bool(limits) or not 0 < len(settings["subnets"]) <= 3)

    def print_preview(rows: "list[ProfileRow]") -> None:
        bar.pause()
        console.say("Preview: the smallest, a middle and the largest sub-network")
        _print_profile(run, rows)
        _print_constraint_checks(constraints, rows)

    def print_setup(rows: "list[ProfileRow]") -> None:
        bar.pause()
        if not as_json:
            _print_profile(run, rows)

    with bar:
        previews: dict[str, Any] = {"on_preview": print_preview} if has_preview else {}
        rows = benchmark(run, **settings, **previews, on_setup=print_setup, progress=bar)
    if as_json:
        console.print_json([row.to_dict() for row in rows])
        return
    if len({row.setup for row in rows}) > 1:
        _print_constraint_checks(constraints, rows)
    console.say(f"Saved {len(rows)} rows in {run}/{PROFILE_NAME}. Next: limbert choose {run} --max-latency ...")


def _parse_positive_ints(text: str, option: str) -> tuple[int, ...]:
    """The whole numbers of an option such as ``1,32``, each once."""
    parts = opt.split_commas(text)
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{option} {text!r} is not a list of whole numbers such as 1,32")
    return tuple(dict.fromkeys(map(int, parts)))


def _print_constraint_checks(constraints: "Sequence[Constraint]", rows: "Sequence[ProfileRow]") -> None:
    """Print whether any of the sub-networks meets each limit, and the most expensive that does."""
    from limbert.cli.console import say
    from limbert.evaluation.choose import MeasuredSubnet

    for constraint in constraints:
        subnets = sorted((MeasuredSubnet(row, 0.0) for row in rows), key=constraint.budget_metric.value_of)
        within = [subnet for subnet in subnets if not constraint.excess(subnet)]
        cheapest, limit = subnets[0], constraint.shown_limit
        setup, name = cheapest.profile.setup, cheapest.profile.subnet
        if within:
            say(f"{limit} can be met: {within[-1].profile.subnet} has {constraint.shown_value(within[-1])}")
        else:
            where = f"on {setup.backend} {setup.precision}, batch {setup.batch}, {setup.tokens} tokens"
            say(f"{limit} cannot be met {where}: {name} has {constraint.describe_excess(cheapest)}")


def _print_profile(run: str, rows: "Sequence[ProfileRow]") -> None:
    """Print the table of one setup, with measured names if the run has results."""
    from limbert.cli.console import say
    from limbert.evaluation.choose import measured_subnets
    from limbert.evaluation.hardware import describe_hardware
    from limbert.evaluation.results import RESULTS_NAME

    folder, setup = Path(run).expanduser(), rows[0].setup
    machine = describe_hardware(rows[0].hardware, device=setup.device)
    say(f"\n{setup}; {machine}; {rows[0].rounds} rounds")
    print_profile_table(rows, measured_subnets(folder, rows) if (folder / RESULTS_NAME).exists() else [])


def print_profile_table(
    rows: "Sequence[ProfileRow]", measured: "Sequence[MeasuredSubnet]", *, bold: Collection[int] = ()
) -> None:
    """Print measured costs, and the measured names of sub-networks with a known metric.

    Args:
        rows: in the order shown.
        measured: those of the rows with a known metric.
        bold: indices of rows in bold.
    """
    from limbert.cli.console import print_table

    names = {id(subnet.profile): subnet.measured_name for subnet in measured}
    several = len({(row.setup.backend, row.setup.precision) for row in rows}) > 1
    header = ["sub-network", *["runtime"] * several]
    header += ["params M", "GFLOPs", "file MB", "memory MB", "p50 ms", "p95 ms", "per s", "name"]
    cells: list[list[str]] = []
    for row in rows:
        memory: Any = None if row.peak_memory_bytes is None else row.peak_memory_bytes / 1e6
        costs = (row.params / 1e6, row.flops / 1e9, row.file_bytes / 1e6, memory)
        numbers = (*costs, row.latency_p50_ms, row.latency_p95_ms, row.throughput)
        runtime = [f"{row.setup.backend} {row.setup.precision}"] * several
        cells.append([row.subnet, *runtime, *map(_format_number, numbers), names.get(id(row), "")])
    print_table(header, cells, bold=bold, compact=True, text_columns=1 + several)


def _format_number(value: float | None) -> str:
    """About three digits; empty for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
