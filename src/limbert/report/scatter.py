"""The chart of what is reached against what it costs, with the front of the best marked."""

from collections.abc import Sequence
from dataclasses import dataclass

from limbert.core.pareto import pareto_front
from limbert.report.axes import LegendEntry, Plot, Scale, axes, beside_steps, legend, padded, place_labels, ticks
from limbert.report.drawing import Dot, Drawing, Line, Shape


@dataclass(frozen=True)
class Point:
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
    name: str
    title: str
    shape: Shape
    colour: str
    radius: float = 5.5
    counts: bool = True
    named: bool = False


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats at as low a cost, cheapest first."""
    counting = [point for point in points if point.counts]
    return pareto_front(counting, cost=lambda one: one.cost, value=lambda one: one.value)


def scatter(
    points: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    keys: Sequence[tuple[str, Sequence[LegendEntry]]],
    label: str,
    size: tuple[float, float],
    name_front: bool = True,
) -> Drawing:
    """The picture; ``size`` in pixels. The front is a line of steps: at each cost the best that can be had."""
    width, height = size
    marks, top = legend(keys, left=4, right=width - 4)
    x_range, y_range = padded((point.cost for point in points), from_zero=True), padded(point.value for point in points)
    plot = Plot(Scale(*x_range, 42, width - 14), Scale(*y_range, height - 46, top + 30))
    x_ticks, y_ticks = ticks(*x_range, count=3 if width < 500 else 6), ticks(*y_range, count=4)
    marks += axes(plot, x_ticks, y_ticks, x_label=x_label, y_label=y_label)
    best = front(points)
    steps = _steps(best, plot)
    marks.append(steps)
    on_front = {id(point) for point in best}
    order = sorted(points, key=lambda point: (not point.counts, id(point) in on_front))
    dots = [_dot(point, plot, on_front=id(point) in on_front and name_front) for point in order]
    obstacles = [(dot.x - dot.radius, dot.y - dot.radius, dot.x + dot.radius, dot.y + dot.radius) for dot in dots]
    obstacles = [box for box, point in zip(obstacles, order, strict=True) if point.radius > 3]
    obstacles += beside_steps(steps)
    named = [point for point in points if point.named] + (best[::-1] if name_front else [])
    wanted = [
        (plot.x(one.cost), plot.y(one.value), one.name, "ink" if one.counts else "accent")
        for one in dict.fromkeys(named)
    ]
    labels = place_labels(wanted, obstacles=obstacles, area=plot.area)
    return Drawing(width, height, label, (*marks, *dots, *labels))


def _steps(best: Sequence[Point], plot: Plot) -> Line:
    corners: list[tuple[float, float]] = []
    for point in best:
        x, y = plot.x(point.cost), plot.y(point.value)
        corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
    return Line((*corners, (plot.x.end, corners[-1][1])), "accent", 2.0)


def _dot(point: Point, plot: Plot, *, on_front: bool) -> Dot:
    edge = "accent" if on_front else "soft"
    radius = point.radius + (0.8 if on_front else 0)
    return Dot(plot.x(point.cost), plot.y(point.value), point.shape, point.colour, radius, edge, point.title)
