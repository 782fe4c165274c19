"""Read augmented training examples: files of `limbert augment`, and of the released TinyBERT and DynaBERT programs.

No augmented example of a validation example may train, so every one carries the ``source_id`` of its training example.
`limbert augment` writes it; for the released files (``train_TASK_aug_with_logits.tsv``) it is found by comparison with
the training examples.
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

SOURCE_ID_COLUMN, LOGITS_COLUMN = "augmented_from", "teacher_logits"  # after the columns of the training file
# The order of classes in a released file's logits, where it differs from the order here.
_RELEASED_LABEL_ORDER: Mapping[str | None, tuple[str, ...]] = {"mnli": ("contradiction", "entailment", "neutral")}
_SEARCH_WINDOW = 8  # a repeated text occurs about as often in both files
_MAX_DISAGREEMENT = 0.05  # fraction of unchanged examples whose other cells may differ by chance


@dataclass(frozen=True)
class AugmentedExamples:
    """Augmented training examples.

    Attributes:
        examples: with the labels of their training examples (in files with logits only: the most likely class).
        source_ids: of their training examples; None if unknown.
        logits: ``(examples, outputs)`` of a teacher in the order of the task's labels; None if the file has none.
    """

    examples: Examples
    source_ids: tuple[str | None, ...]
    logits: np.ndarray | None

    def __len__(self) -> int:
        return len(self.examples)

    def trainable_indices(self, *, train: Examples, validation: Examples) -> np.ndarray:
        """Indices of the examples made from ``train``, without those of an example that is in ``validation`` too.

        Raises:
            DataError: if there are none.
        """
        allowed = {*_source_ids(train)} - {*_source_ids(validation)}
        indices = np.flatnonzero([source_id in allowed for source_id in self.source_ids])
        if not len(indices):
            raise DataError(
                f"none of {len(self)} augmented examples was made from a training example; check that the data matches"
            )
        return indices

    def with_label_order(self, examples: Examples, source_task: Task, target_task: Task) -> "AugmentedExamples":
        """The same with ``examples``, which have the class ids of ``target_task``, and logits in its label order."""
        logits = self.logits
        if logits is not None and source_task.labels != target_task.labels:
            logits = logits[:, [source_task.labels.index(name) for name in target_task.labels]]
        return replace(self, examples=examples, logits=logits)


def compute_source_id(texts: Sequence[str]) -> str:
    """The id of a training example, a digest of its texts: it does not depend on the order of the file."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def _source_ids(examples: Examples) -> list[str]:
    columns = [examples.texts] if examples.pairs is None else [examples.texts, examples.pairs]
    return [compute_source_id(texts) for texts in zip(*columns, strict=True)]


def load_augmented_examples(
    path: str,
    *,
    train_table: Table,
    columns: Columns,
    raw_train: RawExamples,
    label_parser: LabelParser,
    skip_bad_rows: bool,
) -> AugmentedExamples:
    """Read a file with the columns of the training file.

    Args:
        path: a file of `limbert augment`, with source ids and perhaps logits in extra columns; or one with the columns
            of the training file alone, perhaps with logits instead of labels.
        train_table, columns, raw_train: the training file and what was read from it.
        label_parser: of the task.
        skip_bad_rows: skip malformed rows instead of stopping at the first.

    Raises:
        DataError: a missing or unusable file, column or row, or unknown training examples.
    """
    table = open_table(Path(path).expanduser(), header=not columns.are_positions)
    check_columns(table, columns)
    is_multi_label = label_parser.task.task_type == "multi-label"
    raw = read_raw_examples(table, columns, skip_bad_rows=skip_bad_rows, multi_label=is_multi_label)
    extra = _extra_columns(table, train_table, columns)
    rows = _rows_at_lines(table, raw.line_numbers)
    kept: list[int] = []
    labels: list[Any] = []
    logits: list[list[float]] = []
    for index, (row, value) in enumerate(zip(rows, raw.labels or (), strict=True)):
        try:
            label, row_logits = _parse_label_and_logits(row, value, extra, label_parser)
        except ValueError as error:
            if not skip_bad_rows:
                raise DataError(f"{table.name}:{raw.line_numbers[index]}: {error}") from None
            continue
        kept.append(index)
        labels.append(label)
        logits += [] if row_logits is None else [row_logits]
    if not kept:
        raise DataError(f"{table.name}: no row has a label of the task; expected at least one")
    if logits and len(logits) < len(kept):
        missing = len(kept) - len(logits)
        raise DataError(f"{table.name}: {missing} rows have no logits; expected logits in all rows or in none")
    examples = replace(unlabelled_examples(raw).select(kept), labels=tuple(labels))
    if SOURCE_ID_COLUMN in extra:
        column = extra[SOURCE_ID_COLUMN]
        source_ids: tuple[str | None, ...] = tuple(sys.intern(str(rows[index][column])) for index in kept)
    else:
        train_rows = _rows_at_lines(train_table, raw_train.line_numbers)
        source_ids = match_source_ids(
            _source_ids(examples),
            [_other_cells(rows[index], table, columns) for index in kept],
            train_ids=_source_ids(unlabelled_examples(raw_train)),
            train_cells=[_other_cells(row, train_table, columns) for row in train_rows],
            file_name=table.name,
        )
    return AugmentedExamples(examples, source_ids, np.array(logits, dtype=np.float32) if logits else None)


