"""Examples (texts with labels), and reading them from the rows of a table: each bad row is named or counted."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbert.core.config import DataConfig
from limbert.data.columns import check_columns, choose_columns
from limbert.data.labels import LabelParser, label_text
from limbert.data.table import Table, check_readable, file_format, lines_table, open_table
from limbert.data.tasks import Columns, glue_task
from limbert.errors import DataError

CharSpan = tuple[int, int]  # of a text: index of its first character, and of the one after its last
_FLAGS = {
    "0": False,
    "0.0": False,
    "false": False,
    "1": True,
    "1.0": True,
    "true": True,
}  # cells of a label's own column


@dataclass(frozen=True)
class ReferenceAnswers:
    """The accepted answers of a question: parts of its context, and the character where each begins."""

    texts: tuple[str, ...]
    answer_starts: tuple[int, ...]


@dataclass(frozen=True)
class Examples:
    """Texts, their second texts if ``pairs`` is set, and labels if they are known.

    A label is a class id or a score; of a multi-label task the ids of its classes in rising order; of token
    classification the class id of each word; of a question its `ReferenceAnswers`.
    """

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[Any, ...] | None
    bad_rows: int = 0  # malformed rows that were skipped
    word_spans: tuple[tuple[CharSpan, ...], ...] | None = None  # token classification: the words of each text
    groups: tuple[str, ...] | None = None  # examples of one group stay on one side of a split, such as an article

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Sequence[int]) -> "Examples":
        """The examples at these indices, in this order."""

        def pick(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
            return None if values is None else tuple(values[index] for index in indices)

        return replace(
            self,
            texts=tuple(self.texts[index] for index in indices),
            pairs=pick(self.pairs),
            labels=pick(self.labels),
            word_spans=pick(self.word_spans),
            groups=pick(self.groups),
        )


@dataclass(frozen=True)
class RawExamples:
    """Examples with labels as they are in the file, and the line of each for messages."""

    source: str
    line_numbers: list[int]
    texts: list[str]
    pairs: list[str] | None
    labels: list[object] | None
    bad_rows: int = 0


def read_raw_examples(
    table: Table,
    columns: Columns,
    *,
    skip_bad_rows: bool,
    excluded_labels: Sequence[str] = (),
    multi_label: bool = False,
) -> RawExamples:
    """Read the texts, pairs and raw labels of all rows.

    Args:
        table: the rows.
        columns: those to read; the table has them.
        skip_bad_rows: count malformed rows instead of stopping at the first.
        excluded_labels: labels of rows that are left out without counting as malformed.
        multi_label: whether a row may have any number of labels, including none.

    Raises:
        DataError: a malformed row (``FILE:LINE: what, expected``), or no row at all.
    """
    rows: list[tuple[int, str, str, object]] = []
    bad_rows = 0
    text_at, pair_at = (None if name is None else table.columns.index(name) for name in (columns.text, columns.pair))
    for row in table.rows():
        try:
            if row.problem is not None:
                raise ValueError(row.problem)
            label = _raw_label(row.cells, table, columns, multi_label=multi_label)
            if label in excluded_labels:
                continue
            text, pair = (
                "" if index is None else check_text(row.cells[index], table.columns[index])
                for index in (text_at, pair_at)
            )
        except ValueError as error:
            bad_rows += skip_or_raise(table, row.line_number, error, skip=skip_bad_rows)
            continue
        rows.append((row.line_number, text, pair, label))
    if not rows:
        reason = f"none of the {bad_rows} rows can be used" if bad_rows else "no rows below the header"
        raise DataError(f"{table.name}: {reason}; expected at least one")
    lines, texts, pairs, labels = map(list, zip(*rows, strict=True))
    return RawExamples(
        table.name, lines, texts, pairs if columns.pair else None, labels if columns.has_labels else None, bad_rows
    )


def check_text(value: object, column: str) -> str:
    """The value of a cell in this column, if it is a text.

    Raises:
        ValueError: it is blank or no text; the message names the column.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"no text in column {column!r}, expected some")
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} in column {column!r}, expected text")
    return value


