"""Write the report: an HTML page from the template, and its pictures as PNG files beside it."""

import re
import shlex
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from limbert.core.palette import palette_colours
from limbert.errors import ConfigError, import_optional
from limbert.files import atomic_file, atomic_folder
from limbert.report import sections
from limbert.report.noise import interval_method
from limbert.report.picture import Picture
from limbert.report.read import RunData, describe_policy, group_by_setting


class Report:
    """All sections of the report of one run.

    Args:
        data: the run.

    Raises:
        ConfigError: if a library of the extra ``report`` is missing.
    """

    def __init__(self, data: RunData) -> None:
        for library in ("jinja2", "matplotlib"):
            import_optional(library, extra="report")
        self.data = data
        self.choices = sections.choices(data)
        self.heat_map = sections.heat_map_picture(data)
        self.points = sections.point_results(data)
        self.usages = sections.usage_pictures(data)
        self.training = sections.training_pictures(data)
        self.search: Picture | None = None
        if data.policy_candidates:
            counts = (row.get("examples") for row in data.policy_results if row["data"] == "validation")
            self.search = sections.search_picture(
                data.policy_candidates, data.operating_points, data.metric, next(counts, None)
            )

    def pictures(self) -> list[Picture]:
        """All pictures, in the order of the page."""
        found = [choice.picture for choices in self.choices.values() for choice in choices]
        found += [self.heat_map, *([self.search] if self.search else [])]
        found += [picture for _, pictures in self.usages.values() for picture in pictures]
        return [*found, *self.training.values()]

    def save(self, page_path: Path) -> list[Path]:
        """Write the pictures into the folder ``PAGE-pictures``, then the page; each replaces an earlier one as a whole.

        Returns:
            The picture files.

        Raises:
            ConfigError: if the folder of the pictures holds other files.
            StorageError: if something cannot be written.
        """
        folder = page_path.with_name(page_path.stem + "-pictures")
        other = [path.name for path in folder.iterdir() if path.suffix != ".png"] if folder.is_dir() else []
        if other or (folder.exists() and not folder.is_dir()):
            raise ConfigError(
                f"{folder} is for pictures but holds {', '.join(other) or 'a file'}; choose another --output"
            )
        text = self.html(pictures_folder=folder.name)
        with atomic_folder(folder) as fresh:
            for picture in self.pictures():
                picture.save_png(fresh / f"{picture.name}.png")
        with atomic_file(page_path) as file:
            file.write(text)
        return [folder / f"{picture.name}.png" for picture in self.pictures()]

    def html(self, *, pictures_folder: str) -> str:
        """The page; ``pictures_folder`` is the name of the folder beside it."""
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup

        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
        environment.filters |= {
            "svg": lambda picture, size: Markup(picture.svg(size)),
            "metric": sections.format_metric,
            "count": sections.format_count,
            "size": sections.format_size,
            "ms": sections.format_ms,
            "percent": sections.format_percent,
            "policy": describe_policy,
            "quote": shlex.quote,
        }
        template = environment.from_string((files("limbert.report") / "template.html").read_text(encoding="utf-8"))
        return re.sub(r"\n\s*\n+", "\n", template.render(self._context(), pictures=pictures_folder)) + "\n"

    def _context(self) -> dict[str, Any]:
        data, settings = self.data, self.data.record.get("settings", {})
        cost = next(iter(self.choices.values()))[0].cost
        close = sections.cheapest_close_to_full(data, cost)
        phases, own = data.record.get("phases", []), settings.get("recipe", {}).get("phases", {})
        return {
            "report": self,
            "data": data,
            "name": Path(data.path).resolve().name,
            "colours": palette_colours(),
            "method": interval_method(data.metric),
            "interval": partial(sections.format_interval, data),
            "cost": cost,
            "close": close,
            "dynamic_points": [n for n, p in data.operating_points.items() if not p["policy"].startswith("static:")],
            "profile": sections.first_profile(data),
            "first_setting": next(iter(group_by_setting(data.profile)), None),
            "environments": list({repr((row.hardware, row.versions)): row for row in data.profile}.values()),
            "phases": phases,
            "earlier_phases": phases[: max(len(phases) - len(own), 0)],
            "base_model": settings.get("train", {}).get("model"),
            "phase_settings": own,
            "train_command": data.record.get("command"),
            "exact": {"results": data.results, "operating_points": data.operating_points},
        }
