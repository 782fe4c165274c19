"""Options that say what a sub-network may cost, and how measured ones look in a table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from limbert.evaluation.choose import MeasuredSubnet
    from limbert.evaluation.profile_rows import ProfileRow

MaxLatency = Annotated[str | None, typer.Option("--max-latency", help="longest median latency of a pass, such as 5ms")]
MaxParams = Annotated[str | None, typer.Option("--max-params", help="most parameters, such as 12M")]
MaxFlops = Annotated[str | None, typer.Option("--max-flops", help="most FLOPs an example, such as 1G")]
MaxSize = Annotated[str | None, typer.Option("--max-size", help="largest file, such as 20MB")]
MinMetric = Annotated[str | None, typer.Option("--min-metric", help="least metric on dev, such as 0.90 or 90%")]


def profile_table(
    profile_rows: "Sequence[ProfileRow]", candidates: "Mapping[str, MeasuredSubnet]", *, best: str | None = None
) -> Any:
    """Measured sub-networks; those with a metric also by their measured name, latency and metric.

    Args:
        rows: in the order shown.
        candidates: by the sub-network's name, where its metric is known.
        best: the sub-network whose row is bold.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("sub-network", no_wrap=True)
    units = ("params M", "GFLOPs", "file MB", "memory MB", "p50 ms", "p95 ms", "per s", "name")
    for name in units:
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in profile_rows:
        known = candidates.get(row.subnet)
        numbers = (
            row.params / 1e6,
            row.flops / 1e9,
            row.file_bytes / 1e6,
            None if row.peak_memory_bytes is None else row.peak_memory_bytes / 1e6,
            row.latency_p50_ms,
            row.latency_p95_ms,
            row.throughput,
        )
        name = known.measured_name if known else ""
        table.add_row(row.subnet, *map(_format_number, numbers), name, style="bold" if row.subnet == best else "")
    return table


def _format_number(value: float | None) -> str:
    """About three digits; nothing where there is no number."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
