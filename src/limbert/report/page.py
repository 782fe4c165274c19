"""The page: sections from a run's data, put into the template; pictures as files beside it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from limbert.core.palette import palette_colours
from limbert.errors import ConfigError
from limbert.files import atomic_file, atomic_folder
from limbert.report.commands import train_command, usage_commands
from limbert.report.costs import CostPanel, cost_panels
from limbert.report.dynamic import (
    LayerUsage,
    layer_usages,
    operating_point_rows,
    operating_points_summary,
    search_picture,
    static_points_note,
)
from limbert.report.grid import heatmap_picture
from limbert.report.learning import earlier_phases_note, training_pictures
from limbert.report.measured import group_by_setting
from limbert.report.picture import Picture
from limbert.report.png import save_png
from limbert.report.read import RunData
from limbert.report.svg import to_svg
from limbert.report.tables import measurement_environments, subnet_rows, summary_tiles
from limbert.train.phases import PHASES

_MISSING_LIBRARY_MESSAGE = "the report needs {}; install it with: pip install 'limbert[report]'"


@dataclass(frozen=True)
class Report:
    """All sections, ready for the template.

    Attributes:
        data: what was read.
        panels: metric against cost.
        grid: the heat map.
        training: curves by phase.
        search: what tune tried; None without.
        spent: how the operating points spend their layers.
    """

    data: RunData
    panels: list[CostPanel]
    heatmap: Picture
    training_curves: list[tuple[str, Picture]]
    search_plot: Picture | None
    layer_usages: list[LayerUsage]

    def pictures(self) -> Iterator[Picture]:
        """All pictures, in the order of the page."""
        for panel in self.panels:
            yield from panel.pictures
        yield self.heatmap
        if self.search_plot:
            yield self.search_plot
        for one in self.layer_usages:
            yield from one.pictures
        for _, picture in self.training_curves:
            yield picture


def require_libraries() -> None:
    """Raise ConfigError where the libraries of the extra ``report`` are missing, before any work."""
    for name in ("jinja2", "matplotlib"):
        if find_spec(name) is None:
            raise ConfigError(_MISSING_LIBRARY_MESSAGE.format(name))


def make_report(data: RunData) -> Report:
    """Work out all sections."""
    return Report(
        data,
        cost_panels(data),
        heatmap_picture(data),
        training_pictures(data),
        search_picture(data),
        layer_usages(data),
    )


def save_report(report: Report, page_path: Path) -> list[Path]:
    """Write the pictures into the folder ``PAGE-pictures`` and then the page, each whole or not at all.

    Returns:
        The files of the pictures.

    Raises:
        ConfigError: if the folder of the pictures holds files that are none of a report.
        StorageError: if something cannot be written.
    """
    folder = page_path.with_name(page_path.stem + "-pictures")
    strange = [path.name for path in folder.iterdir() if path.suffix != ".png"] if folder.is_dir() else []
    if strange or (folder.exists() and not folder.is_dir()):
        raise ConfigError(
            f"{folder} is for pictures but there is {', '.join(strange) or 'a file'}; choose another --output"
        )
    text = render_html(report, pictures_dir=folder.name)
    names = [f"{picture.name}.png" for picture in report.pictures()]
    with atomic_folder(folder) as fresh:
        for picture in report.pictures():
            save_png(picture.wide, fresh / f"{picture.name}.png")
    with atomic_file(page_path) as file:
        file.write(text)
    return [folder / name for name in names]


def render_html(report: Report, *, pictures_dir: str) -> str:
    """The page as text; ``pictures``: the folder of the files, as the page names it."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters["svg"] = lambda drawing: Markup(to_svg(drawing))
    source = files("limbert.report") / "template.html"
    template = environment.from_string(source.read_text(encoding="utf-8"))
    text = template.render(_template_context(report), pictures=pictures_dir)
    return re.sub(r"\n\s*\n+", "\n", text) + "\n"


def _template_context(report: Report) -> dict[str, Any]:
    data = report.data
    settings = data.record.get("settings", {})
    return {
        "report": report,
        "data": data,
        "name": Path(data.path).resolve().name,
        "tiles": summary_tiles(data),
        "colours": palette_colours(),
        "sizes": subnet_rows(data),
        "measured": [str(setting) for setting in group_by_setting(data.profile)],
        "points": operating_point_rows(data),
        "points_sentence": operating_points_summary(data),
        "static_sentence": static_points_note(data),
        "earlier": earlier_phases_note(data),
        "train_command": train_command(data),
        "commands": usage_commands(data),
        "settings": settings,
        "phases": [(name, PHASES[name].help if name in PHASES else "") for name in data.record.get("phases", [])],
        "phase_settings": settings.get("recipe", {}).get("phases", {}),
        "machine": measurement_environments(data),
        "exact": {"results": data.results, "operating_points": data.record.get("operating_points", {})},
    }
