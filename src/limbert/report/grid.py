"""Section: the heat map of all sub-networks, metric and measured time (or FLOPs, where no time was measured)."""

from limbert.report.heatmap import HeatmapCell, heatmap
from limbert.report.measured import group_by_setting
from limbert.report.numbers import format_metric, format_percent, format_significant
from limbert.report.picture import Picture
from limbert.report.read import RunData


def heatmap_picture(data: RunData) -> Picture:
    """The map; times are those of the first setting that was measured."""
    measured = group_by_setting(data.profile)
    setting, times = next(iter(measured.items())) if measured else (None, {})
    cells: dict[tuple[float, float], HeatmapCell] = {}
    for row in data.grid_results:
        name, value = row["subnet"], data.metric_value(row)
        second = f"{format_significant(times[name].latency_p50_ms)} ms" if name in times else ""
        if setting is None:
            second = f"{format_percent(row['flops'] / data.full_result['flops'])}"
        title = f"{name}: {data.metric} {format_metric(value)}, {second}{'' if setting else ' of the FLOPs'}"
        cells[row["width"], row["depth"]] = (value, format_metric(value), second, title)
    widths = sorted({row["width"] for row in data.grid_results})
    depths = sorted({row["depth"] for row in data.grid_results}, reverse=True)
    below = f"below it the median time ({setting})" if setting else "below it the share of the full model's FLOPs"
    caption = f"Large: {data.metric}; {below}. {_width_depth_summary(data)}"
    label = f"Heat map of {data.metric} by width and depth. {caption}"
    wide, narrow = (
        heatmap(cells, widths=widths, depths=depths, alt_text=label, size=(width, 52 + height * len(depths)))
        for width, height in ((640.0, 72.0), (346.0, 60.0))
    )
    return Picture("heatmap", caption, wide, narrow)


def _width_depth_summary(data: RunData) -> str:
    """What narrowing alone and shortening alone cost, and so which of the two this model bears better."""
    full = data.full_result
    narrow = [row for row in data.grid_results if row["depth"] == full["depth"]]
    short = [row for row in data.grid_results if row["width"] == full["width"]]
    if len(narrow) < 2 or len(short) < 2:
        return ""
    thin, low = min(narrow, key=lambda row: row["width"]), min(short, key=lambda row: row["depth"])
    losses = [round(100 * (data.metric_value(full) - data.metric_value(row)), 1) for row in (thin, low)]
    told = [f"{'costs' if loss >= 0 else 'gains'} {abs(loss):.1f} points" for loss in losses]
    said = (
        f"Width {thin['width']:g} alone {told[0]} at {format_percent(thin['flops'] / full['flops'])} of the FLOPs, "
        f"depth {low['depth']:g} alone {told[1]} at {format_percent(low['flops'] / full['flops'])}"
    )
    if losses[0] == losses[1]:
        return f"{said}."
    better = "narrowing" if losses[0] < losses[1] else "shortening"
    return f"{said}: this model bears {better} better."
