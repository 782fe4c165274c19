"""A picture drawn with matplotlib: as SVG for the page, in the page's CSS colours, and as a PNG file."""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from limbert.core.palette import palette_colours
from limbert.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Colours = Mapping[str, str]  # matplotlib colour by the name in the palette
Size = tuple[float, float]  # width and height in CSS pixels

_PNG_SCALE = 2  # pixels of the file per CSS pixel
_TOOLTIP = "tooltip "  # prefix of the gid of an artist that has a tooltip

# SVG is drawn in placeholder colours, one for each name, which are then replaced by the page's CSS variables.
_PLACEHOLDERS = {name: f"#c0{index:04x}" for index, name in enumerate(palette_colours())}
_CSS_VARIABLES = {colour: f"var(--{name})" for name, colour in _PLACEHOLDERS.items()}


@dataclass(frozen=True)
class Picture:
    """A picture of the page that is also written as a file."""

    name: str  # of the file, without ending
    alt_text: str  # what it shows, for screen readers
    draw: Callable[["Figure", Colours], None]  # into an empty figure
    wide: Size  # on wide pages and in the file
    narrow: Size | None = None  # on phones; None where ``wide`` is narrow enough

    def figure(self, size: Size, colours: Colours) -> "Figure":
        """The drawn figure; one point is one CSS pixel."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72, layout="constrained")
        FigureCanvasAgg(figure)  # measures text
        self.draw(figure, colours)
        return figure

    def svg(self, size: Size) -> str:
        """The ``<svg>`` element; every text from a file is escaped."""
        buffer = io.StringIO()
        with _rendering(_PLACEHOLDERS, hash_salt=f"{self.name} {size}"):
            no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure(size, _PLACEHOLDERS).savefig(buffer, format="svg", metadata=no_metadata)
        text = re.sub(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", buffer.getvalue())
        root = ElementTree.fromstring(text)
        _clean(root)
        width, height = (f"{pixels:g}" for pixels in size)
        root.attrib = {"viewBox": root.attrib["viewBox"], "width": width, "height": height, "role": "img",
                       "aria-label": self.alt_text}  # fmt: skip
        svg = ElementTree.tostring(root, encoding="unicode")
        return re.sub(r"#c0[0-9a-f]{4}(?=[;\"])", lambda match: _CSS_VARIABLES.get(match[0], match[0]), svg)

    def save_png(self, path: Path) -> None:
        """Write the picture in the light colours.

        Raises:
            StorageError: if the file cannot be written; an earlier one stays.
        """
        light = {name: pair[0] for name, pair in palette_colours().items()}
        with _rendering(light), atomic_file(path) as file:
            self.figure(self.wide, light).savefig(file.buffer, format="png", dpi=72 * _PNG_SCALE)


def tooltip(text: str) -> str:
    """The ``gid`` of an artist that shows ``text`` while the pointer is on it."""
    return _TOOLTIP + text


def safe_file_name(text: str) -> str:
    """Any text as part of a file name: letters, digits, ``-`` and ``_``."""
    return re.sub(r"[^\w-]+", "-", text)


@contextmanager
def _rendering(colours: Colours, hash_salt: str = "") -> Iterator[None]:
    """The style of all pictures; a text in a script that matplotlib's font lacks is no reason for a warning."""
    import matplotlib

    style: Any = _style(colours) | {"svg.hashsalt": hash_salt}
    with warnings.catch_warnings(), matplotlib.rc_context(style):
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def _style(colours: Colours) -> dict[str, Any]:
    legend = {"frameon": False, "borderpad": 0.4, "borderaxespad": 0.2, "handlelength": 1, "handletextpad": 0.3,
              "columnspacing": 0.9}  # fmt: skip
    axes = {"facecolor": "none", "edgecolor": colours["soft"], "labelcolor": colours["ink"], "titlelocation": "left",
            "titlesize": 12, "titlepad": 12, "axisbelow": True, "grid": True}  # fmt: skip
    axes |= {f"spines.{side}": False for side in ("left", "right", "top")}
    return {
        **{f"legend.{name}": value for name, value in legend.items()},
        **{f"axes.{name}": value for name, value in axes.items()},
        "font.size": 12,
        "svg.fonttype": "none",
        "text.parse_math": False,
        "text.color": colours["ink"],
        "figure.facecolor": colours["paper"],
        "grid.color": colours["grid"],
        "xtick.color": colours["soft"],
        "ytick.color": colours["soft"],
        "ytick.left": False,
        "xaxis.labellocation": "right",
    }


def _clean(root: ElementTree.Element) -> None:
    """Make matplotlib's SVG fit for a page: no namespaces and page-wide style, ids only where used, tooltips."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.pop("clip-path", None)  # nothing is drawn outside its axes
        for child in [child for child in element if child.tag.endswith(("}style", "}clipPath"))]:
            element.remove(child)
        if element.tag in ("g", "text", "svg"):
            identifier = element.attrib.pop("id", "")
            if identifier.startswith(_TOOLTIP):
                title = ElementTree.Element("title")
                title.text = identifier.removeprefix(_TOOLTIP)
                element.insert(0, title)
