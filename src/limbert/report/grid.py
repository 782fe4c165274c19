"""Section: the heat map of all sub-networks, metric and measured time (or FLOPs, where no time was measured)."""

from limbert.report.heatmap import Cell, heatmap
from limbert.report.measured import by_setting
from limbert.report.numbers import digits, metric_text, share_text
from limbert.report.picture import Picture
from limbert.report.read import RunData


def heatmap_picture(data: RunData) -> Picture:
    """The map; times are those of the first setting that was measured."""
    measured = by_setting(data.profile)
    setting, times = next(iter(measured.items())) if measured else (None, {})
    cells: dict[tuple[float, float], Cell] = {}
    for row in data.grid:
        name, value = row["subnet"], data.value(row)
        second = f"{digits(times[name].latency_p50_ms)} ms" if name in times else ""
        if setting is None:
            second = f"{share_text(row['flops'] / data.full['flops'])}"
        title = f"{name}: {data.metric} {metric_text(value)}, {second}{'' if setting else ' of the FLOPs'}"
        cells[row["width"], row["depth"]] = (value, metric_text(value), second, title)
    widths = sorted({row["width"] for row in data.grid})
    depths = sorted({row["depth"] for row in data.grid}, reverse=True)
    below = f"below it the median time ({setting})" if setting else "below it the share of the full model's FLOPs"
    caption = f"Large: {data.metric}; {below}. {_sentence(data)}"
    label = f"Heat map of {data.metric} by width and depth. {caption}"
    wide, narrow = (
        heatmap(cells, widths=widths, depths=depths, label=label, size=(width, 52 + height * len(depths)))
        for width, height in ((640.0, 72.0), (346.0, 60.0))
    )
    return Picture("heatmap", caption, wide, narrow)


def _sentence(data: RunData) -> str:
    """What narrowing alone and shortening alone cost, and so which of the two this model bears better."""
    full = data.full
    narrow = [row for row in data.grid if row["depth"] == full["depth"]]
    short = [row for row in data.grid if row["width"] == full["width"]]
    if len(narrow) < 2 or len(short) < 2:
        return ""
    thin, low = min(narrow, key=lambda row: row["width"]), min(short, key=lambda row: row["depth"])
    losses = [round(100 * (data.value(full) - data.value(row)), 1) for row in (thin, low)]
    told = [f"{'costs' if loss >= 0 else 'gains'} {abs(loss):.1f} points" for loss in losses]
    said = (
        f"Width {thin['width']:g} alone {told[0]} at {share_text(thin['flops'] / full['flops'])} of the FLOPs, "
        f"depth {low['depth']:g} alone {told[1]} at {share_text(low['flops'] / full['flops'])}"
    )
    if losses[0] == losses[1]:
        return f"{said}."
    better = "narrowing" if losses[0] < losses[1] else "shortening"
    return f"{said}: this model bears {better} better."
