"""Options that limit the cost of a sub-network, and the table of measured sub-networks."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from limbert.evaluation.choose import MeasuredSubnet
    from limbert.evaluation.results import ProfileRow

MaxLatency = Annotated[str | None, typer.Option("--max-latency", help="longest median latency of a pass, such as 5ms")]
MaxParams = Annotated[str | None, typer.Option("--max-params", help="most parameters, such as 12M")]
MaxFlops = Annotated[str | None, typer.Option("--max-flops", help="most FLOPs per example, such as 1G")]
MaxSize = Annotated[str | None, typer.Option("--max-size", help="largest file, such as 20MB")]
MinMetric = Annotated[str | None, typer.Option("--min-metric", help="lowest metric on dev, such as 0.90 or 90%")]


def profile_table(
    rows: "Sequence[ProfileRow]", measured: "Mapping[str, MeasuredSubnet]", *, best: str | None = None
) -> Any:
    """A table of measured sub-networks.

    Args:
        rows: in the order shown.
        measured: sub-networks with a known metric by name; the table shows their measured names.
        best: the sub-network whose row is bold.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("sub-network", no_wrap=True)
    for name in ("params M", "GFLOPs", "file MB", "memory MB", "p50 ms", "p95 ms", "per s", "name"):
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in rows:
        numbers = (
            row.params / 1e6,
            row.flops / 1e9,
            row.file_bytes / 1e6,
            None if row.peak_memory_bytes is None else row.peak_memory_bytes / 1e6,
            row.latency_p50_ms,
            row.latency_p95_ms,
            row.throughput,
        )
        name = measured[row.subnet].measured_name if row.subnet in measured else ""
        table.add_row(row.subnet, *map(_format_number, numbers), name, style="bold" if row.subnet == best else "")
    return table


def _format_number(value: float | None) -> str:
    """About three digits; empty for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
