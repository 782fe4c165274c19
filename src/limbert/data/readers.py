"""Examples (texts with labels), and reading them from the rows of a table."""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbert.core.config import DataConfig
from limbert.data.columns import check_columns, choose_columns
from limbert.data.labels import LabelParser, label_text
from limbert.data.table import Table, check_readable, file_format, lines_table, open_table, parse_rows
from limbert.data.tasks import Columns, Task, glue_task
from limbert.errors import DataError

CharSpan = tuple[int, int]  # of a text: index of its first character, and of the one after its last
_FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}  # in a label's own column
_COLUMNS = ("texts", "pairs", "labels", "word_spans", "groups")  # of `Examples`


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
        columns: dict[str, Any] = {name: getattr(self, name) for name in _COLUMNS}
        known = {name: values for name, values in columns.items() if values is not None}
        chosen: dict[str, Any] = {name: tuple(map(values.__getitem__, indices)) for name, values in known.items()}
        return replace(self, **chosen)


@dataclass(frozen=True)
class TableExamples:
    """Examples read from a table, with the line of each; their labels are as in the file until `parse_labels`."""

    source: str
    line_numbers: Sequence[int]
    examples: Examples

    def parse_labels(self, parse: Callable[[object], Any], *, skip_bad_rows: bool) -> "TableExamples":
        """The examples whose labels ``parse`` accepts, with the values that it returns."""
        rows = zip(self.line_numbers, enumerate(self.examples.labels or ()), strict=True)
        lines, parsed, bad_rows = parse_rows(
            self.source, rows, lambda row: (row[0], parse(row[1])), skip_bad_rows=skip_bad_rows
        )
        if not parsed:
            raise DataError(f"{self.source}: no row has a label of the task; expected at least one")
        indices, values = zip(*parsed, strict=True)
        examples = replace(self.examples.select(indices), labels=values, bad_rows=self.examples.bad_rows + bad_rows)
        return replace(self, line_numbers=lines, examples=examples)


@dataclass(frozen=True)
class TrainTable:
    """The training rows of a task whose labels are in columns, and what they say about the task."""

    table: Table
    columns: Columns
    examples: TableExamples  # labels as in the file
    label_parser: LabelParser

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self.label_parser.task


def read_examples(
    table: Table,
    columns: Columns,
    *,
    skip_bad_rows: bool,
    excluded_labels: Sequence[str] = (),
    multi_label: bool = False,
) -> TableExamples:
    """Read the texts, pairs and labels of all rows, the labels as in the file.

    Args:
        table: the rows.
        columns: those to read; the table has them.
        skip_bad_rows: count malformed rows instead of stopping at the first.
        excluded_labels: labels of rows that are left out without counting as malformed.
        multi_label: whether a row may have any number of labels, including none.
    """
    text_columns = [(table.columns.index(name), name) for name in (columns.text, columns.pair) if name is not None]

    def parse(cells: Sequence[object]) -> tuple[list[str], object] | None:
        label = _raw_label(cells, table, columns, multi_label=multi_label)
        if label in excluded_labels:
            return None
        return [check_text(cells[index], name) for index, name in text_columns], label

    lines, rows, bad_rows = table.parse(parse, skip_bad_rows=skip_bad_rows)
    if not rows:
        reason = f"none of the {bad_rows} rows can be used" if bad_rows else "no rows below the header"
        raise DataError(f"{table.name}: {reason}; expected at least one")
    texts, *pairs = zip(*(texts for texts, _ in rows), strict=True)
    labels = tuple(label for _, label in rows) if columns.has_labels else None
    return TableExamples(table.name, lines, Examples(texts, pairs[0] if pairs else None, labels, bad_rows))


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


def read_texts(path: Path, config: DataConfig) -> Examples:
    """Texts, or pairs of texts, for prediction, of a table that `open_texts` opens."""
    return read_examples(*open_texts(path, config), skip_bad_rows=config.skip_bad_rows).examples


def open_texts(path: Path, config: DataConfig) -> tuple[Table, Columns]:
    """The table in a file, and its columns of texts: a ``.txt`` file has a text per line, others are as in training."""
    glue = glue_task(config.task) if config.task is not None else None
    if file_format(path) == ".txt":
        table = lines_table(check_readable(path))
        pair = config.pair_column or (glue.column_layouts[0].pair if glue else None)
        return table, check_columns(table, Columns("text", pair, None))
    return choose_columns(lambda header: open_table(path, header=header), config, glue, labelled=False)


def _raw_label(cells: Sequence[object], table: Table, columns: Columns, *, multi_label: bool) -> object:
    """The label as it is in the file, several as a tuple; None without a label column."""
    if columns.label_columns:
        values = {name: cells[table.columns.index(name)] for name in columns.label_columns}
        flags = {name: _FLAGS.get(label_text(value)) for name, value in values.items()}
        for name, flag in flags.items():
            if flag is None:
                raise ValueError(f"{values[name]!r} in label column {name!r}, expected 0 or 1")
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