def _extra_columns(table: Table, train_table: Table, columns: Columns) -> dict[str, int]:
    """Indices of the columns that `limbert augment` adds: by name, or by position in files without header."""
    names, num_train = (SOURCE_ID_COLUMN, LOGITS_COLUMN), len(train_table.columns)
    if not columns.are_positions:
        return {name: table.columns.index(name) for name in names if name in table.columns}
    num_extra = len(table.columns) - num_train
    if not 0 <= num_extra <= 2:
        raise DataError(
            f"{table.name}: {len(table.columns)} columns; expected the {num_train} of {train_table.name}, "
            "then the id of the training example, then logits"
        )
    return {name: num_train + index for index, name in enumerate(names[:num_extra])}


def _parse_label_and_logits(
    row: Sequence[object], value: object, extra_columns: Mapping[str, int], label_parser: LabelParser
) -> tuple[Any, list[float] | None]:
    """The label, and the logits if the row has them; ValueError if it has neither or they do not fit the task."""
    task = label_parser.task
    if SOURCE_ID_COLUMN in extra_columns:
        cell = row[extra_columns[LOGITS_COLUMN]] if LOGITS_COLUMN in extra_columns else None
        return label_parser.parse(value), None if cell is None else _parse_logits(cell, task.num_outputs)
    parts = value.split() if isinstance(value, str) else []
    if task.task_type != "classification" or len(parts) < 2 or math.isnan(_float_or_nan(parts[0])):
        return label_parser.parse(value), None
    logits = _parse_logits(value, task.num_outputs)
    order = _RELEASED_LABEL_ORDER.get(task.name)
    if order is not None and {*order} == {*task.labels}:
        logits = [logits[order.index(name)] for name in task.labels]
    return int(np.argmax(logits)), logits


def _parse_logits(cell: object, num_outputs: int) -> list[float]:
    numbers = [_float_or_nan(part) for part in str(cell).split()]
    if len(numbers) != num_outputs or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"logits {str(cell)[:60]!r}, expected {num_outputs} finite numbers separated by spaces")
    return numbers


