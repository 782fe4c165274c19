"""A picture as a value: marks in pixels with colours by name. One layout serves the page (SVG) and the files (PNG)."""

from dataclasses import dataclass, field
from typing import Literal

MarkerShape = Literal["circle", "square", "triangle", "diamond", "down"]
MARKER_SHAPES: tuple[MarkerShape, ...] = ("circle", "square", "triangle", "down", "diamond")
Anchor = Literal["start", "middle", "end"]
_NARROW_LETTERS, _WIDE_LETTERS = "iIjltfr.,:;'|!() ", "mwMW%@"


@dataclass(frozen=True)
class Polyline:
    """A line through points ``(x, y)``."""

    points: tuple[tuple[float, float], ...]
    colour: str
    thickness: float = 1.0
    dashed: bool = False


@dataclass(frozen=True)
class Box:
    """A filled rectangle; ``title`` is what a pointer resting on it shows."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    tooltip: str = ""


@dataclass(frozen=True)
class Marker:
    """A small shape centred on a point; ``radius`` of the circle of the same area."""

    x: float
    y: float
    shape: MarkerShape
    colour: str
    radius: float = 5.0
    edge: str = "soft"
    tooltip: str = ""


@dataclass(frozen=True)
class Text:
    """One line of text; ``y`` is its baseline. With ``halo`` it stands on a seam of the paper's colour."""

    x: float
    y: float
    text: str
    size: float = 12.0
    colour: str = "ink"
    anchor: Anchor = "start"
    bold: bool = False
    halo: bool = False


DrawingElement = Polyline | Box | Marker | Text


@dataclass(frozen=True)
class Drawing:
    """A picture of ``width`` x ``height`` pixels.

    Attributes:
        label: what it shows, for those who hear it.
        marks: in the order of painting.
    """

    width: float
    height: float
    alt_text: str
    elements: tuple[DrawingElement, ...] = field(repr=False)


def text_width(text: str, size: float) -> float:
    """About how many pixels wide a text is."""
    letters = (0.32 if one in _NARROW_LETTERS else 0.88 if one in _WIDE_LETTERS else 0.6 for one in text)
    return size * sum(letters)


def marker_corners(marker: Marker) -> list[tuple[float, float]]:
    """The corners of a dot that is no circle."""
    r, x, y = marker.radius, marker.x, marker.y
    match marker.shape:
        case "square":
            half = 0.89 * r
            return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
        case "diamond":
            return [(x, y - 1.25 * r), (x + 1.25 * r, y), (x, y + 1.25 * r), (x - 1.25 * r, y)]
        case "down":
            return [(x - 1.15 * r, y - 0.85 * r), (x + 1.15 * r, y - 0.85 * r), (x, y + 1.2 * r)]
        case _:
            return [(x - 1.15 * r, y + 0.85 * r), (x + 1.15 * r, y + 0.85 * r), (x, y - 1.2 * r)]
