"""Keep what a search found: named sub-networks in ``limbert.json``, and their results beside those of the grid."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from limbert.errors import CheckpointError
from limbert.model.checkpoint import change_record, read_record, versions
from limbert.model.found import FOUND_KEY, found_name
from limbert.files import replaced_file
from limbert.evaluation.subnets import Result
from limbert.run.search.journal import Judged
from limbert.run.search.measure import Objective
from limbert.train.run import RESULTS_NAME


def save_found(run: str | Path, found: Sequence[Judged], *, metric: str, objective: Objective) -> None:
    """Write sub-networks into the run's ``limbert.json``; those of an earlier search for this objective go.

    Raises:
        CheckpointError: if the run is no elastic checkpoint on this machine.
        StorageError: if the file cannot be written; the old one stays.
    """
    mine = {
        found_name(one.subnet): one.subnet.to_dict()
        | {"validation": {metric: one.value}, "objective": objective, "cost_share": one.cost}
        for one in found
    }

    def change(record: dict[str, Any]) -> None:
        kept = {name: one for name, one in record.get(FOUND_KEY, {}).items() if one.get("objective") != objective}
        record[FOUND_KEY] = mine | {name: one for name, one in kept.items() if name not in mine}

    change_record(run, change)


def save_results(run: str | Path, results: Sequence[Result]) -> None:
    """Put results of found sub-networks into the run's ``results.jsonl``; rows of other names that still exist stay.

    Raises:
        CheckpointError: if the file cannot be read.
        StorageError: if it cannot be written; the old one stays.
    """
    path = Path(run) / RESULTS_NAME
    record = read_record(run)
    fresh = {result.subnet for result in results}
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines]
        stale = [row["subnet"].startswith("found-") and row["subnet"] not in record[FOUND_KEY] for row in rows]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the results in {path} cannot be read: {error}") from error
    kept = [row for row, gone in zip(rows, stale, strict=True) if not gone and row["subnet"] not in fresh]
    stamp = {
        "seed": record.get("settings", {}).get("train", {}).get("seed"),
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    with replaced_file(path) as file:
        file.writelines(json.dumps(row) + "\n" for row in [*kept, *(result.to_dict() | stamp for result in results)])
