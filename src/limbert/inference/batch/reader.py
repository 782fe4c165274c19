"""Read ranges of rows, one after the other: a reader goes forward through a file and never holds more than a range."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbert.data.readers import check_text
from limbert.data.table import INVALID_UNICODE, Table, TableRow, class_names_from_schema, column_values, open_table
from limbert.data.tasks import Columns
from limbert.errors import DataError
from limbert.inference.batch.shards import Shard
from limbert.inference.batch.store import StoragePath

_BATCH_ROWS = 4096  # rows decoded at a time
_BUFFER_BYTES = 4 * 2**20  # bytes read at a time from each column of a Parquet file


@dataclass(frozen=True)
class ShardData:
    """The rows of one shard.

    Attributes:
        kept: an Arrow table of the columns that the output repeats.
        texts: the same rows as a table with the columns of the text and its pair.
    """

    kept_columns: Any
    texts: Table


class ShardReader:
    """Reads shards; cheapest in their order, because a file is then gone through once.

    Args:
        store: where the files are.
        columns: of the text and its pair.
        kept: columns that the output repeats.
    """

    def __init__(self, storage: StoragePath, columns: Columns, kept_columns: tuple[str, ...]) -> None:
        self._storage, self._kept_columns = storage, kept_columns
        self._text_columns = tuple(name for name in (columns.text, columns.pair) if name is not None)
        self._path, self._row_offset = "", 0
        self._batches: Iterator[Any] = iter(())
        self._decoded: Any = None  # rows that were decoded for a range before and not used

    def read(self, shard: Shard) -> ShardData:
        """The rows of a shard.

        Raises:
            DataError: the file cannot be read, or has fewer rows than it had.
        """
        if shard.path != self._path or shard.start < self._row_offset:
            self._open_file(shard.path)
        self._advance(shard.start - self._row_offset, keep=False)
        table = self._advance(shard.rows, keep=True)
        texts = Table(
            shard.path, self._text_columns, lambda: _text_rows(table, self._text_columns, first_line=shard.start + 1)
        )
        return ShardData(table.select(list(self._kept_columns)), texts)

    def _open_file(self, path: str) -> None:
        self._path, self._row_offset, self._decoded = path, 0, None
        wanted = list(dict.fromkeys([*self._kept_columns, *self._text_columns]))
        if path.lower().endswith(".parquet"):
            self._batches = _parquet_batches(self._storage, path, wanted)
        else:
            self._batches = _text_batches(path, wanted, text_columns=self._text_columns)

    def _advance(self, count: int, *, keep: bool) -> Any:
        """Go forward by so many rows; return them where they are kept."""
        import pyarrow

        taken: list[Any] = []
        self._row_offset += count
        while count:
            if self._decoded is None or not self._decoded.num_rows:
                try:
                    self._decoded = next(self._batches)
                except StopIteration:
                    raise DataError(f"{self._path} has changed: it ends {count} rows before it did") from None
                except (pyarrow.ArrowException, OSError) as error:
                    raise _read_error(self._path, error) from None
            piece = self._decoded.slice(0, count)
            self._decoded = self._decoded.slice(piece.num_rows)
            count -= piece.num_rows
            if keep:
                taken.append(piece)
        return pyarrow.Table.from_batches(taken) if keep else None


_LINE_COLUMN, _ERROR_COLUMN = "limbert line", "limbert problem"  # columns that rows of text files carry for messages


def _parquet_batches(storage: StoragePath, path: str, columns: list[str]) -> Iterator[Any]:
    import pyarrow.parquet

    # Without pre-buffering and with small reads a row group larger than memory streams through.
    with pyarrow.parquet.ParquetFile(
        path, filesystem=storage.filesystem, buffer_size=_BUFFER_BYTES, pre_buffer=False
    ) as file:
        yield from file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)


def _text_batches(path: str, columns: list[str], *, text_columns: tuple[str, ...]) -> Iterator[Any]:
    """CSV, TSV and JSON lines: every cell as text, JSON values that are no text as JSON."""
    import pyarrow

    table = open_table(Path(path), columns=tuple(columns))
    places = [table.columns.index(name) for name in columns]
    text_places = {name: table.columns.index(name) for name in text_columns}
    rows = table.rows()
    while chosen := [_row_as_text(row, places, text_places) for row in itertools.islice(rows, _BATCH_ROWS)]:
        arrays = [
            pyarrow.array([row.cells[place] for row in chosen], pyarrow.string()) for place in range(len(columns))
        ]
        arrays.append(pyarrow.array([row.line_number for row in chosen], pyarrow.int64()))
        arrays.append(pyarrow.array([row.problem for row in chosen], pyarrow.string()))
        yield pyarrow.RecordBatch.from_arrays(arrays, names=[*columns, _LINE_COLUMN, _ERROR_COLUMN])


def _row_as_text(row: TableRow, column_indices: list[int], text_column_indices: Mapping[str, int]) -> TableRow:
    """The cells as text. That one of the texts was none before is the row's problem: it would not show any more."""
    if row.problem is not None:
        return TableRow(row.line_number, [None] * len(column_indices), row.problem)
    problem = None
    try:
        for name, place in text_column_indices.items():
            check_text(row.cells[place], name)
    except ValueError as error:
        problem = str(error)
    values = [row.cells[place] for place in column_indices]
    cells = [
        value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values
    ]
    return TableRow(row.line_number, cells, problem)


def _text_rows(table: Any, columns: tuple[str, ...], *, first_line: int) -> Iterator[TableRow]:
    """The texts of an Arrow table; a Parquet row is named by its number."""
    class_names = class_names_from_schema(table.schema)
    found = [column_values(table.column(name), class_names.get(name)) for name in columns]
    cells, broken = [values for values, _ in found], {row for _, rows in found for row in rows}
    if _LINE_COLUMN in table.column_names:
        lines, problems = table.column(_LINE_COLUMN).to_pylist(), table.column(_ERROR_COLUMN).to_pylist()
    else:
        lines = range(first_line, first_line + table.num_rows)
        problems = [INVALID_UNICODE if row in broken else None for row in range(table.num_rows)]
    for line, problem, *row in zip(lines, problems, *cells, strict=True):
        yield TableRow(line, row, problem)


def _read_error(path: str, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
