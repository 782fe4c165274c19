"""Plots: all text lies inside the figure, labels cover nothing, and equal values look equal."""

import random
from functools import partial
from itertools import combinations
from typing import Any

import pytest
from matplotlib.colors import to_rgba
from matplotlib.text import Annotation

from limbert.core.palette import palette_colours
from limbert.report import plots
from limbert.report.picture import Picture
from limbert.report.plots import ScatterPoint

LIGHT = {name: pair[0] for name, pair in palette_colours().items()}
LEGEND = [("width", [("o", "ink", f"{number / 8:g}") for number in range(1, 9)])]


def scatter_figure(points: list[ScatterPoint], width: float = 346) -> Any:
    draw = partial(plots.scatter, points=points, x_label="ms", y_label="accuracy, %", legend_rows=LEGEND)
    figure = Picture("p", "", draw, (width, 380)).figure((width, 380), LIGHT)
    figure.canvas.draw()
    return figure


@pytest.mark.parametrize("values", [(-0.17, -0.0001), (-17.25, 3.5), (0.0001, 0.0002), (0.0, 0.0), (123456, 123457)])
@pytest.mark.parametrize("width", [346, 640])
def test_no_text_is_clipped(values: tuple[float, float], width: float) -> None:
    points = [ScatterPoint(cost, value, "", "o", "ink", label=f"0.{cost}x1") for cost, value in enumerate(values, 1)]
    figure = scatter_figure(points, width)
    renderer = figure.canvas.get_renderer()
    for box in [figure.axes[0].get_tightbbox(renderer), figure.legends[0].get_window_extent(renderer)]:
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.width + 1
        assert box.y1 <= figure.bbox.height + 1


def test_labels_cover_neither_each_other_nor_points() -> None:
    rng = random.Random(5)
    points = [ScatterPoint(rng.random(), rng.random(), "", "o", "ink", label=f"point {number}", priority=1)
              for number in range(40)]  # fmt: skip
    figure = scatter_figure(points, 640)
    boxes = [label.get_window_extent(figure.canvas.get_renderer()) for label in figure.findobj(Annotation)]
    assert 10 < len(boxes) < 40
    assert not any(first.overlaps(second) for first, second in combinations(boxes, 2))
    to_pixels = figure.axes[0].transData.transform
    assert not any(box.contains(*to_pixels((point.cost, point.value))) for box in boxes for point in points)


@pytest.mark.parametrize("value", [0.0, 0.684, -0.1])
def test_equal_values_have_the_lowest_shade(value: float) -> None:
    cells = {(width, depth): (value, "", "", "") for width in (0.5, 1.0) for depth in (0.5, 1.0)}
    figure = Picture("p", "", partial(plots.heat_map, cells=cells), (346, 200)).figure((346, 200), LIGHT)
    shades = {patch.get_facecolor() for patch in figure.axes[0].patches}
    assert shades == {to_rgba(LIGHT["heat-0"])}


def test_same_data_gives_the_same_svg() -> None:
    draw = partial(plots.stacked_bars, bars={"3 of 6": [(0.25, "accent", "")], "6 of 6": [(0.75, "width-5", "")]})
    picture = Picture("exits", "layers", draw, (346, 104))
    assert picture.svg((346, 104)) == picture.svg((346, 104))
