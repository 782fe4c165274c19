"""The charts of the report, and of ``limbert tune``: scatter with Pareto front, heat map, bars, training curves.

Each function draws into an empty figure; ``colours`` gives matplotlib's colours by name in the palette.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any

from limbert.core.palette import COLOUR_LEVELS
from limbert.core.pareto import pareto_front
from limbert.report.picture import Colours, tooltip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LegendEntry = tuple[str, str, str]  # marker, colour name, text
Series = Sequence[tuple[float, float]]  # step and value
_SMALLEST_HEAT_SPAN = 0.01  # a smaller difference of the metric does not use the whole range of shades


@dataclass(frozen=True)
class ScatterPoint:
    """A measured sub-network or policy."""

    cost: float  # on the horizontal axis; less is better
    value: float  # on the vertical axis; more is better
    tooltip: str  # all that is known about it
    marker: str  # of matplotlib
    colour: str  # name in the palette
    size: float = 10  # of the marker, in pixels
    label: str = ""  # written beside it if it is on the front or has a priority
    priority: int = 0  # labels of higher priority are placed first, and always
    on_front: bool = True  # whether the Pareto front may contain it


def scatter(
    figure: "Figure",
    colours: Colours,
    *,
    points: Sequence[ScatterPoint],
    x_label: str,
    y_label: str,
    legend_rows: Sequence[tuple[str, Sequence[LegendEntry]]],
    label_front: bool = True,
    band: tuple[float, float] | None = None,
    baseline: float | None = None,
) -> None:
    """Values of the points (at least one) against their costs, with the Pareto front as a line of steps.

    The labels name cost and value with their units. Points on the front are emphasised and labelled with
    ``label_front``; ``band``, an interval of the value, is shaded; ``baseline`` is a dashed line.
    """
    _add_legend(figure, colours, legend_rows)
    axes = figure.subplots()
    axes.set(title=y_label, xlabel=x_label, xlim=_padded_range([p.cost for p in points], include_zero=True))
    axes.locator_params(axis="x", nbins=4 if figure.bbox.width < 500 else 8)
    low, high = axes.set_ylim(*_padded_range([p.value for p in points]))
    if band and band[1] > low and band[0] < high:
        axes.axhspan(max(band[0], low), min(band[1], high), color=colours["idle"], alpha=0.6, lw=0)
    if baseline is not None and low <= baseline <= high:
        axes.axhline(baseline, color=colours["soft"], ls=(0, (4, 3)), gid=tooltip(f"baseline {baseline:.1f}"))
    front = pareto_front([p for p in points if p.on_front], cost=lambda p: p.cost, value=lambda p: p.value)
    x, y = [p.cost for p in front], [p.value for p in front]
    x, y = [*x, axes.get_xlim()[1]], [*y, y[-1]]
    axes.step(x, y, where="post", color=colours["accent"], lw=2, clip_on=False)
    emphasised = {id(p) for p in front if label_front}
    for point in sorted(points, key=lambda p: (not p.on_front, id(p) in emphasised)):
        edge = colours["accent" if id(point) in emphasised or not point.on_front else "soft"]
        axes.plot([point.cost], [point.value], point.marker, color=colours[point.colour], ms=point.size, mec=edge,
                  mew=1.2, clip_on=False, gid=tooltip(point.tooltip))  # fmt: skip
    labelled = [p for p in points if p.label and (p.priority or id(p) in emphasised)]
    corners = [corner for (x0, y0), (x1, _) in pairwise(zip(x, y, strict=True)) for corner in ((x0, y0), (x1, y0))]
    _place_labels(axes, colours, sorted(labelled, key=lambda p: (-p.priority, -p.value)), points, corners)


def heat_map(
    figure: "Figure", colours: Colours, *, cells: Mapping[tuple[float, float], tuple[float, str, str, str]]
) -> None:
    """The metric by width (across) and depth (up) as shade and number.

    Args:
        cells: by ``(width, depth)``: metric from 0 to 1, first line, second line, tooltip.
    """
    axes = figure.subplots()
    widths, depths = (sorted({key[index] for key in cells}) for index in (0, 1))
    low = min(cell[0] for cell in cells.values())
    span = max(max(cell[0] for cell in cells.values()) - low, _SMALLEST_HEAT_SPAN)
    axes.set_xticks(range(len(widths)), [f"{width:g}" for width in widths])
    axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    axes.set(xlim=(-0.5, len(widths) - 0.5), ylim=(-0.5, len(depths) - 0.5), ylabel="depth")
    axes.set_title("width: fraction of heads and neurons")
    axes.tick_params(length=0, labelbottom=False, labeltop=True, labelcolor=colours["ink"])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    small = 12 if figure.bbox.width / len(widths) > 95 else 10
    for (width, depth), (value, first, second, tip) in cells.items():
        x, y = widths.index(width), depths.index(depth)
        shade = f"heat-{round((value - low) / span * (COLOUR_LEVELS - 1))}"
        text: dict[str, Any] = {"color": colours[f"on-{shade}"], "ha": "center", "va": "center"}
        axes.bar(x, 0.96, 0.98, bottom=y - 0.48, color=colours[shade], clip_on=False)[0].set_gid(tooltip(tip))
        axes.text(x, y + 0.12, first, fontsize=small + 6, weight="bold", **text)
        axes.text(x, y - 0.22, second, fontsize=small, **text)


def stacked_bars(
    figure: "Figure",
    colours: Colours,
    *,
    bars: Mapping[str, Sequence[tuple[float, str, str]]],
    heading: str = "",
    legend: Sequence[LegendEntry] = (),
) -> None:
    """Horizontal bars of fractions of the examples, by label: segments of fraction, colour name, end of the tooltip.

    Without a legend of the colours, each bar has one segment and its value at its end.
    """
    if legend:
        _add_legend(figure, colours, [(heading, legend)])
    axes = figure.subplots()
    for index, (label, segments) in enumerate(bars.items()):
        left = 0.0
        for fraction, colour, meaning in segments:
            percent = 100 * fraction
            bar = axes.barh(index, percent, left=left, height=0.84, color=colours[colour], ec=colours["paper"])
            bar[0].set_gid(tooltip(f"{label}{meaning}: {percent:.1f} % of the examples"))
            if not legend:
                axes.text(percent + 1.5, index, f"{percent:.1f}", va="center", weight="bold")
            elif percent >= 9 and len(bars) <= 12:
                on = colours.get(f"on-{colour}", colours["ink"])
                axes.text(
                    left + percent / 2, index, f"{percent:.0f}", fontsize=10.5, color=on, ha="center", va="center"
                )
            left += percent
    axes.set(xlim=(0, 100 if legend else 118), ylim=(len(bars) - 0.5, -0.5), title="% of the examples", xticks=[])
    axes.set_yticks(range(len(bars)), list(bars))
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)


def training_curves(
    figure: "Figure", colours: Colours, *, losses: Series, scores: Series, score_label: str, decimals: int,
    lower_is_better: bool,
) -> None:  # fmt: skip
    """The training loss and the validation score of one phase by optimizer step; the best score is marked."""
    curves = [(title, series) for title, series in (("training loss", losses), (score_label, scores)) if series]
    all_axes = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
    for axes, (title, series) in zip(all_axes, curves, strict=True):
        dots = {"marker": "o", "ms": 7, "ls": (0, (4, 3))} if series is scores or len(series) == 1 else {}
        axes.plot(*zip(*series, strict=True), color=colours["width-4"], lw=1.8, clip_on=False, **dots)
        axes.locator_params(nbins=4)
        axes.set(title=title, ylim=_padded_range([value for _, value in series], padding=0.12))
        axes.set_xlim(0, 1.04 * max(step for step, _ in [*losses, *scores]))
    all_axes[-1].set_xlabel("optimizer step")
    if scores:
        step, score = (min if lower_is_better else max)(scores, key=lambda point: point[1])
        tip, label = f"step {step:g}: {score:.{decimals}f}", f"best {score:.{decimals}f}"
        all_axes[-1].plot(step, score, "o", color=colours["accent"], ms=9, clip_on=False, gid=tooltip(tip))
        points = [ScatterPoint(*point, "", "o", "ink") for point in scores]
        best = ScatterPoint(step, score, tip, "o", "accent", label=label, on_front=False)
        _place_labels(all_axes[-1], colours, [best], points)


def _padded_range(values: Sequence[float], *, include_zero: bool = False, padding: float = 0.06) -> tuple[float, float]:
    """The range of the values with a margin; from 0 where that takes less than a third of the range."""
    low, high = min(values), max(values)
    margin = padding * ((high - low) or abs(high) or 1.0)
    return (0.0 if include_zero and 0 <= low < high / 3 else low - margin), high + margin


def _add_legend(figure: "Figure", colours: Colours, rows: Sequence[tuple[str, Sequence[LegendEntry]]]) -> None:
    """A legend above the plot, with a heading in the first column, in as many columns as fit."""
    from matplotlib.lines import Line2D

    empty = Line2D([], [], ls="")
    for columns in range(max(len(entries) for _, entries in rows), 0, -1):
        lines = []
        for heading, entries in rows:
            cells = [(Line2D([], [], ls="", marker=marker, color=colours[colour], mec=colours["soft"], ms=9), text)
                     for marker, colour, text in entries]  # fmt: skip
            chunks = [cells[start : start + columns] for start in range(0, len(cells), columns)]
            lines += [[(empty, "" if index else heading), *chunk] for index, chunk in enumerate(chunks)]
        by_column = [cell for column in zip_longest(*lines, fillvalue=(empty, "")) for cell in column]
        handles, labels = zip(*by_column, strict=True)
        legend = figure.legend(handles, labels, loc="outside upper left", ncols=columns + 1)
        if legend.get_window_extent().width + 10 <= figure.bbox.width:  # with the padding of the layout
            return
        legend.remove()


_LABEL_OFFSETS = (  # pixels to the right, pixels up, horizontal alignment
    (-9, 8, "right"), (0, 9, "center"), (9, 8, "left"), (10, -4, "left"), (-10, -4, "right"),
    (9, -15, "left"), (0, -20, "center"), (-9, -15, "right"), (3, 20, "right"), (3, 20, "left"),
)  # fmt: skip


def _place_labels(
    axes: "Axes", colours: Colours, labelled: Sequence[ScatterPoint], points: Sequence[ScatterPoint],
    line: Sequence[tuple[float, float]] = (),
) -> None:  # fmt: skip
    """Write each label beside its point where it covers no point, no other label and no piece of the line.

    A label without room is left out; one with a priority is then written over small points.
    """
    from matplotlib.transforms import Bbox

    figure: Any = axes.figure
    figure.draw_without_rendering()  # the layout
    to_pixels = axes.transData.transform
    obstacles = [Bbox([to_pixels(start) - 1, to_pixels(end) + 1]) for start, end in pairwise(line)]
    obstacles = [Bbox.from_extents(*box.min, *box.max) for box in obstacles]
    small: list[Bbox] = []
    for point in points:
        centre, radius = to_pixels((point.cost, point.value)), point.size / 2 + 1
        (obstacles if point.size > 6 else small).append(Bbox([centre - radius, centre + radius]))
    area = axes.get_window_extent()
    area = Bbox.from_extents(area.x0, area.y0, figure.bbox.x1 - 4, area.y1 + 10)
    for point in labelled:
        colour = colours["ink" if point.on_front else "accent"]
        text = axes.annotate(
            point.label, (point.cost, point.value), xytext=(0, 0), textcoords="offset points", color=colour,
            weight="bold", fontsize=11, in_layout=False,
        )  # fmt: skip
        boxes = {}
        for offset in _LABEL_OFFSETS:
            text.set(position=offset[:2], ha=offset[2])
            box = text.get_window_extent().padded(1)
            inside = area.x0 <= box.x0 and box.x1 <= area.x1 and area.y0 <= box.y0 and box.y1 <= area.y1
            if inside and not box.count_overlaps(obstacles):
                boxes[offset] = box
        best = min(boxes, key=lambda offset: boxes[offset].count_overlaps(small), default=None)
        if best is None or (boxes[best].count_overlaps(small) and not point.priority):
            text.remove()
            continue
        text.set(position=best[:2], ha=best[2])
        if boxes[best].count_overlaps(small):
            text.set_bbox({"facecolor": colours["paper"], "edgecolor": "none", "alpha": 0.8, "pad": 1})
        obstacles.append(boxes[best])
