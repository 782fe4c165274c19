"""Tables of rows from CSV, TSV, JSON lines, plain text, Parquet and `datasets`, and the parsing of their rows."""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from limbert.data import text_rows
from limbert.errors import DataError, first_line

FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_BATCH_ROWS = 1024  # Arrow rows converted to Python values at a time
_CSV_DELIMITERS = (";", "\t")  # of CSV whose header has no comma
_JSON_SAMPLE_ROWS = 100  # objects read to learn the columns of a JSON lines file

_Value = TypeVar("_Value")
_Parsed = TypeVar("_Parsed")


class TableRow(NamedTuple):
    """One row: its line (its number from 1 in Parquet and Hub data), its cells by column, and what is wrong with it."""

    line_number: int
    cells: dict[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class Table:
    """A named source of rows; ``rows()`` starts from the top every time. Rows of JSON may lack columns or have more."""

    name: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[TableRow]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of columns whose ids the data set names
    without_header: Callable[[], "Table"] | None = None  # CSV and TSV: the same file with the columns ``0``, ``1``, ...

    def parse(
        self, parse: Callable[[dict[str, Any]], _Parsed], *, skip_bad_rows: bool
    ) -> tuple[dict[int, _Parsed], int]:
        """`parse_values` of the cells of all rows."""

        def parse_row(row: TableRow) -> _Parsed:
            if row.problem is not None:
                raise ValueError(row.problem)
            return parse(row.cells)

        rows = ((row.line_number, row) for row in self.rows())
        return parse_values(self.name, rows, parse_row, skip_bad_rows=skip_bad_rows)

    def rows_at(self, line_numbers: Collection[int]) -> list[dict[str, Any]]:
        """The cells of the rows at these lines, in the order of the table."""
        return [row.cells for row in self.rows() if row.line_number in line_numbers]


def parse_values(
    name: str, values: Iterable[tuple[int, _Value]], parse: Callable[[_Value], _Parsed], *, skip_bad_rows: bool
) -> tuple[dict[int, _Parsed], int]:
    """The results of ``parse`` by line number, and the number of values that it refuses with a ValueError.

    Raises:
        DataError: ``FILE:LINE: what, expected`` for the first of them, unless bad rows are skipped.
    """
    parsed, bad_rows = dict[int, _Parsed](), 0
    for line, value in values:
        try:
            parsed[line] = parse(value)
        except ValueError as error:
            if not skip_bad_rows:
                raise DataError(f"{name}:{line}: {error}") from None
            bad_rows += 1
    return parsed, bad_rows


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


def open_table(path: Path, *, has_header: bool = True) -> Table:
    """The table in a file by its suffix, gzipped or not; a file with no suffix is read as TSV.

    Columns of CSV and TSV without a header are named ``0``, ``1``, and so on.
    """
    suffix = file_format(check_readable(path))
    if suffix in (".jsonl", ".json"):
        return _json_table(path)
    if suffix == ".parquet":
        return parquet_table(path)
    if suffix not in (".csv", ".tsv", ".txt", ""):
        raise DataError(f"{path}: format {suffix!r} is not read; expected one of {', '.join(FORMATS)}")
    read: Callable[[Path], Iterator[text_rows.RawRow]] = text_rows.read_tsv
    if suffix == ".csv":
        read = partial(text_rows.read_csv, delimiter=_csv_delimiter(path) if has_header else ",")
    _, first, problem = next(read(path), (1, [], None))
    if problem is not None or not first:
        raise DataError(f"{path}:1: {problem or 'the line is blank'}; expected the names of the columns")
    columns = tuple(first) if has_header else tuple(map(str, range(len(first))))
    expected = f"expected {len(columns)} columns as in the {'header' if has_header else 'first line'}"

    def rows() -> Iterator[TableRow]:
        for line, cells, problem in itertools.islice(read(path), int(has_header), None):
            if problem is None and len(cells) != len(columns):
                problem = f"{f'{len(cells)} columns' if cells else 'a blank line'}, {expected}"
            yield TableRow(line, {} if problem else dict(zip(columns, cells, strict=True)), problem)

    headless = partial(open_table, path, has_header=False) if has_header else None
    return Table(str(path), columns, rows, without_header=headless)


def _csv_delimiter(path: Path) -> str:
    _, header, _ = next(text_rows.read_csv(path), (1, [], None))
    only = header[0] if len(header) == 1 else ""
    return next((sign for sign in _CSV_DELIMITERS if sign in only), ",")


def lines_table(path: Path) -> Table:
    """Plain text, one text per line, as one column named ``text``."""
    check_readable(path)
    read = text_rows.read_lines
    return Table(str(path), ("text",), lambda: (TableRow(line, {"text": text}, bad) for line, text, bad in read(path)))


def _json_table(path: Path) -> Table:
    sample = [*itertools.islice(text_rows.read_json(path), _JSON_SAMPLE_ROWS)]
    columns = tuple(dict.fromkeys(key for _, value, _ in sample for key in value))
    if not columns:
        line, _, problem = sample[0] if sample else (1, {}, None)
        problem = problem or "no keys, expected one JSON object per line with a text in it"
        raise DataError(f"{path}:{line}: {problem}")
    return Table(str(path), columns, lambda: itertools.starmap(TableRow, text_rows.read_json(path)))


def parquet_table(path: Path, *, filesystem: Any = None) -> Table:
    """The rows of a Parquet file, numbered from 1, in a ``pyarrow.fs`` file system (None: this machine's)."""
    from pyarrow.parquet import ParquetFile, read_schema

    def batches() -> Iterator[Any]:
        with _parquet_errors(path), ParquetFile(str(path), filesystem=filesystem) as file:
            yield from file.iter_batches(_BATCH_ROWS)

    with _parquet_errors(path):
        schema = read_schema(str(path), filesystem=filesystem)
    return _arrow_table(str(path), schema, batches)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        message = f"not a valid Parquet file ({first_line(error)}); write it again or use CSV or JSONL"
        raise DataError(f"{path}: {message}") from None


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
        message = f"{which} is neither a local folder nor a Hub data set: {first_line(error)}; check the name"
        raise DataError(message) from None
    return {str(split): dataset_table(f"{name} ({split})", dataset) for split, dataset in splits.items()}


def dataset_table(name: str, dataset: Any) -> Table:
    """The rows of a ``datasets.Dataset``; class ids of a ``ClassLabel`` column become names."""
    view = dataset.with_format("arrow")
    return _arrow_table(name, dataset.features.arrow_schema, lambda: view.iter(_BATCH_ROWS))


def _arrow_table(name: str, schema: Any, batches: Callable[[], Iterable[Any]]) -> Table:
    return Table(name, tuple(schema.names), lambda: arrow_rows(batches(), schema), _class_names(schema))


def arrow_rows(batches: Iterable[Any], schema: Any, *, start: int = 0) -> Iterator[TableRow]:
    """The rows of Arrow batches, the first with number ``start + 1``; class ids become names."""
    class_names = _class_names(schema)

    def name_of(value: object, names: tuple[str, ...]) -> object:
        if isinstance(value, list):
            return [name_of(part, names) for part in value]
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else None

    rows = itertools.chain.from_iterable(map(_decode_rows, batches))
    for number, cells in enumerate(rows, start + 1):
        for column, names in class_names.items() if cells else ():
            cells[column] = name_of(cells[column], names)
        yield TableRow(number, cells or {}, text_rows.INVALID_UNICODE if cells is None else None)


def _decode_rows(batch: Any) -> list[Any]:
    """The rows of an Arrow batch as dictionaries, None for those with bytes that are not UTF-8."""
    try:
        return [*batch.to_pylist()]
    except UnicodeDecodeError:
        single = [batch.slice(index, 1) for index in range(batch.num_rows)]
        return [None] if len(single) == 1 else [*itertools.chain.from_iterable(map(_decode_rows, single))]


def _class_names(schema: Any) -> dict[str, tuple[str, ...]]:
    """The class names that `datasets` stored in an Arrow schema, by column."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    import datasets

    try:
        features = datasets.Features.from_arrow_schema(schema)
    except (KeyError, TypeError, ValueError):  # written by another program
        return {}
    classes = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    return {column: tuple(feature.names) for column, feature in classes.items() if hasattr(feature, "names")}
