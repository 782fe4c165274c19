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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limbert.data.columns import select_columns
from limbert.data.labels import parse_float
from limbert.data.readers import Examples, ParsedRow, parse_text_row
from limbert.data.sources import TrainTable
from limbert.data.table import Table, open_table
from limbert.data.tasks import Columns
from limbert.errors import DataError

SOURCE_ID_COLUMN = "augmented_from"  # after the columns of the training file
# The order of classes in a released file's logits, where it differs from the order here.
_RELEASED_LABEL_ORDER: Mapping[str | None, tuple[str, ...]] = {"mnli": ("contradiction", "entailment", "neutral")}
_SEARCH_WINDOW = 8  # a repeated text occurs about as often in both files


@dataclass(frozen=True)
class AugmentedExamples:
    """Augmented training examples."""

    examples: Examples  # labelled as their training examples (in files with logits only: the most likely class)
    source_ids: tuple[str | None, ...]  # of their training examples; None if unknown

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
    """Read a file of `limbert augment`, with source ids in an extra column; or one with the training file's columns
    alone, perhaps with a teacher's logits instead of labels.
    """
    columns, task = training.columns, training.task
    table = select_columns(open_table(Path(path).expanduser()), columns)
    source_column = _source_id_column(table, training.table, columns)

    def parse(cells: Mapping[str, Any]) -> tuple[ParsedRow, Any]:
        """The row with its label, and its source id."""
        row = parse_text_row(cells, columns, multi_label=task.task_type == "multi-label")
        if source_column is None:
            return row._replace(label=_parse_label_or_logits(row.label, training)), None
        return row._replace(label=training.parse_label(row.label)), sys.intern(str(cells.get(source_column)))

    parsed, bad_rows = table.parse(parse, skip_bad_rows=skip_bad_rows)
    if not parsed:
        raise DataError(f"{table.name}: no row has a text and a label of the task; expected at least one")
    rows, source_ids = zip(*parsed.values(), strict=True)
    examples = Examples.from_rows(rows, bad_rows)
    if source_column is None:
        source_ids = tuple(_match_by_order(_source_ids(examples), _source_ids(training.raw.examples)))
        if (unknown := source_ids.count(None)) > len(source_ids) / 2:
            raise DataError(
                f"{table.name}: {unknown} of {len(source_ids)} rows cannot be traced to training examples by their "
                "order, so augmented validation examples might train; make the file with limbert augment"
            )
    return AugmentedExamples(examples, source_ids)


def _source_id_column(table: Table, train_table: Table, columns: Columns) -> str | None:
    """The column that `limbert augment` adds: by name, or by position in files without header."""
    if not columns.are_positions:
        return SOURCE_ID_COLUMN if SOURCE_ID_COLUMN in table.columns else None
    num_train = len(train_table.columns)
    if len(table.columns) not in (num_train, num_train + 1):
        raise DataError(
            f"{table.name}: {len(table.columns)} columns; expected the {num_train} of {train_table.name}, "
            "then the id of the training example"
        )
    return next(iter(table.columns[num_train:]), None)


def _parse_label_or_logits(value: Any, training: TrainTable) -> Any:
    """The label of a row of a released file: where the logits of a classification stand in its place, the highest."""
    task, parts = training.task, value.split() if isinstance(value, str) else []
    if task.task_type != "classification" or len(parts) < 2 or parse_float(parts[0]) is None:
        return training.parse_label(value)
    numbers = [parse_float(part) for part in parts]
    if len(numbers) != task.num_outputs or None in numbers:
        raise ValueError(f"logits {value[:60]!r}, expected {task.num_outputs} finite numbers separated by spaces")
    order = _RELEASED_LABEL_ORDER.get(task.name, ())
    best = int(np.argmax(np.array(numbers, dtype=np.float64)))
    return task.labels.index(order[best]) if {*order} == {*task.labels} else best


def _match_by_order(ids: Sequence[str], train_ids: Sequence[str]) -> list[str | None]:
    """The training example of each augmented one, the last unchanged one above; all None if less than half are found.

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
