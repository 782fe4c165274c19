"""Examples (texts with labels), and reading them from the rows of a table."""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from limbert.data.labels import label_text
from limbert.data.table import Table, parse_values
from limbert.data.tasks import Columns
from limbert.errors import DataError

CharSpan = tuple[int, int]  # of a text: index of its first character, and of the one after its last
_FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}  # in a label's own column
_COLUMNS = ("texts", "pairs", "labels", "word_spans", "groups")  # of `Examples`


@dataclass(frozen=True)
class ReferenceAnswers:
    """The accepted answers of a question: parts of its context, and the character where each begins."""

    texts: tuple[str, ...]
    answer_starts: tuple[int, ...]


class ParsedRow(NamedTuple):
    """One example as it is in the file; the label is not checked yet."""

    text: str
    pair: str | None = None
    label: Any = None
    word_spans: tuple[CharSpan, ...] | None = None
    group: str | None = None


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

    @classmethod
    def from_rows(cls, rows: Sequence[ParsedRow], bad_rows: int) -> "Examples":
        """The examples of at least one row; all rows have the same parts."""
        texts, *others = zip(*rows, strict=True)
        pairs, labels, word_spans, groups = (None if values[0] is None else values for values in others)
        return cls(texts, pairs, labels, bad_rows, word_spans, groups)

    def select(self, indices: Sequence[int]) -> "Examples":
        """The examples at these indices, in this order."""
        known = {name: values for name in _COLUMNS if (values := getattr(self, name)) is not None}
        chosen: dict[str, Any] = {name: tuple(map(values.__getitem__, indices)) for name, values in known.items()}
        return replace(self, **chosen)


RowParser = Callable[[Mapping[str, Any], Columns], ParsedRow]  # raises ValueError for a malformed row


@dataclass(frozen=True)
class TableExamples:
    """Examples read from a table, by line; their labels are as in the file until `parse_labels`."""

    source: str
    rows: Mapping[int, ParsedRow]
    bad_rows: int  # that were skipped

    @property
    def examples(self) -> Examples:
        """The examples without their lines."""
        return Examples.from_rows([*self.rows.values()], self.bad_rows)

    def parse_labels(self, parse: Callable[[Any], Any], *, skip_bad_rows: bool) -> "TableExamples":
        """The examples whose labels ``parse`` accepts, with the values that it returns."""
        rows, bad_rows = parse_values(
            self.source,
            self.rows.items(),
            lambda row: row._replace(label=parse(row.label)),
            skip_bad_rows=skip_bad_rows,
        )
        if not rows:
            raise DataError(f"{self.source}: no row has a label of the task; expected at least one")
        return TableExamples(self.source, rows, self.bad_rows + bad_rows)


def read_examples(
    table: Table, columns: Columns, parse: RowParser, *, skip_bad_rows: bool, excluded_labels: Sequence[str] = ()
) -> TableExamples:
    """Read the examples in all rows, the labels as in the file; rows with ``excluded_labels`` are no malformed ones."""
    rows, bad_rows = table.parse(lambda cells: parse(cells, columns), skip_bad_rows=skip_bad_rows)
    rows = {line: row for line, row in rows.items() if row.label not in excluded_labels}
    if not rows:
        reason = f"none of the {bad_rows} rows can be used" if bad_rows else "no rows below the header"
        raise DataError(f"{table.name}: {reason}; expected at least one")
    return TableExamples(table.name, rows, bad_rows)


def parse_text_row(cells: Mapping[str, Any], columns: Columns, *, multi_label: bool = False) -> ParsedRow:
    """A text, perhaps its pair, and its label, several as a tuple; ``multi_label`` allows a cell without any."""
    label = _raw_label(cells, columns, multi_label=multi_label)
    text = check_text(cells.get(str(columns.text)), str(columns.text))
    return ParsedRow(text, columns.pair and check_text(cells.get(columns.pair), columns.pair), label)


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
