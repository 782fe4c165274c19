"""Rows of text files: lines in any Unicode encoding, TSV, CSV and JSON lines, each bad row with its line.

They are read with the standard library: the pandas reader of `datasets` turns the first column into an index if the
first row is too long, and reads lines inside a broken quoted cell as rows.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from limbert.errors import DataError, first_line

INVALID_UNICODE = "the bytes are not UTF-8; expected UTF-8 text"
_SNIFFED_BYTES = 1 << 16  # read to detect the encoding and the line ends
_MAX_CELL_CHARS = 2**31 - 1  # the csv module stops at 131,072 characters by default
_UNDECODED = re.compile("[\udc80-\udcff]")  # what surrogateescape leaves of bytes that are not UTF-8
RawRow = tuple[int, Any, str | None]  # line, content (empty on a blank line), what is wrong with it


def decode_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """The number and the text of each line, None if the bytes are not UTF-8.

    LF ends a line, or CR in a file without any LF.
    """
    encoding = ""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb", buffering=0) as raw:
            buffered = io.BufferedReader(raw, _SNIFFED_BYTES)  # type: ignore[type-var]
            encoding, newline = _detect_encoding(buffered.peek(_SNIFFED_BYTES))
            file = io.TextIOWrapper(buffered, encoding=encoding, errors="surrogateescape", newline=newline)
            for number, text in enumerate(file, start=1):
                yield number, None if _UNDECODED.search(text) else text
    except UnicodeDecodeError:
        raise DataError(f"{path}: the bytes are not {encoding.upper()}; save the file as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or first_line(error)}") from None


def _detect_encoding(head: bytes) -> tuple[str, str]:
    """The encoding and the line end of a file that begins with these bytes."""
    encoding = "utf-8-sig"
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # the former begins like UTF-16
        encoding = "utf-32"
    elif head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in head:  # UTF-16 without a mark: every other byte of ASCII characters is zero
        even, odd = head[::2].count(0), head[1::2].count(0)
        if max(even, odd) > len(head) // 8:
            encoding = "utf-16-le" if odd > even else "utf-16-be"
    sample = head[: len(head) // 4 * 4].decode(encoding, errors="ignore")
    return encoding, "\r" if "\r" in sample and "\n" not in sample else "\n"


def _drop_trailing_blanks(rows: Iterable[RawRow]) -> Iterator[RawRow]:
    blanks: list[RawRow] = []
    for row in rows:
        blanks.append(row)
        if row[1] or row[2] is not None:
            yield from blanks
            blanks.clear()


def read_lines(path: Path) -> Iterator[RawRow]:
    """The text of each line, ``""`` where it holds spaces only; no blank lines at the end."""

    def rows() -> Iterator[RawRow]:
        for number, text in decode_lines(path):
            line = (text or "").removesuffix("\n").removesuffix("\r")
            yield number, line if line.strip(" ") else "", INVALID_UNICODE if text is None else None

    return _drop_trailing_blanks(rows())


def read_tsv(path: Path) -> Iterator[RawRow]:
    """Tab-separated cells without quoting, as in GLUE: quote characters are text."""
    return ((line, text.split("\t") if text else [], problem) for line, text, problem in read_lines(path))


def read_csv(path: Path, *, delimiter: str = ",") -> Iterator[RawRow]:
    """Records as in RFC 4180, named by their first line; no blank ones at the end.

    A record that breaks the rules is read again with backslashes as escape characters. If that fails too, it is one
    bad row up to the line where its quotes are balanced: no line inside a quoted cell becomes a row of its own.
    """
    return _drop_trailing_blanks(_read_records(decode_lines(path), delimiter))


def _read_records(source: Iterator[tuple[int, str | None]], delimiter: str) -> Iterator[RawRow]:
    csv.field_size_limit(_MAX_CELL_CHARS)
    pending, taken = deque[tuple[int, str | None]](), list[tuple[int, str | None]]()

    def lines() -> Iterator[str]:
        taken.clear()
        while item := pending.popleft() if pending else next(source, None):
            taken.append(item)
            yield item[1] or "\n"

    def read_record(**options: Any) -> Any:
        """The cells (None at the end of the file), or the error; ``taken`` are the lines that were read."""
        try:
            return next(csv.reader(lines(), delimiter=delimiter, strict=True, **options), None)
        except csv.Error as error:
            pending.extendleft(reversed(taken))
            return error

    while (cells := read_record()) is not None:
        problem, quotes = None, 0
        if isinstance(error := cells, csv.Error):
            cells = read_record(escapechar="\\")
        if isinstance(cells, csv.Error):
            cells, problem = [], f"broken CSV ({error}); expected cells with closed quotes"
            for line in lines():
                quotes += line.count('"')
                if quotes % 2 == 0:
                    break
        undecoded = next((number for number, text in taken if text is None), None)
        yield (taken[0][0], cells, problem) if undecoded is None else (undecoded, [], INVALID_UNICODE)


def read_json(path: Path) -> Iterator[RawRow]:
    """The object of each line."""
    expected = "expected one JSON object per line"
    for number, line, problem in read_lines(path):
        value: Any = {}
        if problem is None:
            try:
                value = json.loads(line) if line else None
            except (ValueError, RecursionError) as error:
                value, problem = {}, f"broken JSON ({error}), {expected}"
            if not isinstance(value, dict):
                value, problem = {}, f"{f'JSON of type {type(value).__name__}' if line else 'a blank line'}, {expected}"
            elif "\\u" in line and (problem := surrogate_problem(value)) is not None:
                value = {}
        yield number, value, problem


def surrogate_problem(cells: Mapping[str, object]) -> str | None:
    """What is wrong if a cell has half of a surrogate pair, which JSON can write and UTF-8 cannot; else None."""
    for column, value in cells.items():
        try:
            json.dumps({column: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return f"invalid Unicode (half of a surrogate pair) in column {column!r}"
    return None


def format_csv_row(cells: Iterable[object]) -> str:
    """One line of a CSV file; None is an empty cell, and cells with any line end are quoted."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\r\n").writerow("" if cell is None else str(cell) for cell in cells)
    return file.getvalue().removesuffix("\r\n") + "\n"
