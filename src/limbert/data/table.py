"""Tables of rows from CSV, TSV, JSON lines, plain text, Parquet and `datasets`, and the parsing of their rows."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from limbert.data.text_rows import (
    INVALID_UNICODE,
    TableRow,
    drop_trailing_blanks,
    read_csv,
    read_json,
    read_lines,
    read_tsv,
)
from limbert.errors import DataError, first_line

FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_BATCH_ROWS = 1024  # Arrow rows converted to Python values at a time
_CSV_DELIMITERS = (";", "\t")  # of CSV whose header has no comma
_JSON_SAMPLE_ROWS = 100  # objects read to learn the columns of a JSON lines file

_Row = TypeVar("_Row")
_Parsed = TypeVar("_Parsed")


def parse_rows(
    name: str, rows: Iterable[tuple[int, _Row]], parse: Callable[[_Row], _Parsed | None], *, skip_bad_rows: bool
) -> tuple[list[int], list[_Parsed], int]:
    """The line numbers and parsed values of the usable rows, and the number of malformed ones.

    Args:
        name: of the file.
        rows: with their line numbers.
        parse: raises ValueError for a malformed row; returns None to leave a row out.
        skip_bad_rows: count malformed rows instead of stopping at the first.

    Raises:
        DataError: a malformed row (``FILE:LINE: what, expected``).
    """
    lines, values, bad_rows = list[int](), list[_Parsed](), 0
    for line, row in rows:
        try:
            value = parse(row)
        except ValueError as error:
            if not skip_bad_rows:
                raise DataError(f"{name}:{line}: {error}") from None
            bad_rows += 1
            continue
        if value is not None:
            lines.append(line)
            values.append(value)
    return lines, values, bad_rows


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

    def parse(
        self, parse_cells: Callable[[Sequence[object]], _Parsed | None], *, skip_bad_rows: bool
    ) -> tuple[list[int], list[_Parsed], int]:
        """`parse_rows` of the cells of all rows."""

        def parse(row: TableRow) -> _Parsed | None:
            if row.problem is not None:
                raise ValueError(row.problem)
            return parse_cells(row.cells)

        rows = ((row.line_number, row) for row in self.rows())
        return parse_rows(self.name, rows, parse, skip_bad_rows=skip_bad_rows)

    def rows_at(self, line_numbers: Iterable[int]) -> list[Sequence[object]]:
        """The cells of the rows at these lines, in the order of the table."""
        wanted = {*line_numbers}
        return [row.cells for row in self.rows() if row.line_number in wanted]

    def index_of(self, *names: str) -> int:
        """The index of the first of these columns that exists."""
        for name in names:
            if name in self.columns:
                return self.columns.index(name)
        raise self.error(f"no column {' or '.join(map(repr, names))}")

    def error(self, problem: str) -> DataError:
        """A DataError about the columns that names those that exist."""
        return DataError(f"{self.name}: {problem}; it has {', '.join(map(repr, self.columns))}")


def file_format(path: Path) -> str:
    """The suffix that says how to read a file: ``.csv`` for ``train.csv.gz``."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def check_readable(path: Path) -> Path:
    """The path, if it is a file with content that can be opened; else DataError."""
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
    """
    suffix = file_format(check_readable(path))
    if suffix == ".csv":
        return _csv_table(path, header=header)
    if suffix in (".jsonl", ".json"):
        return _json_lines_table(path, columns)
    if suffix == ".parquet":
        return parquet_table(path)
    if suffix in (".tsv", ".txt", ""):
        return _delimited_table(path, read_tsv, header=header)
    raise DataError(f"{path}: format {suffix!r} is not read; expected one of {', '.join(FORMATS)}")


def lines_table(path: Path) -> Table:
    """Plain text, one text per line, as one column named ``text``."""

    def rows() -> Iterator[TableRow]:
        for row in drop_trailing_blanks(read_lines(path)):
            yield row._replace(cells=row.cells or ("",))

    return Table(str(path), ("text",), rows)


def _csv_table(path: Path, *, header: bool) -> Table:
    first = next(read_csv(path), None) if header else None
    only_cell = str(first.cells[0]) if first is not None and len(first.cells) == 1 else ""
    delimiter = next((sign for sign in _CSV_DELIMITERS if sign in only_cell), ",")
    return _delimited_table(path, partial(read_csv, delimiter=delimiter), header=header)


def _delimited_table(path: Path, read_rows: Callable[[Path], Iterator[TableRow]], *, header: bool) -> Table:
    first = next(read_rows(path), TableRow(1, ()))
    if first.problem is not None or not first.cells:
        expected = "the names of the columns" if header else "the first row"
        raise DataError(f"{path}:1: {first.problem or 'the line is blank'}; expected {expected}")
    columns = tuple(str(cell) for cell in first.cells) if header else tuple(map(str, range(len(first.cells))))
    expected = f"expected {len(columns)} columns as in the {'header' if header else 'first line'}"

    def rows() -> Iterator[TableRow]:
        for row in drop_trailing_blanks(itertools.islice(read_rows(path), int(header), None)):
            if row.problem is None and len(row.cells) != len(columns):
                found = f"{len(row.cells)} columns" if row.cells else "a blank line"
                yield TableRow(row.line_number, (), f"{found}, {expected}")
            else:
                yield row

    return Table(str(path), columns, rows)


def _json_lines_table(path: Path, columns: tuple[str, ...] | None) -> Table:
    if columns is None:
        sample = (value for _, value, _ in itertools.islice(read_json(path), _JSON_SAMPLE_ROWS))
        columns = tuple(dict.fromkeys(key for value in sample if value for key in value))
    names = columns

    def scan() -> tuple[Table, int]:
        count, keys = 0, dict[str, None]()
        for _, value, _ in read_json(path):
            count += 1
            keys |= dict.fromkeys(value or ())
        return _json_lines_table(path, tuple(keys)), count

    def rows() -> Iterator[TableRow]:
        for line, value, problem in read_json(path):
            yield TableRow(line, () if value is None else [value.get(name) for name in names], problem)

    if not columns:
        first = next(rows(), TableRow(1, ()))
        problem = first.problem or "no keys, expected one JSON object per line with a text in it"
        raise DataError(f"{path}:{first.line_number}: {problem}")
    return Table(str(path), columns, rows, scan_columns=scan)


def parquet_table(path: Path, *, filesystem: Any = None) -> Table:
    """The rows of a Parquet file, numbered from 1, in a ``pyarrow.fs`` file system (None: this machine's)."""
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
    """The splits of a data set on the Hub, or in a local folder that `datasets` can load, by split name."""
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


def class_names_from_schema(schema: Any) -> dict[str, tuple[str, ...]]:
    """The class names that `datasets` stored in an Arrow schema, by column; ids in that column then become names."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    import datasets

    try:
        features = datasets.Features.from_arrow_schema(schema)
    except (KeyError, TypeError, ValueError):  # written by another program
        return {}
    classes = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    return {column: tuple(feature.names) for column, feature in classes.items() if hasattr(feature, "names")}


def column_values(column: Any, class_names: tuple[str, ...] | None = None) -> tuple[list[object], set[int]]:
    """The values of an Arrow column, and the indices of those that are invalid Unicode; the value is None there.

    Class ids are returned as their ``class_names``, if given.
    """

    def name_of(value: object) -> object:
        if isinstance(value, list):
            return [name_of(part) for part in value]
        return class_names[value] if isinstance(value, int) and class_names and 0 <= value < len(class_names) else None

    try:
        values = column.to_pylist()
        return values if class_names is None else [name_of(value) for value in values], set()
    except UnicodeDecodeError:
        invalid, values = set[int](), list[object]()
        for index, value in enumerate(column):
            try:
                values.append(value.as_py())
            except UnicodeDecodeError:
                invalid.add(index)
                values.append(None)
        return values, invalid
