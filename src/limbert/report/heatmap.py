"""The heat map: width across, depth down, the metric as shade and number, the time below it."""

from collections.abc import Mapping, Sequence

from limbert.core.palette import COLOUR_LEVELS
from limbert.report.drawing import Box, Drawing, DrawingElement, Text, text_width

HeatmapCell = tuple[float, str, str, str]  # value that the shade shows, first line, second line, title


def heatmap(
    cells: Mapping[tuple[float, float], HeatmapCell], *, widths: Sequence[float], depths: Sequence[float], alt_text: str,
    size: tuple[float, float],
) -> Drawing:  # fmt: skip
    """The picture; cells by ``(width, depth)``; ``size`` in pixels."""
    width, height = size
    left, top = 46.0, 48.0
    step_x, step_y = (width - left - 2) / len(widths), (height - top - 2) / len(depths)
    low, high = min(cell[0] for cell in cells.values()), max(cell[0] for cell in cells.values())
    marks: list[DrawingElement] = [Text(left, 15, "width: share of heads and neurons", colour="soft")]
    marks.append(Text(0, 37, "depth", colour="soft"))
    marks += [Text(left + (place + 0.5) * step_x, 37, f"{value:g}", anchor="middle", bold=True)
              for place, value in enumerate(widths)]  # fmt: skip
    for row, depth in enumerate(depths):
        y = top + row * step_y
        marks.append(Text(left - 10, y + step_y / 2 + 4, f"{depth:g}", anchor="end", bold=True))
        for column, value in enumerate(widths):
            if (value, depth) in cells:
                cell = cells[value, depth]
                place = (cell[0] - low) / (high - low) if high > low else 1.0
                marks += _cell_marks(
                    cell, round(place * (COLOUR_LEVELS - 1)), left + column * step_x, y, (step_x, step_y)
                )
    return Drawing(width, height, alt_text, tuple(marks))


def _cell_marks(cell: HeatmapCell, level: int, x: float, y: float, size: tuple[float, float]) -> list[DrawingElement]:
    _, first, second, title = cell
    middle = x + size[0] / 2
    big = min(20.0, 20 * (size[0] - 10) / max(text_width(first, 20), 1))
    small = min(13.0, 13 * (size[0] - 6) / max(text_width(second, 13), 1))
    marks: list[DrawingElement] = [Box(x + 1, y + 1, size[0] - 2, size[1] - 2, f"heat-{level}", title)]
    down = y + size[1] / 2 + (0 if second else 7)
    marks.append(Text(middle, down, first, big, f"on-heat-{level}", "middle", bold=True))
    if second:
        marks.append(Text(middle, down + 19, second, small, f"on-heat-{level}", "middle"))
    return marks
