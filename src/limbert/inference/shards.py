"""Input files of batch prediction: their split into shards of rows, and how the rows of a shard are read."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from limbert.core.config import DataConfig
from limbert.data.readers import Examples
from limbert.data.table import Table, TableRow, arrow_rows, parquet_table
from limbert.data.task_files import open_file, open_texts
from limbert.data.tasks import Columns
from limbert.errors import ConfigError, DataError, first_line
from limbert.inference.prediction_files import select_texts
from limbert.inference.storage import Storage, raise_as

_MAX_SHARD_BYTES = 64 * 2**20  # of a shard's rows in memory, estimated from their mean size
_BATCH_ROWS = 4096  # rows decoded at a time
_BUFFER_BYTES = 4 * 2**20  # bytes read at a time from each column of a Parquet file


@dataclass(frozen=True)
class Shard:
    """``rows`` rows of the input file ``path`` from row ``start`` (0-based); ``name`` is that of its output file."""

    name: str
    path: str
    start: int
    rows: int


@dataclass(frozen=True)
class ShardedInput:
    """All input files and their split into shards."""

    storage: Storage  # the files' file system
    files: dict[str, tuple[int, str]]  # bytes and time of modification, by path
    columns: Columns  # of the text and its pair
    schema: pyarrow.Schema  # the input columns that the output repeats
    shards: tuple[Shard, ...]  # in the order of files and rows, which is the order of their names

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(shard.rows for shard in self.shards)


def shard_input(
    uri: str,
    config: DataConfig,
    *,
    keep_columns: Sequence[str] | None,
    prediction_columns: Sequence[str],
    max_shard_rows: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ShardedInput:
    """Find the input files and split them into shards; the same files and settings give the same shards.

    Of Parquet files only the footers are read. The output repeats the columns to keep (None: those of all files, empty
    where a file lacks one), none of which may be a prediction column. A shard of large rows has fewer than
    ``max_shard_rows``.
    """
    storage = Storage.from_uri(uri)
    files = storage.list_files()
    path, schema, ranges = next(iter(files)), pyarrow.schema([]), list[tuple[str, int, int]]()
    _, columns = open_texts(Path(path), config, open_table=partial(_open_table, storage))
    if columns.are_positions:
        raise ConfigError(f"{path}: columns are given by number; --engine ray needs columns with names")
    for number, path in enumerate(files, start=1):
        found, rows, memory = _describe_file(storage, path)
        for name in columns.names:
            if name not in found.names:
                raise DataError(f"{path}: column {name!r} not found; columns: {', '.join(found.names)}")
        kept = found if keep_columns is None else [field for field in found if field.name in keep_columns]
        try:
            schema = pyarrow.unify_schemas([schema, pyarrow.schema(kept)])
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}: {first_line(error)}; choose columns with --keep A,B") from error
        size = max(1, min(max_shard_rows, _MAX_SHARD_BYTES * rows // max(1, memory)))
        ranges += [(path, start, min(size, rows - start)) for start in range(0, rows, size)]
        progress(number, len(files))
    names = [*dict.fromkeys(keep_columns or schema.names)]
    for name in names:
        if name not in schema.names:
            raise ConfigError(f"--keep {name!r}: {uri} has no such column; columns: {', '.join(found.names)}")
        if name in prediction_columns:
            raise ConfigError(f"column {name!r} of the input is also one of the predictions; try --keep COLUMN,...")
    if not ranges:
        raise DataError(f"{uri}: no rows; expected at least one")
    digits = max(5, len(str(len(ranges) - 1)))
    shards = tuple(Shard(f"part-{number:0{digits}}.parquet", *part) for number, part in enumerate(ranges))
    return ShardedInput(storage, files, columns, pyarrow.schema([schema.field(name) for name in names]), shards)


def _open_table(storage: Storage, path: Path) -> Table:
    if _is_parquet(path):
        return parquet_table(path, filesystem=storage.filesystem)
    if not storage.is_local:
        raise DataError(f"{path}: only Parquet files are read from an object store")
    return open_file(path, labelled=False)


def _is_parquet(path: str | Path) -> bool:
    return str(path).lower().endswith(".parquet")


def _open_parquet(storage: Storage, path: str) -> pyarrow.parquet.ParquetFile:
    # Without pre-buffering and with small reads, a row group larger than memory is read in pieces.
    options = {"buffer_size": _BUFFER_BYTES, "pre_buffer": False}
    return pyarrow.parquet.ParquetFile(path, filesystem=storage.filesystem, **options)


def _describe_file(storage: Storage, path: str) -> tuple[pyarrow.Schema, int, int]:
    """The Arrow schema of a file, its rows, and an estimate of their bytes in memory."""
    if _is_parquet(path):
        with _open_parquet(storage, path) as file:
            about = file.metadata
            memory = sum(about.row_group(index).total_byte_size for index in range(about.num_row_groups))
            return file.schema_arrow.remove_metadata(), about.num_rows, memory
    table, rows = _open_table(storage, Path(path)), 0
    names = dict.fromkeys(table.columns)
    for row in table.rows():
        rows += 1
        names |= dict.fromkeys(row.cells)  # the last object of JSON may bring a new key
    columns = [*table.columns, *(name for name in names if name not in table.columns)]  # CSV may have some twice
    return pyarrow.schema([(name, pyarrow.string()) for name in columns]), rows, 2 * storage.filesystem.size(path)


class ShardReader:
    """Reads the rows of shards; text files, in which no row can be looked up, fastest in the order of the shards.

    With ``skip_bad_rows``, rows without a text are left out of the examples instead of refused. ``files`` and
    ``shards`` of the inputs are not used.
    """

    def __init__(self, inputs: ShardedInput, *, skip_bad_rows: bool) -> None:
        self._inputs, self._skip_bad_rows = inputs, skip_bad_rows
        self._path, self._next_row = "", 0  # of the text file that is open
        self._rows: Iterator[TableRow] = iter(())

    def read(self, shard: Shard) -> tuple[pyarrow.Table, list[int], Examples]:
        """The kept columns of all rows; the indices of the rows with a text; and these texts."""
        with raise_as(DataError, f"{shard.path} cannot be read"):
            kept, rows = (self._read_parquet if _is_parquet(shard.path) else self._read_text_file)(shard)
        if len(rows) < shard.rows:
            raise DataError(f"{shard.path} has changed: it ends after row {shard.start + len(rows)}")
        names = self._inputs.columns.names
        return kept, *select_texts(shard.path, rows, names, skip_bad_rows=self._skip_bad_rows)

    def _read_parquet(self, shard: Shard) -> tuple[pyarrow.Table, list[TableRow]]:
        schema, names, pieces = self._inputs.schema, self._inputs.columns.names, list[pyarrow.RecordBatch]()
        columns, skipped, missing = [*dict.fromkeys([*schema.names, *names])], shard.start, shard.rows
        with _open_parquet(self._inputs.storage, shard.path) as file:
            groups = [*range(file.num_row_groups)]
            while groups and skipped >= (rows := file.metadata.row_group(groups[0]).num_rows):
                groups, skipped = groups[1:], skipped - rows
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
                if skipped < batch.num_rows:
                    pieces.append(batch.slice(skipped, missing))
                    missing -= pieces[-1].num_rows
                skipped = max(0, skipped - batch.num_rows)
                if not missing:
                    break
            table = pyarrow.Table.from_batches(pieces, None if pieces else file.schema_arrow)
        kept = pyarrow.concat_tables([schema.empty_table(), table], promote_options="default").select(schema.names)
        return kept, [*arrow_rows([table.select([*names])], table.schema, start=shard.start)]

    def _read_text_file(self, shard: Shard) -> tuple[pyarrow.Table, list[TableRow]]:
        """Kept cells become strings: JSON where they were not."""
        if shard.path != self._path or shard.start < self._next_row:
            self._rows = _open_table(self._inputs.storage, Path(shard.path)).rows()
            self._path, self._next_row = shard.path, 0
        skipped, self._next_row = shard.start - self._next_row, shard.start + shard.rows
        rows = [*itertools.islice(self._rows, skipped, skipped + shard.rows)]

        def as_text(cell: Any) -> str | None:
            return cell if cell is None or isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)

        cells = [{name: as_text(cell) for name, cell in row.cells.items()} for row in rows]
        return pyarrow.Table.from_pylist(cells, self._inputs.schema), rows
