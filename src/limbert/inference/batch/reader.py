"""Read ranges of rows, one after the other: a reader goes forward through a file and never holds more than a range."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbert.data.readers import NOT_UTF8, Row, Table, checked_text, class_names_of, open_table, values_of
from limbert.data.tasks import Columns
from limbert.errors import DataError
from limbert.inference.batch.shards import Shard
from limbert.inference.batch.store import Store

_BATCH = 4096  # rows decoded at a time
_BUFFER = 4 * 2**20  # bytes read at a time from each column of a Parquet file


@dataclass(frozen=True)
class Part:
    """The rows of one shard.

    Attributes:
        kept: an Arrow table of the columns that the output repeats.
        texts: the same rows as a table with the columns of the text and its pair.
    """

    kept: Any
    texts: Table


class Reader:
    """Reads shards; cheapest in their order, because a file is then gone through once.

    Args:
        store: where the files are.
        columns: of the text and its pair.
        kept: columns that the output repeats.
    """

    def __init__(self, store: Store, columns: Columns, kept: tuple[str, ...]) -> None:
        self._store, self._kept = store, kept
        self._texts = tuple(name for name in (columns.text, columns.pair) if name is not None)
        self._path, self._place = "", 0
        self._batches: Iterator[Any] = iter(())
        self._left: Any = None  # rows that were decoded for a range before and not used

    def read(self, shard: Shard) -> Part:
        """The rows of a shard.

        Raises:
            DataError: the file cannot be read, or has fewer rows than it had.
        """
        if shard.path != self._path or shard.start < self._place:
            self._open(shard.path)
        self._take(shard.start - self._place, keep=False)
        table = self._take(shard.rows, keep=True)
        texts = Table(shard.path, self._texts, lambda: _rows(table, self._texts, first=shard.start + 1))
        return Part(table.select(list(self._kept)), texts)

    def _open(self, path: str) -> None:
        self._path, self._place, self._left = path, 0, None
        wanted = list(dict.fromkeys([*self._kept, *self._texts]))
        if path.lower().endswith(".parquet"):
            self._batches = _parquet_batches(self._store, path, wanted)
        else:
            self._batches = _text_batches(path, wanted, texts=self._texts)

    def _take(self, count: int, *, keep: bool) -> Any:
        """Go forward by so many rows; return them where they are kept."""
        import pyarrow

        taken: list[Any] = []
        self._place += count
        while count:
            if self._left is None or not self._left.num_rows:
                try:
                    self._left = next(self._batches)
                except StopIteration:
                    raise DataError(f"{self._path} has changed: it ends {count} rows before it did") from None
                except (pyarrow.ArrowException, OSError) as error:
                    raise _broken(self._path, error) from None
            piece = self._left.slice(0, count)
            self._left = self._left.slice(piece.num_rows)
            count -= piece.num_rows
            if keep:
                taken.append(piece)
        return pyarrow.Table.from_batches(taken) if keep else None


_LINE, _PROBLEM = "limbert line", "limbert problem"  # columns that rows of text files carry for messages


def _parquet_batches(store: Store, path: str, columns: list[str]) -> Iterator[Any]:
    import pyarrow.parquet

    # Without pre-buffering and with small reads a row group larger than memory streams through.
    with pyarrow.parquet.ParquetFile(path, filesystem=store.filesystem, buffer_size=_BUFFER, pre_buffer=False) as file:
        yield from file.iter_batches(_BATCH, columns=columns, use_threads=False)


def _text_batches(path: str, columns: list[str], *, texts: tuple[str, ...]) -> Iterator[Any]:
    """CSV, TSV and JSON lines: every cell as text, JSON values that are no text as JSON."""
    import pyarrow

    table = open_table(Path(path), columns=tuple(columns))
    places = [table.columns.index(name) for name in columns]
    text_places = {name: table.columns.index(name) for name in texts}
    rows = table.rows()
    while chosen := [_as_text(row, places, text_places) for row in itertools.islice(rows, _BATCH)]:
        arrays = [
            pyarrow.array([row.cells[place] for row in chosen], pyarrow.string()) for place in range(len(columns))
        ]
        arrays.append(pyarrow.array([row.line for row in chosen], pyarrow.int64()))
        arrays.append(pyarrow.array([row.problem for row in chosen], pyarrow.string()))
        yield pyarrow.RecordBatch.from_arrays(arrays, names=[*columns, _LINE, _PROBLEM])


def _as_text(row: Row, places: list[int], text_places: Mapping[str, int]) -> Row:
    """The cells as text. That one of the texts was none before is the row's problem: it would not show any more."""
    if row.problem is not None:
        return Row(row.line, [None] * len(places), row.problem)
    problem = None
    try:
        for name, place in text_places.items():
            checked_text(row.cells[place], name)
    except ValueError as error:
        problem = str(error)
    values = [row.cells[place] for place in places]
    cells = [
        value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values
    ]
    return Row(row.line, cells, problem)


def _rows(table: Any, names: tuple[str, ...], *, first: int) -> Iterator[Row]:
    """The texts of an Arrow table; a Parquet row is named by its number."""
    class_names = class_names_of(table.schema)
    found = [values_of(table.column(name), class_names.get(name)) for name in names]
    cells, broken = [values for values, _ in found], {row for _, rows in found for row in rows}
    if _LINE in table.column_names:
        lines, problems = table.column(_LINE).to_pylist(), table.column(_PROBLEM).to_pylist()
    else:
        lines = range(first, first + table.num_rows)
        problems = [NOT_UTF8 if row in broken else None for row in range(table.num_rows)]
    for line, problem, *row in zip(lines, problems, *cells, strict=True):
        yield Row(line, row, problem)


def _broken(path: str, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
