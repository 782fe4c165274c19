"""Read augmented training examples: files of `limbert augment`, and of the released TinyBERT and DynaBERT programs.

No augmented example of a validation example may train, so every one carries the ``source_id`` of its training example.
`limbert augment` writes it; for the released files (``train_TASK_aug_with_logits.tsv``) it is found by comparison with
the training examples.
"""

import hashlib
import sys
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from limbert.data.columns import check_columns
from limbert.data.labels import LabelParser, parse_float
from limbert.data.readers import Examples, TrainTable, read_examples
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
    """Augmented training examples."""

    examples: Examples  # labelled as their training examples (in files with logits only: the most likely class)
    source_ids: tuple[str | None, ...]  # of their training examples; None if unknown
    logits: np.ndarray | None  # ``(examples, outputs)`` of a teacher, in the order of the task's labels

    def __len__(self) -> int:
        return len(self.examples)

    def trainable_indices(self, *, train: Examples, validation: Examples) -> np.ndarray:
        """Indices of the examples made from ``train``, without those of an example that is in ``validation`` too."""
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


def load_augmented_examples(path: str, training: TrainTable, *, skip_bad_rows: bool) -> AugmentedExamples:
    """Read a file of `limbert augment`, with source ids and perhaps logits in extra columns; or one with the columns
    of the training file alone, perhaps with logits instead of labels.
    """
    columns, parser = training.columns, training.label_parser
    table = open_table(Path(path).expanduser(), header=not columns.are_positions)
    check_columns(table, columns)
    is_multi_label = parser.task.task_type == "multi-label"
    raw = read_examples(table, columns, skip_bad_rows=skip_bad_rows, multi_label=is_multi_label)
    extra = _extra_columns(table, training.table, columns)
    rows = zip(table.rows_at(raw.line_numbers), raw.examples.labels or (), strict=True)
    raw = replace(raw, examples=replace(raw.examples, labels=tuple(rows)))

    def parse(row: Any) -> tuple[Sequence[object], Any, list[float] | None]:
        return row[0], *_parse_label_and_logits(row[0], row[1], extra, parser)

    parsed = raw.parse_labels(parse, skip_bad_rows=skip_bad_rows).examples
    cells, labels, logits = zip(*(parsed.labels or ()), strict=True)
    examples = replace(parsed, labels=labels)
    if 0 < (missing := logits.count(None)) < len(logits):
        raise DataError(f"{table.name}: {missing} rows have no logits; expected logits in all rows or in none")
    if SOURCE_ID_COLUMN in extra:
        source_ids: tuple[str | None, ...] = tuple(sys.intern(str(row[extra[SOURCE_ID_COLUMN]])) for row in cells)
    else:
        original = training.examples
        train_rows = training.table.rows_at(original.line_numbers)
        source_ids = _match_source_ids(
            [*zip(_source_ids(examples), _other_cells(cells, table, columns), strict=True)],
            [*zip(_source_ids(original.examples), _other_cells(train_rows, training.table, columns), strict=True)],
            file_name=table.name,
        )
    return AugmentedExamples(examples, source_ids, None if missing else np.array(logits, dtype=np.float32))


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
    if task.task_type != "classification" or len(parts) < 2 or parse_float(parts[0]) is None:
        return label_parser.parse(value), None
    logits = _parse_logits(value, task.num_outputs)
    order = _RELEASED_LABEL_ORDER.get(task.name)
    if order is not None and {*order} == {*task.labels}:
        logits = [logits[order.index(name)] for name in task.labels]
    return int(np.argmax(logits)), logits


def _parse_logits(cell: object, num_outputs: int) -> list[float]:
    parts = [parse_float(part) for part in str(cell).split()]
    numbers = [number for number in parts if number is not None]
    if len(parts) != num_outputs or len(numbers) != num_outputs:
        raise ValueError(f"logits {str(cell)[:60]!r}, expected {num_outputs} finite numbers separated by spaces")
    return numbers


def _other_cells(rows: Sequence[Sequence[object]], table: Table, columns: Columns) -> list[tuple[str, ...]]:
    """The cells of each row that augmentation does not change, such as the number of the row."""
    indices = [index for index, name in enumerate(table.columns) if name not in columns.names]
    return [tuple(str(row[index]) for index in indices) for row in rows]


# -- files without source ids

_Identity = tuple[str, tuple[str, ...]]  # of an example: `compute_source_id` of its texts, and its other cells


def _match_source_ids(
    augmented: Sequence[_Identity], train: Sequence[_Identity], *, file_name: str
) -> tuple[str | None, ...]:
    """Find the training example of each augmented example, in the order of the file; None if unknown."""
    matches = _match_by_cells(augmented, train)
    if matches is None or matches.count(None) > len(matches) / 2:
        matches = _match_by_order([source_id for source_id, _ in augmented], [source_id for source_id, _ in train])
    if matches.count(None) > len(matches) / 2:
        raise DataError(
            f"{file_name}: {matches.count(None)} of {len(matches)} rows cannot be traced to training examples by other "
            "cells or order, so augmented validation examples might train; make the file with limbert augment"
        )
    return matches


def _match_by_cells(augmented: Sequence[_Identity], train: Sequence[_Identity]) -> tuple[str | None, ...] | None:
    """By the other cells, if these are right for the unchanged examples in the file."""
    ids_by_cells: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for source_id, cells in train:
        ids_by_cells[cells].add(source_id)
    unique = {cells: min(ids) for cells, ids in ids_by_cells.items() if len(ids) == 1}
    matches = tuple(unique.get(cells) for _, cells in augmented)
    known = {source_id for source_id, _ in train}
    agreements = [
        own == match for (own, _), match in zip(augmented, matches, strict=True) if own in known and match is not None
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
    """The longest sequence ``row -> position`` in which both increase; pairs: by row, then by falling position."""
    lowest: list[int] = []  # lowest[n]: the lowest position that ends a sequence of n + 1 pairs
    ends: list[int] = []  # and the index of its pair
    previous: list[int] = []  # of each pair: the index of the pair before it
    for index, (_, position) in enumerate(pairs):
        length = bisect_left(lowest, position)
        previous.append(ends[length - 1] if length else -1)
        if length == len(lowest) or position < lowest[length]:
            lowest[length : length + 1], ends[length : length + 1] = [position], [index]
    longest: dict[int, int] = {}
    index = ends[-1] if ends else -1
    while index >= 0:
        longest[pairs[index][0]] = pairs[index][1]
        index = previous[index]
    return longest
