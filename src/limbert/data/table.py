"""One way to walk through the rows of any file: header and cells, with the line that each row came from.

This file does not know what a text or a label is. A row that cannot be split into cells is handed on with a
``problem`` instead of being dropped, so that the reader decides whether to stop or to count it.
"""

import codecs
import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from limbert.errors import DataError

_OTHER_DELIMITERS = (";", "\t")  # of CSV whose header has no comma
_JSON_SAMPLE = 100  # objects looked at to learn the columns of a JSON lines file


class Row(NamedTuple):
    """One row: its line (in Parquet and Hub data its number, from 1), its cells, and what is wrong with it."""

    line: int
    cells: Sequence[object]
    problem: str | None = None


@dataclass(frozen=True)
class Table:
    """A named source of rows, each with one cell a column; ``rows()`` starts from the top every time."""

    name: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Row]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # column -> names, where the data says so
    search: Callable[[], tuple["Table", int]] | None = None  # what `walked` does where later rows may bring columns

    def walked(self) -> tuple["Table", int]:
        """The table with all its columns, and how many rows it has. JSON lines may tell of a key in their last row."""
        return (self, sum(1 for _ in self.rows())) if self.search is None else self.search()


def readable(path: Path) -> Path:
    """The path, if it is a file that can be opened.

    Raises:
        DataError: it is missing, a folder, or not readable.
    """
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise DataError(f"{path}: the file is empty; expected rows of data")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return path


def tsv_table(path: Path, *, header: bool) -> Table:
    """Tab-separated cells without quoting: quote characters are text. Without header, columns are "0", "1", ..."""
    return _cells_table(path, _split_tabs, header=header)


def csv_table(path: Path, *, header: bool) -> Table:
    """Comma-separated cells, quoted where they hold commas, quotes or newlines (RFC 4180).

    Where the header is a single cell that holds semicolons or tabs, these part the cells: so do spreadsheets write CSV
    in countries with a decimal comma.
    """
    first = next(_split_csv(path), None) if header else None
    alone = str(first.cells[0]) if first is not None and len(first.cells) == 1 else ""
    delimiter = next((sign for sign in _OTHER_DELIMITERS if sign in alone), ",")
    return _cells_table(path, partial(_split_csv, delimiter=delimiter), header=header)


def json_lines_table(path: Path, *, columns: tuple[str, ...] | None = None) -> Table:
    """One JSON object a line; the columns are those that are given, or else the keys of the first hundred objects."""
    if columns is None:
        sample = (value for _, value, _ in itertools.islice(_parse_json(path), _JSON_SAMPLE))
        columns = tuple(dict.fromkeys(key for value in sample if value for key in value))

    def search() -> tuple[Table, int]:
        count, keys = 0, dict[str, None]()
        for _, value, _ in _parse_json(path):
            count += 1
            keys |= dict.fromkeys(value or ())
        return json_lines_table(path, columns=tuple(keys)), count

    def rows() -> Iterator[Row]:
        for line, value, problem in _parse_json(path):
            if value is None:
                yield Row(line, (), problem)
            else:
                yield Row(line, [value.get(column) for column in columns])

    if not columns:
        first = next(rows(), None) or Row(1, ())
        problem = first.problem or "no keys, expected one JSON object a line with a text in it"
        raise DataError(f"{path}:{first.line}: {problem}")
    return Table(str(path), columns, rows, search=search)


def lines_table(path: Path) -> Table:
    """Plain text, one text a line, as one column named ``text``."""

    def rows() -> Iterator[Row]:
        for line, cells, problem in _without_last_blanks(_whole_lines(path)):
            yield Row(line, cells or ("",), problem)

    return Table(str(path), ("text",), rows)


def _cells_table(path: Path, split: Callable[[Path], Iterator[Row]], *, header: bool) -> Table:
    first = next(split(path), None)
    if first is None or first.problem is not None or not first.cells:
        problem = first.problem if first and first.problem else "the line is blank"
        raise DataError(f"{path}:1: {problem}; expected {'the names of the columns' if header else 'the first row'}")
    columns = tuple(str(cell) for cell in first.cells) if header else tuple(map(str, range(len(first.cells))))
    model = "header" if header else "first line"

    def rows() -> Iterator[Row]:
        for row in _without_last_blanks(itertools.islice(split(path), int(header), None)):
            if row.problem is None and len(row.cells) != len(columns):
                found = f"{len(row.cells)} columns" if row.cells else "a blank line"
                yield Row(row.line, (), f"{found}, expected {len(columns)} columns as in the {model}")
            else:
                yield row

    return Table(str(path), columns, rows)


def _without_last_blanks(rows: Iterable[Row]) -> Iterator[Row]:
    """All rows but the blank ones (no cells, no problem) at the end."""
    blanks: list[Row] = []
    for row in rows:
        if not row.cells and row.problem is None:
            blanks.append(row)
        else:
            yield from blanks
            blanks.clear()
            yield row


def _lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """Numbered lines with their ends; None for bytes that are not UTF-8. Only LF ends a line: other breaks are text."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield number, (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode("utf-8")
            except UnicodeDecodeError:
                yield number, None


NOT_UTF8 = "the bytes are not UTF-8; expected UTF-8 text"


def _whole_lines(path: Path) -> Iterator[Row]:
    for number, text in _lines(path):
        if text is None:
            yield Row(number, (), NOT_UTF8)
        else:
            text = text.removesuffix("\n").removesuffix("\r")
            yield Row(number, (text,) if text.strip(" ") else ())


def _split_tabs(path: Path) -> Iterator[Row]:
    for line, cells, problem in _whole_lines(path):
        yield Row(line, str(cells[0]).split("\t") if cells else (), problem)


def _split_csv(path: Path, *, delimiter: str = ",") -> Iterator[Row]:
    undecodable: list[int] = []

    def decoded() -> Iterator[str]:
        for number, text in _lines(path):
            if text is None:
                undecodable.append(number)
            yield "\n" if text is None else text

    reader = csv.reader(decoded(), delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1  # a quoted cell may run over several lines: the row is named by its first
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(start, (), f"broken CSV ({error}); expected cells with closed quotes")
            continue
        if undecodable:
            yield Row(undecodable[0], (), NOT_UTF8)
            undecodable.clear()
        else:
            yield Row(start, cells)


def half_character(values: Mapping[str, object]) -> str | None:
    """The first column with one half of a surrogate pair, which JSON can write and no encoding can; else None."""
    for column, value in values.items():
        try:
            json.dumps({column: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return column
    return None


def _parse_json(path: Path) -> Iterator[tuple[int, dict[str, object] | None, str | None]]:
    for line, cells, problem in _without_last_blanks(_whole_lines(path)):
        value = None
        if problem is None:
            try:
                value = json.loads(str(cells[0])) if cells else None
                if not isinstance(value, dict):
                    found = "a blank line" if not cells else f"JSON of type {type(value).__name__}"
                    value, problem = None, f"{found}, expected one JSON object a line"
                elif (column := half_character(value)) is not None:
                    value, problem = None, f"half a character in column {column!r}, expected whole ones"
            except (ValueError, RecursionError) as error:
                problem = f"broken JSON ({error}), expected one JSON object a line"
        yield line, value, problem
