"""Tables of rows read from CSV, TSV, JSON lines, plain text, Parquet and `datasets`, each bad row with its line.

Text files are read with ``csv`` and ``json`` of the standard library. The pandas reader of `datasets` turns the first
column into an index if the first row is too long, and reads lines inside a broken quoted cell as rows.
"""

import codecs
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from limbert.errors import DataError, first_line

FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
INVALID_UNICODE = "the bytes are not UTF-8; expected UTF-8 text"
_BATCH_ROWS = 1024  # Arrow rows converted to Python values at a time
_SNIFFED_BYTES = 1 << 16  # read to detect the encoding and the line ends
_MAX_CELL_CHARS = 2**31 - 1  # the csv module stops at 131,072 characters by default
_CSV_DELIMITERS = (";", "\t")  # of CSV whose header has no comma
_JSON_SAMPLE_ROWS = 100  # objects read to learn the columns of a JSON lines file
_UNDECODED = re.compile("[\udc80-\udcff]")  # what surrogateescape leaves of bytes that are not UTF-8


class TableRow(NamedTuple):
    """One row: its line (its number from 1 in Parquet and Hub data), its cells, and what is wrong with it."""

    line_number: int
    cells: Sequence[object]
    problem: str | None = None


@dataclass(frozen=True)
class Table:
    """A named source of rows, each with one cell per column; ``rows()`` starts from the top every time."""

    name: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[TableRow]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by column, where the data has them
    scan_columns: Callable[[], tuple["Table", int]] | None = None  # `with_all_columns`, where later rows may add some

    def with_all_columns(self) -> tuple["Table", int]:
        """The table with all its columns, and its number of rows; the last JSON line may bring a new key."""
        return (self, sum(1 for _ in self.rows())) if self.scan_columns is None else self.scan_columns()


def file_format(path: Path) -> str:
    """The suffix that says how to read a file: ``.csv`` for ``train.csv.gz``."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def check_readable(path: Path) -> Path:
    """The path, if it is a file with content that can be opened.

    Raises:
        DataError: the file is missing, empty, a folder, or not readable.
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


def open_table(path: Path, *, header: bool = True, columns: tuple[str, ...] | None = None) -> Table:
    """The table in a file by its suffix, gzipped or not; a file with no suffix is read as TSV.

    Args:
        path: of the file.
        header: whether the first line of CSV and TSV names the columns; if not they are ``0``, ``1``, ...
        columns: those of JSON lines, if known; None takes the keys of the first objects.

    Raises:
        DataError: the file is missing, unreadable, empty or of an unknown format.
    """
    suffix = file_format(check_readable(path))
    if suffix == ".csv":
        return _csv_table(path, header=header)
    if suffix in (".jsonl", ".json"):
        return _json_lines_table(path, columns)
    if suffix == ".parquet":
        return parquet_table(path)
    if suffix in (".tsv", ".txt", ""):
        return _delimited_table(path, _tsv_rows, header=header)
    raise DataError(f"{path}: format {suffix!r} is not read; expected one of {', '.join(FORMATS)}")


def lines_table(path: Path) -> Table:
    """Plain text, one text per line, as one column named ``text``."""

    def rows() -> Iterator[TableRow]:
        for line, cells, problem in _drop_trailing_blanks(_line_rows(path)):
            yield TableRow(line, cells or ("",), problem)

    return Table(str(path), ("text",), rows)


def _csv_table(path: Path, *, header: bool) -> Table:
    first = next(_csv_rows(path), None) if header else None
    alone = str(first.cells[0]) if first is not None and len(first.cells) == 1 else ""
    delimiter = next((sign for sign in _CSV_DELIMITERS if sign in alone), ",")
    return _delimited_table(path, partial(_csv_rows, delimiter=delimiter), header=header)


def _delimited_table(path: Path, read_rows: Callable[[Path], Iterator[TableRow]], *, header: bool) -> Table:
    first = next(read_rows(path), TableRow(1, ()))
    if first.problem is not None or not first.cells:
        expected = "the names of the columns" if header else "the first row"
        raise DataError(f"{path}:1: {first.problem or 'the line is blank'}; expected {expected}")
    columns = tuple(str(cell) for cell in first.cells) if header else tuple(map(str, range(len(first.cells))))
    expected = f"expected {len(columns)} columns as in the {'header' if header else 'first line'}"

    def rows() -> Iterator[TableRow]:
        for row in _drop_trailing_blanks(itertools.islice(read_rows(path), int(header), None)):
            if row.problem is None and len(row.cells) != len(columns):
                found = f"{len(row.cells)} columns" if row.cells else "a blank line"
                yield TableRow(row.line_number, (), f"{found}, {expected}")
            else:
                yield row

    return Table(str(path), columns, rows)


def _drop_trailing_blanks(rows: Iterable[TableRow]) -> Iterator[TableRow]:
    blanks: list[TableRow] = []
    for row in rows:
        blanks.append(row)
        if row.cells or row.problem is not None:
            yield from blanks
            blanks.clear()


