"""A run directory without weights, with numbers from a seed, and a parser of HTML pages."""

import json
import random
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

from tests.factories.profiles import ROW

from limbert.core.config import DataConfig, TrainConfig
from limbert.core.space import Space
from limbert.evaluation.results import ProfileSetup
from limbert.inference.policy import Policy
from limbert.train.recipes import load_recipe, override_recipe
from limbert.train.run_folder import run_settings

WIDTHS, DEPTHS = (0.25, 0.5, 0.75, 1.0), (0.5, 0.75, 1.0)
POINTS = {
    "fast": {"policy": "depth", "widths": [0.25], "exits": {"rule": "entropy", "threshold": 0.5}},
    "balanced": {"policy": "width+depth", "widths": [0.5, 0.75], "exits": {"rule": "entropy", "threshold": 0.4}},
    "accurate": {"policy": "static:1x1", "widths": None, "exits": None},
}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def result_rows(seed: int = 0) -> list[dict[str, Any]]:
    """One row per sub-network of the grid."""
    rng = random.Random(seed)
    common = {"seed": 42, "device": "cpu", "threads": 1, "versions": {"torch": "2.13.0"}}
    rows = []
    for depth, width in product(DEPTHS[::-1], WIDTHS[::-1]):
        sizes = {"params": round(1e7 * (1 + width * depth)), "flops": round(1e9 * width * depth)}
        metrics = {"accuracy": 0.7 + 0.2 * width * depth * rng.uniform(0.9, 1.1), "f1": rng.random()}
        name = {"subnet": f"{width:g}x{depth:g}", "width": width, "depth": depth}
        rows.append(name | sizes | {"metrics": metrics} | common)
    return rows


def profile_rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All sub-networks in two backends at two batch sizes."""
    rows = []
    for (backend, slow), batch, row in product((("torch", 1.0), ("onnxruntime", 0.7)), (1, 32), results):
        setup = ProfileSetup(backend, "cpu", 2, batch, 32)
        millis, size = slow * (1 + row["flops"] / 1e8), row["params"]
        costs = {"params": size, "flops": row["flops"], "file_bytes": 4 * size, "throughput": batch / slow,
                 "peak_memory_bytes": None if backend == "torch" else 5 * size, "rounds": 10,
                 "latency_p50_ms": millis, "latency_p95_ms": millis + slow}  # fmt: skip
        hardware = {"cpu": "A CPU", "cores": 2, "gpu": None}
        rows.append(replace(ROW, subnet=row["subnet"], setup=setup, hardware=hardware, **costs).to_dict())
    return rows


def policy_rows() -> list[dict[str, Any]]:
    """The operating points on the development set."""
    row = {"data": "development", "source": "data", "examples": 100, "metrics": {"accuracy": 0.8, "f1": 0.5},
           "flops_mean": 4e8, "flops_full": 1e9, "time_per_example": 0.002, "batch_size": 32,
           "widths": [{"0.5": 0.6, "0.75": 0.4}, {"0.5": 1.0}, {"0": 0.3, "0.5": 0.7}, {"0": 0.3, "0.75": 0.7}],
           "exits": {"2": 0.3, "4": 0.7}}  # fmt: skip
    return [{"name": name, "settings": Policy.from_dict(values).to_dict()} | row for name, values in POINTS.items()]


def log_rows() -> list[dict[str, Any]]:
    """The log of three phases."""
    rows: list[dict[str, Any]] = []
    for phase in ("width", "depth", "gates"):
        sign = -1 if phase == "gates" else 1
        rows += [{"phase": phase, "step": step, "loss": 1 / step} for step in range(10, 101, 10)]
        rows += [{"phase": phase, "step": step, "validation": sign * (0.7 + step / 1000)} for step in (50, 100)]
    return rows


def make_run(folder: Path, *, full: bool = True) -> Path:
    """A run directory; ``full`` adds the files of ``limbert tune``, ``evaluate --policy`` and ``profile``."""
    folder.mkdir(parents=True)
    recipe = override_recipe(load_recipe("flexible-bert"), phases=["width", "depth", "gates"])
    config = TrainConfig(model="runs/start", output="-", recipe="flexible-bert", phases=("width", "depth", "gates"))
    record: dict[str, Any] = {
        "space": Space(WIDTHS, DEPTHS, "first").to_dict(),
        "task": {"name": None, "kind": "classification", "labels": ["a", "b"], "metrics": ["accuracy", "f1"]},
        "phases": ["finetune", "width", "depth", "gates"],
        "settings": run_settings(config, recipe.to_dict(), DataConfig(data="my data", label_column="label")),
    }
    results = result_rows()
    write_lines(folder / "results.jsonl", results)
    if full:
        chosen_with = {"validation": {"accuracy": 0.8}, "flops_share": 0.4}
        record["operating_points"] = {name: values | chosen_with for name, values in POINTS.items()}
        write_lines(folder / "profile.jsonl", profile_rows(results))
        write_lines(folder / "policies.jsonl", policy_rows())
        write_lines(folder / "log.jsonl", log_rows())
        static = [{"policy": f"static:{row['subnet']}", "widths": None, "exits": None,
                   "flops_share": row["flops"] / 1e9, "value": row["metrics"]["accuracy"]}
                  for row in results]  # fmt: skip
        write_lines(folder / "tune.jsonl", [*static, POINTS["balanced"] | {"value": 0.95, "flops_share": 0.4}])
    (folder / "limbert.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not close in order."""

    VOID = ("meta", "link", "br", "input", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def attributes(self, name: str) -> list[str]:
        """All values of an attribute."""
        return [attributes[name] for _, attributes in self.tags if name in attributes]

    def all_text(self) -> str:
        return " ".join(" ".join(self.text).split())
