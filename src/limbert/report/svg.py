"""A drawing as SVG for a page: colours are the page's CSS variables, so that light and dark follow it."""

from html import escape

from limbert.report.drawing import Box, Drawing, DrawingElement, Marker, Polyline, Text, marker_corners


def to_svg(drawing: Drawing) -> str:
    """The element; every text in it is escaped."""
    body = "".join(_element(mark) for mark in drawing.elements)
    size = f'viewBox="0 0 {drawing.width:g} {drawing.height:g}" width="{drawing.width:g}" height="{drawing.height:g}"'
    return f'<svg {size} role="img" aria-label="{escape(drawing.alt_text)}">{body}</svg>'


def _element(element: DrawingElement) -> str:
    match element:
        case Polyline():
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in element.points)
            dashes = ";stroke-dasharray:4 3" if element.dashed else ""
            style = f"fill:none;stroke:var(--{element.colour});stroke-width:{element.thickness:g};stroke-linejoin:round{dashes}"
            return f'<polyline points="{points}" style="{style}"/>'
        case Box():
            place = f'x="{element.x:.1f}" y="{element.y:.1f}" width="{element.width:.1f}" height="{element.height:.1f}"'
            return f'<rect {place} style="fill:var(--{element.colour})">{_title_element(element.tooltip)}</rect>'
        case Marker():
            style = f'style="fill:var(--{element.colour});stroke:var(--{element.edge})"'
            if element.shape == "circle":
                place = f'cx="{element.x:.1f}" cy="{element.y:.1f}" r="{element.radius:g}"'
                return f"<circle {place} {style}>{_title_element(element.tooltip)}</circle>"
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in marker_corners(element))
            return f'<polygon points="{points}" {style}>{_title_element(element.tooltip)}</polygon>'
        case Text():
            weight = ";font-weight:600" if element.bold else ""
            seam = (
                ";paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round" if element.halo else ""
            )
            style = (
                f"fill:var(--{element.colour});font-size:{element.size:g}px;text-anchor:{element.anchor}{weight}{seam}"
            )
            return f'<text x="{element.x:.1f}" y="{element.y:.1f}" style="{style}">{escape(element.text)}</text>'


def _title_element(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""