def _numbered_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """Lines with their ends; None for bytes that are not UTF-8. LF ends a line, or CR in a file without any LF."""
    encoding = ""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb", buffering=0) as raw:
            file = io.BufferedReader(raw, _SNIFFED_BYTES)  # type: ignore[type-var]
            encoding, newline = _detect_encoding(file.peek(_SNIFFED_BYTES))
            text = io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline=newline)
            for number, line in enumerate(text, 1):
                yield number, None if _UNDECODED.search(line) else line
    except UnicodeDecodeError:
        raise DataError(f"{path}: the bytes are not {encoding.upper()}; save the file as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or first_line(error)}") from None


def _detect_encoding(head: bytes) -> tuple[str, str]:
    """The encoding and the line end of a file that begins with these bytes."""
    encoding = "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in head:  # UTF-16 without a mark: every other byte of ASCII characters is zero
        even, odd = head[::2].count(0), head[1::2].count(0)
        if max(even, odd) > len(head) // 8:
            encoding = "utf-16-le" if odd > even else "utf-16-be"
    sample = head[: len(head) // 2 * 2].decode(encoding, errors="ignore")
    return encoding, "\r" if "\r" in sample and "\n" not in sample else "\n"


def _line_rows(path: Path) -> Iterator[TableRow]:
    for number, text in _numbered_lines(path):
        if text is None:
            yield TableRow(number, (), INVALID_UNICODE)
        else:
            text = text.removesuffix("\n").removesuffix("\r")
            yield TableRow(number, (text,) if text.strip(" ") else ())


def _tsv_rows(path: Path) -> Iterator[TableRow]:
    """Tab-separated cells without quoting, as in GLUE: quote characters are text."""
    for line, cells, problem in _line_rows(path):
        yield TableRow(line, str(cells[0]).split("\t") if cells else (), problem)


def _csv_rows(path: Path, *, delimiter: str = ",") -> Iterator[TableRow]:
    """Records as in RFC 4180, named by their first line.

    A record that breaks the rules is read again with backslashes as escape characters. If that fails too, it is one
    bad row up to the line where its quotes are balanced: no line inside a quoted cell becomes a row of its own.
    """
    csv.field_size_limit(_MAX_CELL_CHARS)
    source = _numbered_lines(path)
    pending: deque[tuple[int, str | None]] = deque()
    used: list[tuple[int, str | None]] = []

    def lines() -> Iterator[str]:
        while (item := pending.popleft() if pending else next(source, None)) is not None:
            used.append(item)
            yield item[1] or "\n"

    def unread() -> Iterator[str]:
        pending.extendleft(reversed(used))
        used.clear()
        return lines()

    while True:
        used.clear()
        problem, cells = None, list[str]()
        try:
            cells = next(csv.reader(lines(), delimiter=delimiter, strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            try:
                cells = next(csv.reader(unread(), delimiter=delimiter, strict=True, escapechar="\\"))
            except csv.Error:
                problem = f"broken CSV ({error}); expected cells with closed quotes"
                quotes = 0
                for line in unread():
                    quotes += line.count('"')
                    if quotes % 2 == 0:
                        break
        undecodable = next((number for number, text in used if text is None), None)
        if undecodable is not None:
            yield TableRow(undecodable, (), INVALID_UNICODE)
        else:
            yield TableRow(used[0][0], () if problem else cells, problem)


def find_lone_surrogate(values: Mapping[str, object]) -> str | None:
    """The first column with half of a surrogate pair, which JSON can write and UTF-8 cannot; else None."""
    for column, value in values.items():
        try:
            json.dumps({column: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return column
    return None


def _json_lines_table(path: Path, columns: tuple[str, ...] | None) -> Table:
    if columns is None:
        sample = (value for _, value, _ in itertools.islice(_json_objects(path), _JSON_SAMPLE_ROWS))
        columns = tuple(dict.fromkeys(key for value in sample if value for key in value))
    names = columns

    def scan() -> tuple[Table, int]:
        count, keys = 0, dict[str, None]()
        for _, value, _ in _json_objects(path):
            count += 1
            keys |= dict.fromkeys(value or ())
        return _json_lines_table(path, tuple(keys)), count

    def rows() -> Iterator[TableRow]:
        for line, value, problem in _json_objects(path):
            yield TableRow(line, () if value is None else [value.get(name) for name in names], problem)

    if not columns:
        first = next(rows(), TableRow(1, ()))
        problem = first.problem or "no keys, expected one JSON object per line with a text in it"
        raise DataError(f"{path}:{first.line_number}: {problem}")
    return Table(str(path), columns, rows, scan_columns=scan)


def _json_objects(path: Path) -> Iterator[tuple[int, dict[str, object] | None, str | None]]:
    for line, cells, problem in _drop_trailing_blanks(_line_rows(path)):
        value = None
        if problem is None:
            try:
                value = json.loads(str(cells[0])) if cells else None
                if not isinstance(value, dict):
                    found = "a blank line" if not cells else f"JSON of type {type(value).__name__}"
                    value, problem = None, f"{found}, expected one JSON object per line"
                elif (column := find_lone_surrogate(value)) is not None:
                    value, problem = None, f"invalid Unicode (half of a surrogate pair) in column {column!r}"
            except (ValueError, RecursionError) as error:
                problem = f"broken JSON ({error}), expected one JSON object per line"
        yield line, value, problem


def parquet_table(path: Path, *, filesystem: Any = None) -> Table:
    """The rows of a Parquet file, numbered from 1.

    Args:
        path: of the file.
        filesystem: the ``pyarrow.fs`` file system that holds it; None is this machine's.

    Raises:
        DataError: the file is no readable Parquet.
    """
    import pyarrow
    import pyarrow.parquet

    def batches() -> Iterator[Any]:
        try:
            with pyarrow.parquet.ParquetFile(str(path), filesystem=filesystem) as file:
                yield from file.iter_batches(_BATCH_ROWS)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: broken Parquet ({first_line(error)})") from None

    try:
        schema = pyarrow.parquet.read_schema(str(path), filesystem=filesystem)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: no Parquet file ({first_line(error)})") from None
    return _arrow_table(str(path), schema, batches)


def dataset_tables(name: str, configuration: str | None = None) -> dict[str, Table]:
    """The splits of a data set on the Hub, or in a local folder that `datasets` can load, by split name.

    Raises:
        DataError: there is no such data set or configuration, or it could not be fetched.
    """
    import datasets
    import pyarrow

    try:
        if Path(name, "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(name)
        else:
            splits = datasets.load_dataset(name, configuration)
    except (OSError, ValueError, datasets.exceptions.DatasetsError, pyarrow.ArrowException) as error:
        which = f"{name!r}" + (f" (configuration {configuration!r})" if configuration else "")
        raise DataError(f"{which} is no local folder and no data set of the Hub: {first_line(error)}") from None
    return {str(split): dataset_table(f"{name} ({split})", dataset) for split, dataset in splits.items()}


def dataset_table(name: str, dataset: Any) -> Table:
    """The rows of a ``datasets.Dataset``; class ids of a ``ClassLabel`` column become names."""
    view = dataset.with_format("arrow")
    return _arrow_table(name, dataset.features.arrow_schema, lambda: view.iter(_BATCH_ROWS))


def _arrow_table(name: str, schema: Any, batches: Callable[[], Iterable[Any]]) -> Table:
    class_names = class_names_from_schema(schema)

    def rows() -> Iterator[TableRow]:
        number = itertools.count(1)
        for batch in batches():
            parsed = [column_values(batch.column(column), class_names.get(column)) for column in schema.names]
            invalid = {row for _, rows in parsed for row in rows}
            for row, cells in enumerate(zip(*(values for values, _ in parsed), strict=True)):
                yield TableRow(next(number), cells, INVALID_UNICODE if row in invalid else None)

    return Table(name, tuple(schema.names), rows, class_names)


def class_names_from_schema(schema: Any) -> Mapping[str, tuple[str, ...]]:
    """The class names that `datasets` stored in an Arrow schema, by column; ids in that column then become names."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = {column: _label_names(feature) for column, feature in features.items()}
        return {column: labels for column, labels in names.items() if labels is not None}
    except (KeyError, TypeError, ValueError):  # written by another program
        return {}


def _label_names(feature: Any) -> tuple[str, ...] | None:
    """The names of a ``ClassLabel``, or of a list of them in any of the forms that `datasets` has written."""
    if isinstance(feature, list) and len(feature) == 1:
        return _label_names(feature[0])
    if not isinstance(feature, dict):
        return None
    return tuple(feature["names"]) if feature.get("_type") == "ClassLabel" else _label_names(feature.get("feature"))


def column_values(column: Any, class_names: tuple[str, ...] | None = None) -> tuple[list[object], set[int]]:
    """The values of an Arrow column, and the indices of those that are invalid Unicode; the value is None there.

    Args:
        column: an array, whole or in chunks.
        class_names: for a column of class ids, which are returned as names.
    """
    try:
        return _ids_to_names(column.to_pylist(), class_names), set()
    except UnicodeDecodeError:
        invalid, values = set(), []
        for index, value in enumerate(column):
            try:
                values.append(value.as_py())
            except UnicodeDecodeError:
                invalid.add(index)
                values.append(None)
        return values, invalid


def _ids_to_names(values: list[object], class_names: tuple[str, ...] | None) -> list[object]:
    def name_of(value: object) -> object:
        if isinstance(value, list):
            return [name_of(part) for part in value]
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else None

    names = class_names or ()
    return values if class_names is None else [name_of(value) for value in values]
