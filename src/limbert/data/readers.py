"""Examples (texts with labels), and reading them from the rows of a table."""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from limbert.data.labels import LabelParser, label_text
from limbert.data.table import Table, parse_values
from limbert.data.tasks import Columns, Task
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
        known = {name: values for name in _COLUMNS if (values := getattr(self, name)) is not None}
        chosen: dict[str, Any] = {name: tuple(map(values.__getitem__, indices)) for name, values in known.items()}
        return replace(self, **chosen)


class ParsedRow(NamedTuple):
    """One example as it is in the file; the label is not checked yet."""

    text: str
    pair: str | None = None
    label: Any = None
    word_spans: tuple[CharSpan, ...] | None = None
    group: str | None = None


RowParser = Callable[[Mapping[str, Any], Columns], ParsedRow]  # raises ValueError for a malformed row


@dataclass(frozen=True)
class TableExamples:
    """Examples read from a table, with the line of each; their labels are as in the file until `parse_labels`."""

    source: str
    line_numbers: Sequence[int]
    examples: Examples

    def parse_labels(self, parse: Callable[[Any], Any], *, skip_bad_rows: bool) -> "TableExamples":
        """The examples whose labels ``parse`` accepts, with the values that it returns."""
        rows = zip(self.line_numbers, enumerate(self.examples.labels or ()), strict=True)
        lines, parsed, bad_rows = parse_values(
            self.source, rows, lambda row: (row[0], parse(row[1])), skip_bad_rows=skip_bad_rows
        )
        if not parsed:
            raise DataError(f"{self.source}: no row has a label of the task; expected at least one")
        indices, labels = zip(*parsed, strict=True)
        examples = replace(self.examples.select(indices), labels=labels, bad_rows=self.examples.bad_rows + bad_rows)
        return TableExamples(self.source, lines, examples)


@dataclass(frozen=True)
class TrainTable:
    """The training rows of a task, and what they say about it."""

    table: Table
    columns: Columns
    raw: TableExamples  # labels as in the file
    label_parser: LabelParser

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self.label_parser.task

    def examples(self, *, skip_bad_rows: bool) -> TableExamples:
        """The examples with labels of the task."""
        return self.raw.parse_labels(self.label_parser.parse, skip_bad_rows=skip_bad_rows)


def read_examples(
    table: Table, columns: Columns, parse: RowParser, *, skip_bad_rows: bool, excluded_labels: Sequence[str] = ()
) -> TableExamples:
    """Read the examples in all rows, the labels as in the file; rows with ``excluded_labels`` are no malformed ones."""

    def parse_included(cells: Mapping[str, Any]) -> ParsedRow | None:
        row = parse(cells, columns)
        return None if row.label in excluded_labels else row

    lines, rows, bad_rows = table.parse(parse_included, skip_bad_rows=skip_bad_rows)
    if not rows:
        reason = f"none of the {bad_rows} rows can be used" if bad_rows else "no rows below the header"
        raise DataError(f"{table.name}: {reason}; expected at least one")
    texts, *others = zip(*rows, strict=True)
    pairs, labels, word_spans, groups = (None if values[0] is None else values for values in others)
    return TableExamples(table.name, lines, Examples(texts, pairs, labels, bad_rows, word_spans, groups))


def parse_text_row(cells: Mapping[str, Any], columns: Columns, *, multi_label: bool = False) -> ParsedRow:
    """A text, perhaps its pair, and its label, several as a tuple; ``multi_label`` allows a cell without any."""
    label = _raw_label(cells, columns, multi_label=multi_label)
    text = check_text(cells.get(str(columns.text)), str(columns.text))
    pair = None if columns.pair is None else check_text(cells.get(columns.pair), columns.pair)
    return ParsedRow(text, pair, label)


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


def _raw_label(cells: Mapping[str, Any], columns: Columns, *, multi_label: bool) -> object:
    if columns.label_columns:
        flags = {name: _FLAGS.get(label_text(cells.get(name))) for name in columns.label_columns}
        for name, flag in flags.items():
            if flag is None:
                raise ValueError(f"{cells.get(name)!r} in label column {name!r}, expected 0 or 1")
        return tuple(name for name, flag in flags.items() if flag)
    if columns.label is None:
        return None
    value = _parse_list(cells.get(columns.label))
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
