"""What the operating points of a run did, example by example summed up, kept beside them for tables and pictures.

One row a point and data set in ``policies.jsonl``; ``limbert tune`` writes those of the validation slice, ``limbert
evaluate --policy POINT`` those of the development set.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch

from limbert.model.checkpoint import versions
from limbert.files import replaced_file
from limbert.evaluation.policies import PolicyResult
from limbert.run.json_lines import read_json_lines

POLICIES_NAME = "policies.jsonl"
DataSet = Literal["validation", "development"]


def policy_row(
    name: str, result: PolicyResult, *, data: DataSet, source: str | None, examples: int, batch_size: int, device: str
) -> dict[str, Any]:
    """One measured operating point as plain values.

    Args:
        name: of the point.
        result: what it did.
        data: which set it ran on.
        source: the folder, file or task that the set came from.
        examples: in the set.
        batch_size: examples a batch; the time depends on it.
        device: that it ran on.
    """
    return {
        "name": name,
        "data": data,
        "source": source,
        "examples": examples,
        **result.to_dict(),
        "batch_size": batch_size,
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def replace_policy_rows(run: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Keep these rows instead of all others: the points are new.

    Raises:
        StorageError: if the file cannot be written; the old one stays.
    """
    with replaced_file(Path(run) / POLICIES_NAME) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def keep_policy_row(run: str | Path, row: dict[str, Any]) -> None:
    """Keep one row; an earlier one of the same point and set goes.

    Raises:
        CheckpointError: if the rows that are there cannot be read.
        StorageError: if the file cannot be written; the old one stays.
    """
    path = Path(run) / POLICIES_NAME
    there = read_json_lines(path, needs={"name": str, "data": str}) if path.exists() else []
    others = [one for one in there if (one["name"], one["data"]) != (row["name"], row["data"])]
    replace_policy_rows(run, [*others, row])
