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

from limbert.data.columns import check_columns
from limbert.data.labels import LabelParser
from limbert.data.readers import Examples, RawExamples, read_raw_examples, unlabelled_examples
from limbert.data.table import Table, open_table
from limbert.data.tasks import Columns, Task
from limbert.errors import DataError

_SEARCH_WINDOW = 8  # a text that stands often in both files is met again about as often in one as in the other
_MAX_DISAGREEMENT = 0.05  # share of unchanged rows that may have other cells than their training row, by chance


def match_source_ids(
    augmented_ids: Sequence[str],
    augmented_cells: Sequence[tuple[str, ...]],
    *,
    train_ids: Sequence[str],
    train_cells: Sequence[tuple[str, ...]],
    file_name: str,
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
    found = _match_by_cells(augmented_ids, augmented_cells, train_ids=train_ids, train_cells=train_cells)
    if found is None or _count_unknown(found) > len(augmented_ids) / 2:
        found = _match_by_order(augmented_ids, train_ids)
    if _count_unknown(found) > len(augmented_ids) / 2:
        raise DataError(
            f"{file_name}: {_count_unknown(found)} of {len(augmented_ids)} rows cannot be traced to training rows, by their other cells "
            "or their order, so that copies of validation rows would train; make the file with limbert augment"
        )
    return found


def _match_by_cells(
    augmented_ids: Sequence[str],
    augmented_cells: Sequence[tuple[str, ...]],
    *,
    train_ids: Sequence[str],
    train_cells: Sequence[tuple[str, ...]],
) -> tuple[str | None, ...] | None:
    """By the other cells, where they tell the training rows apart and agree on the copies that are unchanged."""
    marks: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for identity, mark in zip(train_cells, train_ids, strict=True):
        marks[identity].add(mark)
    known = {identity: min(found) for identity, found in marks.items() if len(found) == 1}
    found = tuple(known.get(identity) for identity in augmented_cells)
    rows = {*train_ids}
    unchanged = [
        (mine, other) for mine, other in zip(augmented_ids, found, strict=True) if mine in rows and other is not None
    ]
    wrong = sum(mine != other for mine, other in unchanged)
    return found if unchanged and wrong <= _MAX_DISAGREEMENT * len(unchanged) else None


def _match_by_order(augmented_ids: Sequence[str], train_ids: Sequence[str]) -> tuple[str | None, ...]:
    """By the last unchanged row above; all None where less than half of the training rows are met on the way.

    A copy may equal another training row by chance, so the unchanged rows are those that rise together longest.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, mark in enumerate(train_ids):
        places[mark].append(place)
    met: Counter[str] = Counter()
    pairs = []
    for row, mark in enumerate(augmented_ids):
        near = places.get(mark, ())[max(0, met[mark] - _SEARCH_WINDOW) : met[mark] + _SEARCH_WINDOW + 1]
        pairs += [(row, place) for place in reversed(near)]
        met[mark] += mark in places
    unchanged = _longest_increasing_pairs(pairs)
    if 2 * len(unchanged) <= len(train_ids):
        return (None,) * len(augmented_ids)
    current: str | None = None
    found = []
    for row in range(len(augmented_ids)):
        current = train_ids[unchanged[row]] if row in unchanged else current
        found.append(current)
    return tuple(found)


def _longest_increasing_pairs(pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
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


def _count_unknown(source_ids: Sequence[str | None]) -> int:
    return sum(mark is None for mark in source_ids)


def compute_source_id(texts: Sequence[str]) -> str:
    """The mark of an example that its copies carry: made of its texts, so that it does not depend on their order."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


SOURCE_ID_COLUMN, LOGITS_COLUMN = "augmented_from", "teacher_logits"  # columns that follow those of the training file
# The released programs' order of classes in a cell of logits, where it is another than the table's here.
_RELEASED_LABEL_ORDER: Mapping[str | None, tuple[str, ...]] = {"mnli": ("contradiction", "entailment", "neutral")}


@dataclass(frozen=True)
class AugmentedExamples:
    """Copies of training rows.

    Attributes:
        examples: with the labels of the rows they were made of (in files that hold logits alone: the likeliest class).
        origins: the mark of the row that each was made of; None where it is not known.
        logits: ``(examples, outputs)``, a teacher's, in the order of the task's labels; None where there are none.
    """

    examples: Examples
    source_ids: tuple[str | None, ...]
    logits: np.ndarray | None

    def __len__(self) -> int:
        return len(self.examples)

    def trainable_indices(self, *, train: Examples, validation: Examples) -> np.ndarray:
        """The places of the copies of ``train``'s rows; those of a row that also validates are not among them.

        Raises:
            DataError: if none is.
        """
        allowed = {*_source_ids(train)} - {*_source_ids(validation)}
        places = np.flatnonzero([origin in allowed for origin in self.source_ids])
        if not len(places):
            raise DataError(
                f"none of the {len(self)} augmented rows is a copy of a row that trains; is it the same data?"
            )
        return places

    def with_label_order(self, examples: Examples, source_task: Task, target_task: Task) -> "AugmentedExamples":
        """The same with ``examples``, which have the class ids of ``wanted``, and with logits in that order too."""
        logits = self.logits
        if logits is not None and source_task.labels != target_task.labels:
            logits = logits[:, [source_task.labels.index(name) for name in target_task.labels]]
        return replace(self, examples=examples, logits=logits)


def load_augmented_examples(
    path: str,
    *,
    train_table: Table,
    columns: Columns,
    raw_train: RawExamples,
    label_parser: LabelParser,
    skip_bad_rows: bool,
) -> AugmentedExamples:
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
    found = open_table(Path(path).expanduser(), header=not columns.are_positions)
    check_columns(found, columns)
    several = label_parser.task.task_type == "multi-label"
    copies = read_raw_examples(found, columns, skip_bad_rows=skip_bad_rows, multi_label=several)
    extra = _extra_columns(found, train_table, columns)
    kept: list[int] = []
    labels: list[Any] = []
    logits: list[list[float] | None] = []
    cells = _rows_at_lines(found, copies.line_numbers)
    for place, row in enumerate(cells):
        try:
            label, answer = _parse_label_and_logits(
                row, (copies.labels or [])[place], extra_columns=extra, augmented_table=found, label_parser=label_parser
            )
        except ValueError as error:
            if not skip_bad_rows:
                raise DataError(f"{found.name}:{copies.line_numbers[place]}: {error}") from None
            continue
        kept.append(place)
        labels.append(label)
        logits.append(answer)
    if not kept:
        raise DataError(f"{found.name}: no row has a label of the task; expected at least one")
    examples = replace(unlabelled_examples(copies).select(kept), labels=tuple(labels))
    if SOURCE_ID_COLUMN in extra:
        at = extra[SOURCE_ID_COLUMN]
        origins: tuple[str | None, ...] = tuple(sys.intern(str(cells[place][at])) for place in kept)
    else:
        ours = [_other_cells(cells[place], found, columns) for place in kept]
        theirs = [
            _other_cells(row, train_table, columns) for row in _rows_at_lines(train_table, raw_train.line_numbers)
        ]
        train = [*_source_ids(unlabelled_examples(raw_train))]
        origins = match_source_ids(
            [*_source_ids(examples)], ours, train_ids=train, train_cells=theirs, file_name=found.name
        )
    some = [answer for answer in logits if answer is not None]
    if some and len(some) < len(logits):
        raise DataError(f"{found.name}: {len(logits) - len(some)} rows have no logits; expected all rows to, or none")
    return AugmentedExamples(examples, origins, np.array(some, dtype=np.float32) if some else None)


def _extra_columns(augmented_table: Table, train_table: Table, columns: Columns) -> dict[str, int]:
    """The places of the columns that `limbert augment` added: by name, or in files without header behind the others."""
    if not columns.are_positions:
        return {
            name: augmented_table.columns.index(name)
            for name in (SOURCE_ID_COLUMN, LOGITS_COLUMN)
            if name in augmented_table.columns
        }
    more = len(augmented_table.columns) - len(train_table.columns)
    if not 0 <= more <= 2:
        raise DataError(
            f"{augmented_table.name}: {len(augmented_table.columns)} columns; expected the {len(train_table.columns)} of {train_table.name}, "
            "then the mark of the original, then logits"
        )
    return {
        name: len(train_table.columns) + place for place, name in enumerate((SOURCE_ID_COLUMN, LOGITS_COLUMN)[:more])
    }


def _parse_label_and_logits(
    row: Sequence[object],
    value: object,
    *,
    extra_columns: Mapping[str, int],
    augmented_table: Table,
    label_parser: LabelParser,
) -> tuple[Any, list[float] | None]:
    """The label and, where the row has them, the logits.

    Raises:
        ValueError: the row has none, or others than the task's.
    """
    task = label_parser.task
    if SOURCE_ID_COLUMN in extra_columns:
        cell = row[extra_columns[LOGITS_COLUMN]] if LOGITS_COLUMN in extra_columns else None
        return label_parser.parse(value), None if cell is None else _parse_logits(cell, task.num_outputs)
    if task.task_type != "classification" or not _looks_like_logits(value):
        return label_parser.parse(value), None
    answer = _parse_logits(value, task.num_outputs)
    order = _RELEASED_LABEL_ORDER.get(task.name)
    if order is not None and {*order} == {*task.labels}:
        answer = [answer[order.index(name)] for name in task.labels]
    return int(np.argmax(answer)), answer


def _looks_like_logits(value: object) -> bool:
    return isinstance(value, str) and len(value.split()) > 1 and not math.isnan(_float_or_nan(value.split()[0]))


def _parse_logits(cell: object, num_outputs: int) -> list[float]:
    numbers = [_float_or_nan(part) for part in str(cell).split()]
    if len(numbers) != num_outputs or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"logits {str(cell)[:60]!r}, expected {num_outputs} finite numbers with spaces between")
    return numbers


def _float_or_nan(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _rows_at_lines(table: Table, line_numbers: Sequence[int]) -> list[Sequence[object]]:
    """The whole rows that stand at these lines."""
    wanted = {*line_numbers}
    return [row.cells for row in table.rows() if row.line_number in wanted]


def _other_cells(row: Sequence[object], table: Table, columns: Columns) -> tuple[str, ...]:
    """The cells that augmentation leaves alone, such as a number of the row."""
    return tuple(str(cell) for cell, name in zip(row, table.columns, strict=True) if name not in columns.names)


def _source_ids(examples: Examples) -> list[str]:
    if examples.pairs is None:
        return [compute_source_id((text,)) for text in examples.texts]
    return [compute_source_id(texts) for texts in zip(examples.texts, examples.pairs, strict=True)]
