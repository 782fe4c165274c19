"""What charts have in common: scales with round ticks, axes, legends, and labels that do not cover one another."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from limbert.report.drawing import Anchor, DrawingElement, Marker, MarkerShape, Polyline, Text, text_width

BoundingBox = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class LinearScale:
    """Maps values ``low .. high`` to pixels ``start .. end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class PlotArea:
    """The area that a chart draws in, with a scale for each direction."""

    x: LinearScale
    y: LinearScale

    @property
    def bounds(self) -> BoundingBox:
        return self.x.start, self.y.end, self.x.end, self.y.start


def nice_ticks(low: float, high: float, *, count: int) -> list[float]:
    """At least ``count`` round values between ``low`` and ``high``, as few as round steps allow."""
    size = 10.0 ** math.ceil(math.log10(high - low))
    steps = (factor * size for size in (size, size / 10, size / 100) for factor in (1, 0.5, 0.25, 0.2))
    for step in steps:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 >= count:
            break
    return [round(number * step, 12) for number in range(first, last + 1)]


def format_ticks(values: Sequence[float]) -> list[str]:
    """The ticks as text, all with as many decimals as they need."""
    decimals = next(
        (places for places in range(7) if all(abs(round(value, places) - value) < 1e-9 for value in values)), 6
    )
    return [f"{value:.{decimals}f}" for value in values]


def padded_range(values: Iterable[float], *, from_zero: bool = False) -> tuple[float, float]:
    """The range of the values with a little air; from 0 where that wastes less than a third of it."""
    found = list(values)
    low, high = min(found), max(found)
    air = 0.06 * ((high - low) or abs(high) or 1.0)
    if from_zero and 0 <= low < high / 3:
        return 0.0, high + air
    return low - air, high + air


def axes(
    plot: PlotArea, x_ticks: Sequence[float], y_ticks: Sequence[float], *, x_label: str, y_label: str
) -> list[DrawingElement]:
    """Grid lines, ticks and names of the axes; the vertical one's name stands above it, to be read without turning."""
    left, top, right, bottom = plot.bounds
    marks: list[DrawingElement] = []
    for value, text in zip(y_ticks, format_ticks(y_ticks), strict=True):
        y = plot.y(value)
        marks += [Polyline(((left, y), (right, y)), "grid"), Text(left - 7, y + 4, text, colour="soft", anchor="end")]
    for value, text in zip(x_ticks, format_ticks(x_ticks), strict=True):
        x = plot.x(value)
        marks += [Polyline(((x, bottom), (x, bottom + 4)), "soft")]
        marks += [Text(x, bottom + 18, text, colour="soft", anchor="middle")]
    marks.append(Polyline(((left, bottom), (right, bottom)), "soft"))
    marks.append(Text(right, bottom + 36, x_label, anchor="end"))
    marks.append(Text(max(2.0, left - 34), top - 12, y_label))
    return marks


LegendEntry = tuple[MarkerShape, str, str]  # shape, colour, text


def legend(
    legend_groups: Sequence[tuple[str, Sequence[LegendEntry]]], *, left: float, right: float
) -> tuple[list[DrawingElement], float]:
    """Rows of keys from the top of a drawing, and how high they are; a group that does not fit begins a new row."""
    marks: list[DrawingElement] = []
    x, y = left, 14.0
    for heading, entries in legend_groups:
        needed = text_width(heading, 12) + 8 + sum(26 + text_width(text, 12) for *_, text in entries)
        if x > left and x + needed > right:
            x, y = left, y + 20
        if heading:
            marks.append(Text(x, y, heading, colour="soft"))
            x += text_width(heading, 12) + 8
        for shape, colour, text in entries:
            wanted = 26 + text_width(text, 12)
            if x > left and x + wanted > right + 8:
                x, y = left, y + 20
            marks += [Marker(x + 6, y - 4, shape, colour), Text(x + 15, y, text)]
            x += wanted
        x += 10
    return marks, y + 8


def place_labels(
    labels: Sequence[tuple[float, float, str, str]],
    *,
    obstacles: Sequence[BoundingBox],
    area: BoundingBox,
    size: float = 12,
) -> list[DrawingElement]:
    """Each text ``(x, y, text, colour)`` beside its point where it covers nothing; one without room is left out."""
    taken = list(obstacles)
    marks: list[DrawingElement] = []
    for x, y, text, colour in labels:
        for dx, dy, anchor in _LABEL_OFFSETS:
            box = _text_box(x + dx, y + dy, text, size, anchor)
            inside = box[0] >= area[0] and box[1] >= area[1] - 8 and box[2] <= area[2] + 8 and box[3] <= area[3]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                marks.append(Text(x + dx, y + dy, text, size, colour, anchor, bold=True, halo=True))
                break
    return marks


_LABEL_OFFSETS: tuple[tuple[float, float, Anchor], ...] = (
    (-9, -8, "end"),
    (0, -11, "middle"),
    (10, 16, "start"),
    (10, 4, "start"),
    (-10, 4, "end"),
    (0, 21, "middle"),
    (9, -8, "start"),
    (-9, 18, "end"),
    (3, -19, "end"),
)


def line_obstacles(line: Polyline) -> list[BoundingBox]:
    """What a line of horizontal and vertical pieces covers, for labels to keep off."""
    return [(min(x, u) - 1, min(y, v) - 1, max(x, u) + 1, max(y, v) + 1) for (x, y), (u, v) in pairwise(line.points)]


def _text_box(x: float, y: float, text: str, size: float, anchor: Anchor) -> BoundingBox:
    width = text_width(text, size) * 1.06
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return left - 2, y - 0.85 * size, left + width + 2, y + 0.25 * size


def _overlap(box: BoundingBox, other: BoundingBox) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