def _float_or_nan(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _rows_at_lines(table: Table, line_numbers: Sequence[int]) -> list[Sequence[object]]:
    wanted = {*line_numbers}
    return [row.cells for row in table.rows() if row.line_number in wanted]


def _other_cells(row: Sequence[object], table: Table, columns: Columns) -> tuple[str, ...]:
    """The cells that augmentation does not change, such as the number of the row."""
    return tuple(str(cell) for cell, name in zip(row, table.columns, strict=True) if name not in columns.names)


# -- files without source ids


def match_source_ids(
    augmented_ids: Sequence[str],
    augmented_cells: Sequence[tuple[str, ...]],
    *,
    train_ids: Sequence[str],
    train_cells: Sequence[tuple[str, ...]],
    file_name: str,
) -> tuple[str | None, ...]:
    """Find the training example of each augmented example; None if unknown.

    Args:
        augmented_ids: `compute_source_id` of the augmented texts, in the order of the file.
        augmented_cells: their other cells.
        train_ids, train_cells: the same of the training examples.
        file_name: for messages.

    Raises:
        DataError: if more than half remain unknown.
    """
    matches = _match_by_cells(augmented_ids, augmented_cells, train_ids=train_ids, train_cells=train_cells)
    if matches is None or matches.count(None) > len(matches) / 2:
        matches = _match_by_order(augmented_ids, train_ids)
    if matches.count(None) > len(matches) / 2:
        raise DataError(
            f"{file_name}: {matches.count(None)} of {len(matches)} rows cannot be traced to training examples by other "
            "cells or order, so augmented validation examples might train; make the file with limbert augment"
        )
    return matches


def _match_by_cells(
    augmented_ids: Sequence[str],
    augmented_cells: Sequence[tuple[str, ...]],
    *,
    train_ids: Sequence[str],
    train_cells: Sequence[tuple[str, ...]],
) -> tuple[str | None, ...] | None:
    """By the other cells, if these are right for the unchanged examples in the file."""
    ids_by_cells: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for cells, source_id in zip(train_cells, train_ids, strict=True):
        ids_by_cells[cells].add(source_id)
    unique = {cells: min(ids) for cells, ids in ids_by_cells.items() if len(ids) == 1}
    matches = tuple(unique.get(cells) for cells in augmented_cells)
    known = {*train_ids}
    agreements = [
        own == match for own, match in zip(augmented_ids, matches, strict=True) if own in known and match is not None
    ]
    return matches if agreements and agreements.count(False) <= _MAX_DISAGREEMENT * len(agreements) else None


def _match_by_order(augmented_ids: Sequence[str], train_ids: Sequence[str]) -> tuple[str | None, ...]:
    """By the last unchanged example above; all None if less than half of the training examples are found.

    An augmented text may equal another training text by chance, so the unchanged examples are the longest sequence
    that is in the order of both files.
    """
    positions: dict[str, list[int]] = defaultdict(list)
    for position, source_id in enumerate(train_ids):
        positions[source_id].append(position)
    seen: Counter[str] = Counter()
    pairs = []
    for row, source_id in enumerate(augmented_ids):
        first = max(0, seen[source_id] - _SEARCH_WINDOW)
        near = positions.get(source_id, ())[first : seen[source_id] + _SEARCH_WINDOW + 1]
        pairs += [(row, position) for position in reversed(near)]
        seen[source_id] += source_id in positions
    unchanged = _longest_increasing_pairs(pairs)
    if 2 * len(unchanged) <= len(train_ids):
        return (None,) * len(augmented_ids)
    matches: list[str | None] = []
    for row in range(len(augmented_ids)):
        previous = matches[-1] if matches else None
        matches.append(train_ids[unchanged[row]] if row in unchanged else previous)
    return tuple(matches)


def _longest_increasing_pairs(pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The longest sequence of pairs ``row -> position`` in which both increase.

    Args:
        pairs: by increasing row, and by decreasing position for the same row.
    """
    lowest: list[int] = []  # lowest[n]: the lowest position that ends a sequence of n + 1 pairs
    ends: list[int] = []  # and the index of its pair
    previous: list[int] = []  # of each pair: the index of the pair before it
    for index, (_, position) in enumerate(pairs):
        length = bisect_left(lowest, position)
        previous.append(ends[length - 1] if length else -1)
        if length == len(lowest):
            lowest.append(position)
            ends.append(index)
        elif position < lowest[length]:
            lowest[length], ends[length] = position, index
    longest: dict[int, int] = {}
    index = ends[-1] if ends else -1
    while index >= 0:
        longest[pairs[index][0]] = pairs[index][1]
        index = previous[index]
    return longest