def skip_or_raise(table: Table, line_number: int, reason: object, *, skip: bool) -> int:
    """1, to add to the number of bad rows, or the DataError ``FILE:LINE: reason`` unless bad rows are skipped."""
    if not skip:
        raise DataError(f"{table.name}:{line_number}: {reason}")
    return 1


def parse_labels(raw: RawExamples, label_parser: LabelParser, *, skip_bad_rows: bool) -> Examples:
    """The examples with their labels as class ids or scores.

    Raises:
        DataError: a label that is not one of the task's (``FILE:LINE: what, expected``), or no usable row.
    """
    assert raw.labels is not None, "read with a label column"
    kept: list[int] = []
    labels: list[Any] = []
    for index, value in enumerate(raw.labels):
        try:
            labels.append(label_parser.parse(value))
        except ValueError as error:
            if not skip_bad_rows:
                raise DataError(f"{raw.source}:{raw.line_numbers[index]}: {error}") from None
            continue
        kept.append(index)
    if not kept:
        raise DataError(f"{raw.source}: no row has a label of the task; expected at least one")
    bad_rows = raw.bad_rows + len(raw.texts) - len(kept)
    return replace(unlabelled_examples(raw).select(kept), labels=tuple(labels), bad_rows=bad_rows)


def unlabelled_examples(raw: RawExamples) -> Examples:
    """The examples without their labels."""
    return Examples(tuple(raw.texts), None if raw.pairs is None else tuple(raw.pairs), None, raw.bad_rows)


def read_texts(path: Path, config: DataConfig) -> Examples:
    """Texts, or pairs of texts, for prediction: one per line of a ``.txt`` file, else as training files are read.

    Raises:
        DataError: a missing or unusable file, column or row.
    """
    glue = glue_task(config.task) if config.task is not None else None
    if file_format(path) == ".txt":
        table = lines_table(check_readable(path))
        pair = config.pair_column or (glue.column_layouts[0].pair if glue else None)
        columns = check_columns(table, Columns("text", pair, None))
    else:
        table, columns = choose_columns(lambda header: open_table(path, header=header), config, glue, labelled=False)
    return unlabelled_examples(read_raw_examples(table, columns, skip_bad_rows=config.skip_bad_rows))


def _raw_label(cells: Sequence[object], table: Table, columns: Columns, *, multi_label: bool) -> object:
    """The label as it is in the file, several as a tuple; None without a label column."""
    if columns.label_columns:
        flags = {name: _FLAGS.get(label_text(cells[table.columns.index(name)])) for name in columns.label_columns}
        for name, flag in flags.items():
            if flag is None:
                found = cells[table.columns.index(name)]
                raise ValueError(f"{found!r} in label column {name!r}, expected 0 or 1")
        return tuple(name for name, flag in flags.items() if flag)
    if columns.label is None:
        return None
    value = _parse_list(cells[table.columns.index(columns.label)])
    if isinstance(value, list) and all(isinstance(part, (str, int, float)) for part in value):
        numbers = [part for part in value if not isinstance(part, str)]
        if len({*numbers}) < len(numbers) or any(isinstance(part, (bool, float)) for part in numbers):
            raise ValueError(
                f"a 0 or 1 for each class in column {columns.label!r}, expected a list of the labels that apply"
            )
        return tuple(value)
    if multi_label and isinstance(value, str) and not value.strip():
        return ()
    if value is None or value != value or not label_text(value):  # NaN differs from itself
        raise ValueError(f"no label in column {columns.label!r}, expected one")
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"{type(value).__name__} in column {columns.label!r}, expected a name or a number")
    return value


def _parse_list(value: object) -> object:
    """A cell such as ``['a', 'b']``, which pandas writes for a list, as that list; any other value as it is."""
    if not isinstance(value, str) or not (value.lstrip().startswith("[") and value.rstrip().endswith("]")):
        return value
    try:
        parsed = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
    return parsed if isinstance(parsed, list) else value
