"""Augmented training rows read back: the files that `limbert augment` writes, and those of the released programs.

A copy of a row that validates must not train, so each copy is traced to the row it was made of. `limbert augment`
writes that down; the released programs' files (``train_TASK_aug_with_logits.tsv``) are matched with the training rows.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from limbert.augment.sampling import origin_of
from limbert.data.columns import check_columns
from limbert.data.readers import Examples, RawExamples, open_table, read_rows, without_labels
from limbert.data.labels import LabelReader
from limbert.data.match import match_origins
from limbert.data.table import Table
from limbert.data.tasks import Columns, Task
from limbert.errors import DataError

ORIGIN, LOGITS = "augmented_from", "teacher_logits"  # columns that follow those of the training file
# The released programs' order of classes in a cell of logits, where it is another than the table's here.
_RELEASED_ORDER: Mapping[str | None, tuple[str, ...]] = {"mnli": ("contradiction", "entailment", "neutral")}


@dataclass(frozen=True)
class Augmented:
    """Copies of training rows.

    Attributes:
        examples: with the labels of the rows they were made of (in files that hold logits alone: the likeliest class).
        origins: the mark of the row that each was made of; None where it is not known.
        logits: ``(examples, outputs)``, a teacher's, in the order of the task's labels; None where there are none.
    """

    examples: Examples
    origins: tuple[str | None, ...]
    logits: np.ndarray | None

    def __len__(self) -> int:
        return len(self.examples)

    def usable(self, *, train: Examples, validation: Examples) -> np.ndarray:
        """The places of the copies of ``train``'s rows; those of a row that also validates are not among them.

        Raises:
            DataError: if none is.
        """
        allowed = {*_origins(train)} - {*_origins(validation)}
        places = np.flatnonzero([origin in allowed for origin in self.origins])
        if not len(places):
            raise DataError(
                f"none of the {len(self)} augmented rows is a copy of a row that trains; is it the same data?"
            )
        return places

    def relabelled(self, examples: Examples, task: Task, wanted: Task) -> "Augmented":
        """The same with ``examples``, which have the class ids of ``wanted``, and with logits in that order too."""
        logits = self.logits
        if logits is not None and task.labels != wanted.labels:
            logits = logits[:, [task.labels.index(name) for name in wanted.labels]]
        return replace(self, examples=examples, logits=logits)


def load_augmented(
    path: str,
    *,
    table: Table,
    columns: Columns,
    raw: RawExamples,
    reader: LabelReader,
    skip_bad_rows: bool,
) -> Augmented:
    """Read a file of copies that has the columns of the training file.

    Args:
        path: a file that `limbert augment` wrote, with the origin of each copy and perhaps logits in further columns;
            or one with the training file's columns alone, which may have logits in place of the label.
        table, columns, raw: the training file and what was read from it.
        reader: of labels.
        skip_bad_rows: leave malformed rows out instead of stopping at the first.

    Raises:
        DataError: a missing or unusable file, column or row, or copies that cannot be traced to training rows.
    """
    found = open_table(Path(path).expanduser(), header=not columns.by_number)
    check_columns(found, columns)
    several = reader.task.kind == "multi-label"
    copies = read_rows(found, columns, skip_bad_rows=skip_bad_rows, several_labels=several)
    extra = _extra_columns(found, table, columns)
    kept: list[int] = []
    labels: list[Any] = []
    logits: list[list[float] | None] = []
    cells = _cells(found, copies.lines)
    for place, row in enumerate(cells):
        try:
            label, answer = _label(row, (copies.labels or [])[place], extra=extra, found=found, reader=reader)
        except ValueError as error:
            if not skip_bad_rows:
                raise DataError(f"{found.name}:{copies.lines[place]}: {error}") from None
            continue
        kept.append(place)
        labels.append(label)
        logits.append(answer)
    if not kept:
        raise DataError(f"{found.name}: no row has a label of the task; expected at least one")
    examples = replace(without_labels(copies).select(kept), labels=tuple(labels))
    if ORIGIN in extra:
        at = extra[ORIGIN]
        origins: tuple[str | None, ...] = tuple(sys.intern(str(cells[place][at])) for place in kept)
    else:
        ours = [_identity(cells[place], found, columns) for place in kept]
        theirs = [_identity(row, table, columns) for row in _cells(table, raw.lines)]
        train = [*_origins(without_labels(raw))]
        origins = match_origins([*_origins(examples)], ours, train=train, train_identities=theirs, name=found.name)
    some = [answer for answer in logits if answer is not None]
    if some and len(some) < len(logits):
        raise DataError(f"{found.name}: {len(logits) - len(some)} rows have no logits; expected all rows to, or none")
    return Augmented(examples, origins, np.array(some, dtype=np.float32) if some else None)


def _extra_columns(found: Table, table: Table, columns: Columns) -> dict[str, int]:
    """The places of the columns that `limbert augment` added: by name, or in files without header behind the others."""
    if not columns.by_number:
        return {name: found.columns.index(name) for name in (ORIGIN, LOGITS) if name in found.columns}
    more = len(found.columns) - len(table.columns)
    if not 0 <= more <= 2:
        raise DataError(
            f"{found.name}: {len(found.columns)} columns; expected the {len(table.columns)} of {table.name}, "
            "then the mark of the original, then logits"
        )
    return {name: len(table.columns) + place for place, name in enumerate((ORIGIN, LOGITS)[:more])}


def _label(
    row: Sequence[object], value: object, *, extra: Mapping[str, int], found: Table, reader: LabelReader
) -> tuple[Any, list[float] | None]:
    """The label and, where the row has them, the logits.

    Raises:
        ValueError: the row has none, or others than the task's.
    """
    task = reader.task
    if ORIGIN in extra:
        cell = row[extra[LOGITS]] if LOGITS in extra else None
        return reader.read(value), None if cell is None else _numbers(cell, task.outputs)
    if task.kind != "classification" or not _looks_like_logits(value):
        return reader.read(value), None
    answer = _numbers(value, task.outputs)
    order = _RELEASED_ORDER.get(task.name)
    if order is not None and {*order} == {*task.labels}:
        answer = [answer[order.index(name)] for name in task.labels]
    return int(np.argmax(answer)), answer


def _looks_like_logits(value: object) -> bool:
    return isinstance(value, str) and len(value.split()) > 1 and not math.isnan(_number(value.split()[0]))


def _numbers(cell: object, count: int) -> list[float]:
    numbers = [_number(part) for part in str(cell).split()]
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"logits {str(cell)[:60]!r}, expected {count} finite numbers with spaces between")
    return numbers


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _cells(table: Table, lines: Sequence[int]) -> list[Sequence[object]]:
    """The whole rows that stand at these lines."""
    wanted = {*lines}
    return [row.cells for row in table.rows() if row.line in wanted]


def _identity(row: Sequence[object], table: Table, columns: Columns) -> tuple[str, ...]:
    """The cells that augmentation leaves alone, such as a number of the row."""
    return tuple(str(cell) for cell, name in zip(row, table.columns, strict=True) if name not in columns.named)


def _origins(examples: Examples) -> list[str]:
    if examples.pairs is None:
        return [origin_of((text,)) for text in examples.texts]
    return [origin_of(texts) for texts in zip(examples.texts, examples.pairs, strict=True)]
