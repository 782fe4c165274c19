"""The chart of what is reached against what it costs, with the front of the best marked."""

from collections.abc import Sequence
from dataclasses import dataclass

from limbert.core.pareto import pareto_front
from limbert.report.axes import (
    LegendEntry,
    LinearScale,
    PlotArea,
    axes,
    legend,
    line_obstacles,
    nice_ticks,
    padded_range,
    place_labels,
)
from limbert.report.drawing import Drawing, Marker, MarkerShape, Polyline


@dataclass(frozen=True)
class ScatterPoint:
    """One thing measured.

    Attributes:
        cost: on the horizontal axis; less is better.
        value: on the vertical axis; more is better.
        name: written beside it where it is on the front or ``named``.
        title: all about it, for a resting pointer.
        shape, colour: how it looks.
        radius: of its dot, in pixels.
        counts: whether it may be on the front.
        named: write its name although it is not on the front.
    """

    cost: float
    value: float
    label: str
    tooltip: str
    shape: MarkerShape
    colour: str
    radius: float = 5.5
    front_eligible: bool = True
    show_label: bool = False


def pareto_front_points(points: Sequence[ScatterPoint]) -> list[ScatterPoint]:
    """Those that no other beats at as low a cost, cheapest first."""
    counting = [point for point in points if point.front_eligible]
    return pareto_front(counting, cost=lambda one: one.cost, value=lambda one: one.value)


def scatter(
    points: Sequence[ScatterPoint],
    *,
    x_label: str,
    y_label: str,
    legend_groups: Sequence[tuple[str, Sequence[LegendEntry]]],
    alt_text: str,
    size: tuple[float, float],
    label_front: bool = True,
) -> Drawing:
    """The picture; ``size`` in pixels. The front is a line of steps: at each cost the best that can be had."""
    width, height = size
    marks, top = legend(legend_groups, left=4, right=width - 4)
    x_range, y_range = (
        padded_range((point.cost for point in points), from_zero=True),
        padded_range(point.value for point in points),
    )
    plot = PlotArea(LinearScale(*x_range, 42, width - 14), LinearScale(*y_range, height - 46, top + 30))
    x_ticks, y_ticks = nice_ticks(*x_range, count=3 if width < 500 else 6), nice_ticks(*y_range, count=4)
    marks += axes(plot, x_ticks, y_ticks, x_label=x_label, y_label=y_label)
    best = pareto_front_points(points)
    steps = _front_line(best, plot)
    marks.append(steps)
    on_front = {id(point) for point in best}
    order = sorted(points, key=lambda point: (not point.front_eligible, id(point) in on_front))
    dots = [_point_marker(point, plot, on_front=id(point) in on_front and label_front) for point in order]
    obstacles = [(dot.x - dot.radius, dot.y - dot.radius, dot.x + dot.radius, dot.y + dot.radius) for dot in dots]
    obstacles = [box for box, point in zip(obstacles, order, strict=True) if point.radius > 3]
    obstacles += line_obstacles(steps)
    named = [point for point in points if point.show_label] + (best[::-1] if label_front else [])
    wanted = [
        (plot.x(one.cost), plot.y(one.value), one.label, "ink" if one.front_eligible else "accent")
        for one in dict.fromkeys(named)
    ]
    labels = place_labels(wanted, obstacles=obstacles, area=plot.bounds)
    return Drawing(width, height, alt_text, (*marks, *dots, *labels))


def _front_line(front_points: Sequence[ScatterPoint], plot: PlotArea) -> Polyline:
    corners: list[tuple[float, float]] = []
    for point in front_points:
        x, y = plot.x(point.cost), plot.y(point.value)
        corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
    return Polyline((*corners, (plot.x.end, corners[-1][1])), "accent", 2.0)


def _point_marker(point: ScatterPoint, plot: PlotArea, *, on_front: bool) -> Marker:
    edge = "accent" if on_front else "soft"
    radius = point.radius + (0.8 if on_front else 0)
    return Marker(plot.x(point.cost), plot.y(point.value), point.shape, point.colour, radius, edge, point.tooltip)
