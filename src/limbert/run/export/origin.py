"""What a run knows of itself that belongs on a model card: metrics, measurements, licence, where it comes from."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache


def measured_metrics(run: str, record: Mapping[str, Any], subnet: str) -> dict[str, float]:
    """Metrics of a sub-network on the development set, from ``results.jsonl`` or the record; empty if unknown."""
    rows = [row for row in _lines(run, "results.jsonl") if row.get("subnet") == subnet and "metrics" in row]
    return dict(rows[-1]["metrics"] if rows else record.get("metrics", {}).get(subnet, {}))


def profile_rows(run: str, subnet: str) -> list[dict[str, Any]]:
    """Lines of ``profile.jsonl`` for a sub-network; none where nothing was measured."""
    return [row for row in _lines(run, "profile.jsonl") if row.get("subnet") == subnet and "latency_p50_ms" in row]


def licence(run: str) -> str:
    """The licence in the head of the run's own card; ``unknown`` where it has none."""
    card = Path(run) / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    found = re.match(r"---\n(?:.*\n)*?license: *(\S+)\n(?:.*\n)*?---\n", text)
    return found.group(1) if found else "unknown"


def base_model(record: Mapping[str, Any]) -> str | None:
    """The encoder that the run started from, if that is a model of the Hugging Face hub that this machine has cached.

    A folder is None: its name says nothing elsewhere, and ``runs/mrpc`` could be either.
    """
    name = record.get("settings", {}).get("train", {}).get("model") or ""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists():
        return None
    return name if isinstance(try_to_load_from_cache(name, "config.json"), str) else None


def _lines(run: str, name: str) -> list[dict[str, Any]]:
    path = Path(run) / name
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
