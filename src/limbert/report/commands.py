"""The command that trained a run."""

import shlex
import tomllib
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from limbert.core.config import DataConfig, GatesConfig, PhaseConfig, TrainConfig
from limbert.core.space import Space
from limbert.report.read import RunData


def train_command(data: RunData) -> str | None:
    """The command line that trained the run; None where ``limbert.json`` lacks settings, or the recipe file is gone."""
    settings = data.record.get("settings", {})
    try:
        train, recipe = settings["train"], settings["recipe"]
        words = ["limbert", "train", *_changed_options(DataConfig, settings["data"])]
        words += ["--model", train["model"], "--output", data.path]
        names = ("recipe", "phases", "seed", "precision", "validation", "class_weights")
        words += _changed_options(TrainConfig, train, names)
        words += _recipe_options(train["recipe"], recipe)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return shlex.join(words)


def _changed_options(config: type, saved: dict[str, Any], names: tuple[str, ...] = ()) -> list[str]:
    words: list[str] = []
    for field in fields(config):
        value = saved.get(field.name, field.default)
        is_option = not field.metadata.get("hidden") and (not names or field.name in names)
        if value != field.default and is_option:
            option = "--" + field.name.replace("_", "-")
            text = ",".join(value) if isinstance(value, list) else str(value)
            words += [option] if value is True else [option, text]
    return words


def _recipe_options(recipe: str, saved: dict[str, Any]) -> list[str]:
    """Options for the settings in which the run differs from its recipe."""
    bundled = files("limbert.train") / f"{recipe}.toml"
    source = bundled if bundled.is_file() else Path(recipe)
    base = tomllib.loads(source.read_text(encoding="utf-8"))
    words: list[str] = []
    for name, default in (Space().to_dict() | base.get("space", {})).items():
        value = saved["space"][name]
        if value != (list(default) if isinstance(default, tuple) else default):
            words += ["--" + name, value if name == "layers" else ",".join(f"{number:g}" for number in value)]
    for phase, config in saved["phases"].items():
        config_class = GatesConfig if "target" in config else PhaseConfig
        defaults = {field.name: field.default for field in fields(config_class)} | base["phases"].get(phase, {})
        for name, value in config.items():
            if value != defaults.get(name):
                words += ["--set", f"{phase}.{name}={value}"]
    return words
