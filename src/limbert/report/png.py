"""A drawing as a PNG file, in the light colours: matplotlib is the brush, the layout is the drawing's own."""

from pathlib import Path
from typing import Any

from limbert.core.palette import palette_colours
from limbert.report.drawing import Box, Drawing, DrawingElement, Marker, Polyline, Text, marker_corners

_PIXEL_RATIO = 2  # pixels of the file a pixel of the drawing


def save_png(drawing: Drawing, path: Path) -> None:
    """Write the picture.

    Raises:
        OSError: if it cannot be written.
    """
    from matplotlib.figure import Figure

    light = {name: pair[0] for name, pair in palette_colours().items()}
    figure = Figure(figsize=(drawing.width / 72, drawing.height / 72), facecolor=light["paper"])
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
    axes.set_axis_off()
    for order, mark in enumerate(drawing.elements):
        _draw_element(axes, mark, light, order)
    figure.savefig(path, format="png", dpi=72 * _PIXEL_RATIO)


def _draw_element(axes: Any, mark: DrawingElement, light_colours: dict[str, str], zorder: int) -> None:
    from matplotlib.patches import Circle, Polygon, Rectangle
    from matplotlib.patheffects import withStroke

    match mark:
        case Polyline():
            x, y = zip(*mark.points, strict=True)
            style = (0, (4, 3)) if mark.dashed else "-"
            axes.plot(
                x,
                y,
                color=light_colours[mark.colour],
                lw=mark.thickness,
                ls=style,
                zorder=zorder,
                solid_capstyle="butt",
            )
        case Box():
            place = (mark.x, mark.y)
            axes.add_patch(
                Rectangle(place, mark.width, mark.height, fc=light_colours[mark.colour], ec="none", zorder=zorder)
            )
        case Marker():
            look: dict[str, Any] = {
                "fc": light_colours[mark.colour],
                "ec": light_colours[mark.edge],
                "lw": 0.8,
                "zorder": zorder,
            }
            if mark.shape == "circle":
                axes.add_patch(Circle((mark.x, mark.y), mark.radius, **look))
            else:
                axes.add_patch(Polygon(marker_corners(mark), **look))
        case Text():
            side = {"start": "left", "middle": "center", "end": "right"}[mark.anchor]
            axes.text(
                mark.x,
                mark.y,
                mark.text.replace("$", r"\$"),
                fontsize=0.93 * mark.size,  # the file's font is a little wider than a page's
                color=light_colours[mark.colour],
                ha=side,
                va="baseline",
                weight="bold" if mark.bold else "normal",
                zorder=zorder,
                path_effects=[withStroke(linewidth=3, foreground=light_colours["paper"])] if mark.halo else None,
            )
