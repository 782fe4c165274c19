"""Examples, the texts and labels that everything else works on, and how they are read from the rows of a table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbert.data.arrow import parquet_table
from limbert.data.labels import LabelReader, label_text
from limbert.data.table import Table, csv_table, json_lines_table, readable, tsv_table
from limbert.data.tasks import Columns
from limbert.errors import DataError

FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


Span = tuple[int, int]  # characters of a text: the first, and the one after the last


@dataclass(frozen=True)
class Answers:
    """What is accepted as the answer of a question: pieces of its context, and where each begins."""

    texts: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Examples:
    """Texts, their second texts if ``pairs`` is set, and labels if they are known.

    A label is a class id or a score; of a multi-label task the ids of all classes that hold, rising; of token
    classification the class id of each word; of a question its `Answers`.
    """

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[Any, ...] | None
    bad_rows: int = 0  # malformed rows that were skipped
    words: tuple[tuple[Span, ...], ...] | None = None  # for token classification: where each text's words are
    groups: tuple[str, ...] | None = None  # what must not be parted by a split, such as the article of a question

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Sequence[int]) -> "Examples":
        """The examples at these places, in this order."""
        return Examples(
            texts=tuple(self.texts[index] for index in indices),
            pairs=None if self.pairs is None else tuple(self.pairs[index] for index in indices),
            labels=None if self.labels is None else tuple(self.labels[index] for index in indices),
            bad_rows=self.bad_rows,
            words=None if self.words is None else tuple(self.words[index] for index in indices),
            groups=None if self.groups is None else tuple(self.groups[index] for index in indices),
        )


@dataclass(frozen=True)
class RawExamples:
    """Examples whose labels still stand as in the file, with the line of each for messages."""

    source: str
    lines: list[int]
    texts: list[str]
    pairs: list[str] | None
    labels: list[object] | None
    bad_rows: int = 0

    def append(self, line: int, text: str, pair: str, label: object) -> None:
        """Add one row; its pair and label only where the examples have them."""
        self.lines.append(line)
        self.texts.append(text)
        if self.pairs is not None:
            self.pairs.append(pair)
        if self.labels is not None:
            self.labels.append(label)


def open_table(path: Path, *, header: bool = True, columns: tuple[str, ...] | None = None) -> Table:
    """The table in a file, by the end of its name; one of another name, or none, is read as TSV.

    Args:
        path: of the file.
        header: whether the first line of CSV and TSV names the columns.
        columns: those of JSON lines, where they are known; None learns them from the first objects.

    Raises:
        DataError: the file is missing, unreadable or empty, or of a format that is not read.
    """
    kind = readable(path).suffix.lower()
    if kind == ".csv":
        return csv_table(path, header=header)
    if kind in (".jsonl", ".json"):
        return json_lines_table(path, columns=columns)
    if kind == ".parquet":
        return parquet_table(path)
    if kind in (".tsv", ".txt", ""):
        return tsv_table(path, header=header)
    raise DataError(f"{path}: format {kind!r} is not read; expected one of {', '.join(FORMATS)}")


def read_rows(
    table: Table,
    columns: Columns,
    *,
    skip_bad_rows: bool,
    unlabelled: Sequence[str] = (),
    several_labels: bool = False,
) -> RawExamples:
    """Read the texts, pairs and raw labels of all rows.

    Args:
        table: where the rows come from.
        columns: those to read; checked to be there.
        skip_bad_rows: count malformed rows and go on, instead of stopping at the first.
        unlabelled: labels of rows that are left out without counting as malformed.
        several_labels: whether a row may have any number of labels, none among them.

    Raises:
        DataError: a malformed row (``FILE:LINE: what, expected``), or no row at all.
    """
    raw = RawExamples(table.name, [], [], None if columns.pair is None else [], None if columns.label is None else [])
    text_at, pair_at, label_at = (
        None if name is None else table.columns.index(name) for name in (columns.text, columns.pair, columns.label)
    )
    bad_rows = 0
    for row in table.rows():
        try:
            if row.problem is not None:
                raise ValueError(row.problem)
            label = _label(row.cells, label_at, table, several=several_labels)
            if label in unlabelled:
                continue
            text, pair = (
                "" if place is None else checked_text(row.cells[place], table.columns[place])
                for place in (text_at, pair_at)
            )
        except ValueError as error:
            bad_rows += _refuse(f"{table.name}:{row.line}: {error}", skip=skip_bad_rows)
            continue
        raw.append(row.line, text, pair, label)
    if not raw.texts:
        found = f"none of the {bad_rows} rows can be used" if bad_rows else "no rows below the header"
        raise DataError(f"{table.name}: {found}; expected at least one")
    return replace(raw, bad_rows=bad_rows)


def checked_text(value: object, column: str) -> str:
    """What stands in a cell of this column, if it is a text.

    Raises:
        ValueError: it is none, or blank; the message says so of the column.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"no text in column {column!r}, expected some")
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} in column {column!r}, expected text")
    return value


def with_labels(raw: RawExamples, reader: LabelReader, *, skip_bad_rows: bool) -> Examples:
    """The examples with their labels as class ids or scores.

    Raises:
        DataError: a label that the task does not know (``FILE:LINE: what, expected``), or no usable row.
    """
    assert raw.labels is not None, "read with a label column"
    kept: list[int] = []
    labels: list[Any] = []
    for place, value in enumerate(raw.labels):
        try:
            labels.append(reader.read(value))
        except ValueError as error:
            _refuse(f"{raw.source}:{raw.lines[place]}: {error}", skip=skip_bad_rows)
            continue
        kept.append(place)
    if not kept:
        raise DataError(f"{raw.source}: no row has a label of the task; expected at least one")
    bad_rows = raw.bad_rows + len(raw.texts) - len(kept)
    return replace(without_labels(raw).select(kept), labels=tuple(labels), bad_rows=bad_rows)


def without_labels(raw: RawExamples) -> Examples:
    """The examples for prediction."""
    return Examples(tuple(raw.texts), None if raw.pairs is None else tuple(raw.pairs), None, raw.bad_rows)


def _refuse(message: str, *, skip: bool) -> int:
    """One bad row more, or the error that it is."""
    if not skip:
        raise DataError(message)
    return 1


def _label(cells: Sequence[object], place: int | None, table: Table, *, several: bool) -> object:
    """The label in the cell as it stands there, a list as a tuple; None where there is no such column."""
    if place is None:
        return None
    value = cells[place]
    if isinstance(value, list) and all(isinstance(part, (str, int, float)) for part in value):
        return _labels(value, table.columns[place])
    if several and isinstance(value, str) and not value.strip():
        return ()
    if value is None or value != value or not label_text(value):  # NaN is the only value that is not itself
        raise ValueError(f"no label in column {table.columns[place]!r}, expected one")
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"{type(value).__name__} in column {table.columns[place]!r}, expected a name or a number")
    return value


def _labels(values: list[str | int | float], column: str) -> tuple[object, ...]:
    """The labels that hold; a list with a number for *every* class would be read as the classes 0 and 1."""
    numbers = [value for value in values if not isinstance(value, str)]
    if len({*numbers}) < len(numbers) or any(isinstance(value, (bool, float)) for value in numbers):
        raise ValueError(f"a 0 or 1 for each class in column {column!r}, expected a list of the labels that hold")
    return tuple(values)
