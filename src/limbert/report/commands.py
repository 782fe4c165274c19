"""Section: how the run was made, as the command line that makes it again, and what to do with it."""

import shlex
from dataclasses import asdict, fields
from typing import Any

from limbert.core.config import DataConfig, TrainConfig
from limbert.errors import LimbertError
from limbert.report.costs import cheapest_close_to_full
from limbert.report.read import RunData
from limbert.train.recipes import Recipe, load_recipe, override_recipe


def train_command(data: RunData) -> str | None:
    """The command line with which the training ran; None where its settings were not kept or cannot be said so.

    Running it again where it ran says that the run is finished already: the settings are the same.
    """
    settings = data.record.get("settings", {})
    try:
        train, recipe = settings["train"], settings["recipe"]
        known = override_recipe(load_recipe(train["recipe"]), phases=train["phases"])
        words = ["limbert", "train", *_data_options(settings["data"])]
        words += ["--model", train["model"], "--output", data.path, *_train_options(train)]
        words += _recipe_options(known, recipe)
    except (LimbertError, KeyError, TypeError):
        return None
    return shlex.join(words)


def usage_commands(data: RunData) -> list[tuple[str, str]]:
    """``(what for, command line)`` for those who want to use or measure the run."""
    run = data.path
    small = min(data.results, key=lambda row: row["flops"])["subnet"]
    point = "balanced" if "balanced" in data.operating_points else next(iter(data.operating_points), None)
    found = [("all sub-networks on the development set", ["evaluate", run])]
    found.append((f"an answer of sub-network {small}", ["predict", run, "--subnet", small, "--text", "..."]))
    if point:
        found.append((f"operating point {point} on the development set", ["evaluate", run, "--policy", point]))
        found.append((f"an answer of operating point {point}", ["predict", run, "--policy", point, "--text", "..."]))
    flops = {row["subnet"]: float(row["flops"]) for row in data.results}
    good = cheapest_close_to_full(data, flops) or data.full_result
    export = ["export", run, "--subnet", good["subnet"], "--format", "onnx", "--output", f"{run}-onnx"]
    found.append((f"sub-network {good['subnet']} as a file that other programs run", export))
    found.append(("time, memory and file size on this machine", ["profile", run]))
    found.append(("this page again", ["report", run]))
    return [(what, shlex.join(["limbert", *words])) for what, words in found]


def _data_options(saved: dict[str, Any]) -> list[str]:
    words: list[str] = []
    default = asdict(DataConfig())
    for field in fields(DataConfig):
        value = saved.get(field.name, default[field.name])
        if value == default[field.name]:
            continue
        option = "--" + field.name.replace("_", "-")
        words += [option] if value is True else [option, ",".join(value) if isinstance(value, list) else str(value)]
    return words


def _train_options(saved: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for name in ("recipe", "phases", "seed", "precision", "validation"):
        default = next(field.default for field in fields(TrainConfig) if field.name == name)
        value = saved[name]
        if value != default:
            words += ["--" + name, ",".join(value) if isinstance(value, list) else str(value)]
    return words


def _recipe_options(base_recipe: Recipe, saved: dict[str, Any]) -> list[str]:
    """What the run had other than its recipe says."""
    words: list[str] = []
    space = base_recipe.to_dict()["space"]
    for name in ("widths", "depths", "layers"):
        value = saved["space"][name]
        if list(value) != list(space[name]):
            words += ["--" + name, value if name == "layers" else ",".join(f"{one:g}" for one in value)]
    for phase, config in base_recipe.to_dict()["phases"].items():
        for name, value in saved["phases"].get(phase, {}).items():
            if value != config.get(name):
                words += ["--set", f"{phase}.{name}={value}"]
    return words
