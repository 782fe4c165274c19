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

from limbert.data.columns import select_columns
from limbert.data.labels import parse_float
from limbert.data.readers import Examples, ParsedRow, parse_text_row
from limbert.data.sources import TrainTable
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
    logits: np.ndarray | None = None  # ``(examples, outputs)`` of a teacher, in the order of the task's labels

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
    columns, task = training.columns, training.task
    table = select_columns(open_table(Path(path).expanduser()), columns)
    source_column, logits_column = _extra_columns(table, training.table, columns)

    def parse(cells: Mapping[str, Any]) -> tuple[ParsedRow, list[float] | None, Any]:
        """The row with its label, its logits, and its source id (or the cells that tell it)."""
        row = parse_text_row(cells, columns, multi_label=task.task_type == "multi-label")
        if source_column is None:
            label, logits = _parse_label_or_logits(row.label, training)
            return row._replace(label=label), logits, _other_cells(cells, table, columns)
        label, cell = training.parse_label(row.label), cells.get(logits_column or "")
        logits = None if cell is None else _parse_logits(cell, task.num_outputs)
        return row._replace(label=label), logits, sys.intern(str(cells.get(source_column)))

    parsed, bad_rows = table.parse(parse, skip_bad_rows=skip_bad_rows)
    if not parsed:
        raise DataError(f"{table.name}: no row has a text and a label of the task; expected at least one")
    rows, logits, sources = zip(*parsed.values(), strict=True)
    examples = Examples.from_rows(rows, bad_rows)
    if 0 < (missing := logits.count(None)) < len(logits):
        raise DataError(f"{table.name}: {missing} rows have no logits; expected logits in all rows or in none")
    source_ids: Sequence[str | None] = sources
    if source_column is None:
        ids, train_ids = _source_ids(examples), _source_ids(training.raw.examples)
        train_rows = training.table.rows_at(training.raw.rows)
        train_cells = [_other_cells(row, training.table, columns) for row in train_rows]
        source_ids = _match_by_cells(ids, sources, train_ids, train_cells)
        if source_ids.count(None) > len(ids) / 2:
            source_ids = _match_by_order(ids, train_ids)
        if (unknown := source_ids.count(None)) > len(ids) / 2:
            raise DataError(
                f"{table.name}: {unknown} of {len(ids)} rows cannot be traced to training examples by other cells or "
                "order, so augmented validation examples might train; make the file with limbert augment"
            )
    return AugmentedExamples(examples, tuple(source_ids), None if missing else np.array(logits, dtype=np.float32))


def _extra_columns(table: Table, train_table: Table, columns: Columns) -> tuple[str | None, str | None]:
    """The columns that `limbert augment` adds: by name, or by position in files without header."""
    if not columns.are_positions:
        source, logits = (name if name in table.columns else None for name in (SOURCE_ID_COLUMN, LOGITS_COLUMN))
        return source, logits
    num_train = len(train_table.columns)
    if not num_train <= len(table.columns) <= num_train + 2:
        raise DataError(
            f"{table.name}: {len(table.columns)} columns; expected the {num_train} of {train_table.name}, "
            "then the id of the training example, then logits"
        )
    source, logits = [*table.columns[num_train:], None, None][:2]
    return source, logits


def _parse_label_or_logits(value: Any, training: TrainTable) -> tuple[Any, list[float] | None]:
    """The label of a row of a released file, where the logits of a classification stand in its place."""
    task, parts = training.task, value.split() if isinstance(value, str) else []
    if task.task_type != "classification" or len(parts) < 2 or parse_float(parts[0]) is None:
        return training.parse_label(value), None
    logits = _parse_logits(value, task.num_outputs)
    order = _RELEASED_LABEL_ORDER.get(task.name, task.labels)
    if {*order} == {*task.labels}:
        logits = [logits[order.index(name)] for name in task.labels]
    return int(np.argmax(logits)), logits


def _parse_logits(cell: object, num_outputs: int) -> list[float]:
    numbers = [parse_float(part) for part in str(cell).split()]
    if len(numbers) != num_outputs or None in numbers:
        raise ValueError(f"logits {str(cell)[:60]!r}, expected {num_outputs} finite numbers separated by spaces")
    return numbers  # type: ignore[return-value]


def _other_cells(cells: Mapping[str, Any], table: Table, columns: Columns) -> tuple[str, ...]:
    """The cells that augmentation does not change, such as the number of the row."""
    return tuple(str(cells.get(name)) for name in table.columns if name not in columns.names)


# -- files without source ids: the training example of each augmented example, None if unknown


def _match_by_cells(
    ids: Sequence[str], cells: Sequence[Any], train_ids: Sequence[str], train_cells: Sequence[Any]
) -> list[str | None]:
    """By the other cells; all None unless these are right for the unchanged examples in the file."""
    ids_by_cells: dict[Any, set[str]] = defaultdict(set)
    for source_id, key in zip(train_ids, train_cells, strict=True):
        ids_by_cells[key].add(source_id)
    unique = {key: min(sources) for key, sources in ids_by_cells.items() if len(sources) == 1}
    matches, known = [unique.get(key) for key in cells], {*train_ids}
    unchanged = [(own, match) for own, match in zip(ids, matches, strict=True) if own in known and match is not None]
    wrong = sum(own != match for own, match in unchanged)
    return matches if unchanged and wrong <= _MAX_DISAGREEMENT * len(unchanged) else [None] * len(ids)


def _match_by_order(ids: Sequence[str], train_ids: Sequence[str]) -> list[str | None]:
    """By the last unchanged example above; all None if less than half of the training examples are found.

    An augmented text may equal another training text by chance, so the unchanged examples are the longest sequence
    that is in the order of both files.
    """
    positions: dict[str, list[int]] = defaultdict(list)
    for position, source_id in enumerate(train_ids):
        positions[source_id].append(position)
    seen: Counter[str] = Counter()
    pairs: list[tuple[int, int]] = []  # row and position, by row, then by falling position
    for row, source_id in enumerate(ids):
        first = max(0, seen[source_id] - _SEARCH_WINDOW)
        near = positions.get(source_id, ())[first : seen[source_id] + _SEARCH_WINDOW + 1]
        pairs += [(row, position) for position in reversed(near)]
        seen[source_id] += source_id in positions
    ends, last = list[int](), list[int]()  # the lowest position that ends a sequence of each length, and its pair
    before = list[int]()  # the pair before each pair in its sequence, -1: none
    for number, (_, position) in enumerate(pairs):
        length = bisect_left(ends, position)
        before.append(last[length - 1] if length else -1)
        if length == len(ends) or position < ends[length]:
            ends[length : length + 1], last[length : length + 1] = [position], [number]
    if 2 * len(ends) <= len(train_ids):
        return [None] * len(ids)
    unchanged, number = dict[int, int](), last[-1]
    while number >= 0:
        row, position = pairs[number]
        unchanged[row], number = position, before[number]
    matches: list[str | None] = [None]
    for row in range(len(ids)):
        matches.append(train_ids[unchanged[row]] if row in unchanged else matches[-1])
    return matches[1:]
