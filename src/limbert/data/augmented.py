"""Augmented training rows read back: the files that `limbert augment` writes, and those of the released programs.

A copy of a row that validates must not train, so each copy is traced to the row it was made of. `limbert augment`
writes that down; the released programs' files (``train_TASK_aug_with_logits.tsv``) are matched with the training rows.
"""

import hashlib
import math
import sys
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from limbert.data.labels import LabelReader
from limbert.data.readers import Examples, RawExamples, Table, check_columns, open_table, read_rows, without_labels
from limbert.data.tasks import Columns, Task
from limbert.errors import DataError

_NEAR = 8  # a text that stands often in both files is met again about as often in one as in the other
_DISAGREEMENT = 0.05  # share of unchanged rows that may have other cells than their training row, by chance


def match_origins(
    copies: Sequence[str],
    identities: Sequence[tuple[str, ...]],
    *,
    train: Sequence[str],
    train_identities: Sequence[tuple[str, ...]],
    name: str,
) -> tuple[str | None, ...]:
    """The mark of the training row that each copy was made of; None where it is not known.

    Args:
        copies: the marks of the copies' own texts, in the order of the file.
        identities: the copies' other cells.
        train, train_identities: the same of the training rows.
        name: of the file, for messages.

    Raises:
        DataError: if more than half of the copies cannot be traced.
    """
    found = _by_identity(copies, identities, train=train, train_identities=train_identities)
    if found is None or _unknown(found) > len(copies) / 2:
        found = _by_order(copies, train)
    if _unknown(found) > len(copies) / 2:
        raise DataError(
            f"{name}: {_unknown(found)} of {len(copies)} rows cannot be traced to training rows, by their other cells "
            "or their order, so that copies of validation rows would train; make the file with limbert augment"
        )
    return found


def _by_identity(
    copies: Sequence[str],
    identities: Sequence[tuple[str, ...]],
    *,
    train: Sequence[str],
    train_identities: Sequence[tuple[str, ...]],
) -> tuple[str | None, ...] | None:
    """By the other cells, where they tell the training rows apart and agree on the copies that are unchanged."""
    marks: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for identity, mark in zip(train_identities, train, strict=True):
        marks[identity].add(mark)
    known = {identity: min(found) for identity, found in marks.items() if len(found) == 1}
    found = tuple(known.get(identity) for identity in identities)
    rows = {*train}
    unchanged = [(mine, other) for mine, other in zip(copies, found, strict=True) if mine in rows and other is not None]
    wrong = sum(mine != other for mine, other in unchanged)
    return found if unchanged and wrong <= _DISAGREEMENT * len(unchanged) else None


def _by_order(copies: Sequence[str], train: Sequence[str]) -> tuple[str | None, ...]:
    """By the last unchanged row above; all None where less than half of the training rows are met on the way.

    A copy may equal another training row by chance, so the unchanged rows are those that rise together longest.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, mark in enumerate(train):
        places[mark].append(place)
    met: Counter[str] = Counter()
    pairs = []
    for row, mark in enumerate(copies):
        near = places.get(mark, ())[max(0, met[mark] - _NEAR) : met[mark] + _NEAR + 1]
        pairs += [(row, place) for place in reversed(near)]
        met[mark] += mark in places
    unchanged = _longest_rise(pairs)
    if 2 * len(unchanged) <= len(train):
        return (None,) * len(copies)
    current: str | None = None
    found = []
    for row in range(len(copies)):
        current = train[unchanged[row]] if row in unchanged else current
        found.append(current)
    return tuple(found)


def _longest_rise(pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The most pairs ``row -> place`` of which both rise, each row and place once; of equal places the first row.

    Args:
        pairs: by rising row, and by falling place for the same row.
    """
    lowest: list[int] = []  # lowest[n]: the lowest place that ends a rise of n + 1 pairs
    ends: list[int] = []  # and the number of its pair
    before: list[int] = []  # of each pair: the pair before it in its rise
    for number, (_, place) in enumerate(pairs):
        length = bisect_left(lowest, place)
        before.append(ends[length - 1] if length else -1)
        if length == len(lowest):
            lowest.append(place)
            ends.append(number)
        elif place < lowest[length]:
            lowest[length], ends[length] = place, number
    found: dict[int, int] = {}
    number = ends[-1] if ends else -1
    while number >= 0:
        found[pairs[number][0]] = pairs[number][1]
        number = before[number]
    return found


def _unknown(found: Sequence[str | None]) -> int:
    return sum(mark is None for mark in found)


def origin_of(texts: Sequence[str]) -> str:
    """The mark of an example that its copies carry: made of its texts, so that it does not depend on their order."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


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
