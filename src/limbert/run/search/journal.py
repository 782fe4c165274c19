"""What a search has measured, kept line by line in the run's folder, so that nothing is measured twice."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbert.core.subnet import Subnet
from limbert.errors import CheckpointError, StorageError
from limbert.model.found import found_name

JOURNAL_NAME = "search.jsonl"


@dataclass(frozen=True)
class Judged:
    """A sub-network and what it reaches on the examples of a search.

    Attributes:
        subnet: the sub-network.
        value: of the task's primary metric.
        cost: of the objective, as a share of the full model's.
    """

    subnet: Subnet
    value: float
    cost: float


class Journal:
    """A file of measured sub-networks that only grows.

    Args:
        path: the file; need not exist.
        conditions: what a measurement depends on besides the sub-network. Lines with other conditions are kept and
            not used.

    Raises:
        CheckpointError: if a line but the last cannot be read; the last one may be cut short by a kill.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        self._path, self._conditions = path, dict(conditions)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith("\n"):
            self._cut(sum(len(line.encode()) for line in lines[:-1]))
            lines.pop()
        self._known: dict[Subnet, Judged] = {}
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                judged = Judged(Subnet.from_dict(row), row["value"], row["cost"])
                mine = row["conditions"] == self._conditions
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"line {number} of {path} cannot be read; delete the file to start anew"
                ) from error
            if mine:
                self._known[judged.subnet] = judged

    def known(self, subnet: Subnet) -> Judged | None:
        """What was measured of a sub-network under these conditions; None where nothing was."""
        return self._known.get(subnet)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, judged: Judged) -> Judged:
        """Write one measurement down; returns it.

        Raises:
            StorageError: if the file cannot be written.
        """
        row = {"subnet": found_name(judged.subnet)} | judged.subnet.to_dict()
        row |= {"value": judged.value, "cost": judged.cost, "conditions": self._conditions}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error
        self._known[judged.subnet] = judged
        return judged

    def _cut(self, size: int) -> None:
        """Drop a last line that was cut short."""
        try:
            os.truncate(self._path, size)
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error
