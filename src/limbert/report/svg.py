"""A drawing as SVG for a page: colours are the page's CSS variables, so that light and dark follow it."""

from html import escape

from limbert.report.drawing import Box, Dot, Drawing, Line, Mark, Text, corners


def svg(drawing: Drawing) -> str:
    """The element; every text in it is escaped."""
    body = "".join(_mark(mark) for mark in drawing.marks)
    size = f'viewBox="0 0 {drawing.width:g} {drawing.height:g}" width="{drawing.width:g}" height="{drawing.height:g}"'
    return f'<svg {size} role="img" aria-label="{escape(drawing.label)}">{body}</svg>'


def _mark(mark: Mark) -> str:
    match mark:
        case Line():
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in mark.points)
            dashes = ";stroke-dasharray:4 3" if mark.dashed else ""
            style = (
                f"fill:none;stroke:var(--{mark.colour});stroke-width:{mark.thickness:g};stroke-linejoin:round{dashes}"
            )
            return f'<polyline points="{points}" style="{style}"/>'
        case Box():
            place = f'x="{mark.x:.1f}" y="{mark.y:.1f}" width="{mark.width:.1f}" height="{mark.height:.1f}"'
            return f'<rect {place} style="fill:var(--{mark.colour})">{_title(mark.title)}</rect>'
        case Dot():
            style = f'style="fill:var(--{mark.colour});stroke:var(--{mark.edge})"'
            if mark.shape == "circle":
                place = f'cx="{mark.x:.1f}" cy="{mark.y:.1f}" r="{mark.radius:g}"'
                return f"<circle {place} {style}>{_title(mark.title)}</circle>"
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners(mark))
            return f'<polygon points="{points}" {style}>{_title(mark.title)}</polygon>'
        case Text():
            weight = ";font-weight:600" if mark.bold else ""
            seam = ";paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round" if mark.halo else ""
            style = f"fill:var(--{mark.colour});font-size:{mark.size:g}px;text-anchor:{mark.anchor}{weight}{seam}"
            return f'<text x="{mark.x:.1f}" y="{mark.y:.1f}" style="{style}">{escape(mark.text)}</text>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""
