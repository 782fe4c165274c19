"""The page: sections from a run's data, put into the template; pictures as files beside it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from limbert.core.palette import colours
from limbert.errors import ConfigError
from limbert.files import replaced_file, replaced_folder
from limbert.report.commands import train_command, use_commands
from limbert.report.costs import Panel, cost_panels
from limbert.report.dynamic import Spending, point_rows, points_sentence, search_picture, spendings, static_sentence
from limbert.report.grid import heatmap_picture
from limbert.report.learning import earlier_phases, training_pictures
from limbert.report.measured import by_setting
from limbert.report.picture import Picture
from limbert.report.png import save_png
from limbert.report.read import RunData
from limbert.report.svg import svg
from limbert.report.tables import machines, size_rows, tiles
from limbert.train.phases import PHASES

_EXTRA = "the report needs {}; install it with: pip install 'limbert[report]'"


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
    panels: list[Panel]
    grid: Picture
    training: list[tuple[str, Picture]]
    search: Picture | None
    spent: list[Spending]

    def pictures(self) -> Iterator[Picture]:
        """All pictures, in the order of the page."""
        for panel in self.panels:
            yield from panel.pictures
        yield self.grid
        if self.search:
            yield self.search
        for one in self.spent:
            yield from one.pictures
        for _, picture in self.training:
            yield picture


def require_libraries() -> None:
    """Raise ConfigError where the libraries of the extra ``report`` are missing, before any work."""
    for name in ("jinja2", "matplotlib"):
        if find_spec(name) is None:
            raise ConfigError(_EXTRA.format(name))


def make_report(data: RunData) -> Report:
    """Work out all sections."""
    return Report(
        data,
        cost_panels(data),
        heatmap_picture(data),
        training_pictures(data),
        search_picture(data),
        spendings(data),
    )


def save_report(report: Report, page: Path) -> list[Path]:
    """Write the pictures into the folder ``PAGE-pictures`` and then the page, each whole or not at all.

    Returns:
        The files of the pictures.

    Raises:
        ConfigError: if the folder of the pictures holds files that are none of a report.
        StorageError: if something cannot be written.
    """
    folder = page.with_name(page.stem + "-pictures")
    strange = [path.name for path in folder.iterdir() if path.suffix != ".png"] if folder.is_dir() else []
    if strange or (folder.exists() and not folder.is_dir()):
        raise ConfigError(
            f"{folder} is for pictures but there is {', '.join(strange) or 'a file'}; choose another --output"
        )
    text = render(report, pictures=folder.name)
    names = [f"{picture.name}.png" for picture in report.pictures()]
    with replaced_folder(folder) as fresh:
        for picture in report.pictures():
            save_png(picture.wide, fresh / f"{picture.name}.png")
    with replaced_file(page) as file:
        file.write(text)
    return [folder / name for name in names]


def render(report: Report, *, pictures: str) -> str:
    """The page as text; ``pictures``: the folder of the files, as the page names it."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters["svg"] = lambda drawing: Markup(svg(drawing))
    source = files("limbert.report") / "template.html"
    template = environment.from_string(source.read_text(encoding="utf-8"))
    text = template.render(_values(report), pictures=pictures)
    return re.sub(r"\n\s*\n+", "\n", text) + "\n"


def _values(report: Report) -> dict[str, Any]:
    data = report.data
    settings = data.record.get("settings", {})
    return {
        "report": report,
        "data": data,
        "name": Path(data.path).resolve().name,
        "tiles": tiles(data),
        "colours": colours(),
        "sizes": size_rows(data),
        "measured": [str(setting) for setting in by_setting(data.profile)],
        "points": point_rows(data),
        "points_sentence": points_sentence(data),
        "static_sentence": static_sentence(data),
        "earlier": earlier_phases(data),
        "train_command": train_command(data),
        "commands": use_commands(data),
        "settings": settings,
        "phases": [(name, PHASES[name].help if name in PHASES else "") for name in data.record.get("phases", [])],
        "phase_settings": settings.get("recipe", {}).get("phases", {}),
        "machine": machines(data),
        "exact": {"results": data.results, "operating_points": data.record.get("operating_points", {})},
    }
