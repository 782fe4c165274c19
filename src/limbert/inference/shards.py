"""Input files of batch prediction: their split into shards of rows, and how the rows of a shard are read."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbert.core.config import DataConfig
from limbert.data.columns import choose_columns
from limbert.data.readers import Examples, check_text
from limbert.data.table import Table, TableRow, arrow_rows, parquet_table
from limbert.data.task_files import open_file
from limbert.data.tasks import Columns, column_layouts, find_glue_task
from limbert.errors import ConfigError, DataError
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
    files: dict[str, tuple[int, int, float]]  # rows, bytes, modification time (seconds since 1970, or 0.0), by path
    columns: Columns  # of the text and its pair
    kept_columns: tuple[str, ...]  # input columns that the output repeats
    shards: tuple[Shard, ...]  # in the order of files and rows, which is the order of their names

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(rows for rows, _, _ in self.files.values())


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

    Of Parquet files only the footers are read. The columns of JSON lines are the keys of all objects in all files.
    The output repeats the columns to keep (None: all), none of which may be a prediction column. A shard of large rows
    has fewer than ``max_shard_rows``.
    """
    storage = Storage.from_uri(uri)
    infos = storage.list_files()
    columns = _choose_text_columns(storage, infos[0].path, config)
    files, types, ranges = dict[str, tuple[int, int, float]](), dict[str, str](), list[tuple[str, int, int]]()
    for info in infos:
        file_types, rows, row_bytes = _describe_file(storage, info)
        if files:
            _check_columns(info.path, file_types, infos[0].path, types, columns, keep_columns)
        types = {**types, **file_types} if keep_columns is None or not files else types
        kept = tuple(dict.fromkeys(types if keep_columns is None else keep_columns))
        for name in kept:
            if name not in types:
                raise ConfigError(f"--keep {name!r}: {info.path} has no such column; columns: {', '.join(types)}")
            if name in prediction_columns:
                raise ConfigError(
                    f"column {name!r} of the input is also a column of the predictions; try --keep COLUMN,..."
                )
        files[info.path] = (rows, int(info.size), info.mtime.timestamp() if info.mtime else 0.0)
        size = max(1, min(max_shard_rows, int(_MAX_SHARD_BYTES // max(1, row_bytes))))
        ranges += [(info.path, start, min(size, rows - start)) for start in range(0, rows, size)]
        progress(len(files), len(infos))
    if not ranges:
        raise DataError(f"{uri}: no rows; expected at least one")
    digits = max(5, len(str(len(ranges) - 1)))
    shards = tuple(Shard(f"part-{number:0{digits}}.parquet", *part) for number, part in enumerate(ranges))
    return ShardedInput(storage, files, columns, kept, shards)


def _open_table(storage: Storage, path: str) -> Table:
    if path.lower().endswith(".parquet"):
        return parquet_table(Path(path), filesystem=storage.filesystem)
    if not storage.is_local:
        raise DataError(f"{path}: only Parquet files are read from an object store")
    return open_file(Path(path), labelled=False)


def _choose_text_columns(storage: Storage, path: str, config: DataConfig) -> Columns:
    config = replace(config, text_column="text") if path.lower().endswith(".txt") else config
    layouts = column_layouts(find_glue_task(config.task, None), None)
    _, columns = choose_columns(_open_table(storage, path), config, layouts, labelled=False)
    if columns.are_positions:
        raise ConfigError(f"{path}: columns are given by number; --engine ray needs columns with names")
    return columns


def _describe_file(storage: Storage, info: Any) -> tuple[dict[str, str], int, float]:
    """The types of a file's columns, its rows, and the mean bytes of a row in memory."""
    if not info.path.lower().endswith(".parquet"):
        table, rows = _open_table(storage, info.path), 0
        is_json, names = info.path.lower().endswith((".jsonl", ".json")), dict.fromkeys(table.columns, "string")
        for row in table.rows():
            rows += 1
            if is_json:  # the last line may bring a new key
                names |= dict.fromkeys(row.cells, "string")
        return names, rows, 2 * info.size / max(1, rows)
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(info.path, filesystem=storage.filesystem) as file:
        metadata, schema = file.metadata, file.schema_arrow
    size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    return {field.name: str(field.type) for field in schema}, metadata.num_rows, size / max(1, metadata.num_rows)


def _check_columns(
    path: str,
    types: Mapping[str, str],
    first_path: str,
    first_types: Mapping[str, str],
    columns: Columns,
    keep_columns: Sequence[str] | None,
) -> None:
    """Refuse a file with other columns than the first; objects of JSON lines may lack keys or have more."""
    kept = first_types if keep_columns is None else keep_columns
    is_json = path.lower().endswith((".jsonl", ".json"))
    for name in {**first_types, **types}:
        if name not in types:
            differs = name in columns.names or (name in kept and not is_json)
        elif name not in first_types:
            differs = keep_columns is None and not is_json
        else:
            differs = name in kept and types[name] != first_types[name]
        if differs:
            here, there = types.get(name, "missing"), first_types.get(name, "missing")
            raise DataError(
                f"{path}: column {name!r} is {here}, in {first_path} {there}; choose columns with --keep A,B"
            )


class ShardReader:
    """Reads the rows of shards; text files, in which no row can be looked up, fastest in the order of the shards.

    With ``skip_bad_rows``, rows without a text are left out of the examples instead of refused.
    """

    def __init__(self, inputs: ShardedInput, *, skip_bad_rows: bool) -> None:
        self._storage, self._kept, self._names = inputs.storage, inputs.kept_columns, inputs.columns.names
        self._skip_bad_rows = skip_bad_rows
        self._path, self._next_row = "", 0  # of the text file that is open
        self._rows: Iterator[TableRow] = iter(())

    def read(self, shard: Shard) -> tuple[Any, list[int], Examples]:
        """The kept columns of all rows as an Arrow table; the indices of the rows with a text; and these texts."""
        with raise_as(DataError, f"{shard.path} cannot be read"):
            is_parquet = shard.path.lower().endswith(".parquet")
            kept, rows = self._read_parquet(shard) if is_parquet else self._read_text_file(shard)
        if len(rows) < shard.rows:
            raise DataError(f"{shard.path} has changed: it ends after row {shard.start + len(rows)}")
        usable: dict[int, list[str]] = {}
        for index, row in enumerate(rows):
            try:
                if row.problem is not None:
                    raise ValueError(row.problem)
                usable[index] = [check_text(row.cells.get(name), name) for name in self._names]
            except ValueError as error:
                if not self._skip_bad_rows:
                    raise DataError(f"{shard.path}:{row.line_number}: {error}") from None
        columns = [*zip(*usable.values(), strict=True)] or [()] * len(self._names)
        return kept, [*usable], Examples(columns[0], columns[1] if len(columns) > 1 else None, None)

    def _read_parquet(self, shard: Shard) -> tuple[Any, list[TableRow]]:
        import pyarrow
        import pyarrow.parquet

        columns, end, pieces = [*dict.fromkeys([*self._kept, *self._names])], shard.start + shard.rows, []
        # Without pre-buffering and with small reads, a row group larger than memory is read in pieces.
        options = {"filesystem": self._storage.filesystem, "buffer_size": _BUFFER_BYTES, "pre_buffer": False}
        with pyarrow.parquet.ParquetFile(shard.path, **options) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            starts = [*itertools.accumulate(sizes, initial=0)]
            groups = [group for group, start in enumerate(starts[1:]) if start > shard.start and starts[group] < end]
            position = starts[groups[0]] if groups else 0
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
                low, high = max(0, shard.start - position), min(batch.num_rows, end - position)
                pieces.append(batch.slice(low, max(0, high - low)))
                position += batch.num_rows
                if position >= end:
                    break
            table = pyarrow.Table.from_batches(pieces, file.schema_arrow if not pieces else None)
        texts = table.select([*self._names])
        return table.select([*self._kept]), [*arrow_rows([texts], table.schema, start=shard.start)]

    def _read_text_file(self, shard: Shard) -> tuple[Any, list[TableRow]]:
        """Kept cells become strings: JSON where they were not."""
        import pyarrow

        if shard.path != self._path or shard.start < self._next_row:
            self._path, self._next_row, self._rows = shard.path, 0, _open_table(self._storage, shard.path).rows()
        skipped = shard.start - self._next_row
        rows = [*itertools.islice(self._rows, skipped, skipped + shard.rows)]
        self._next_row = shard.start + shard.rows

        def as_text(cell: Any) -> str | None:
            return cell if cell is None or isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)

        kept = {name: [as_text(row.cells.get(name)) for row in rows] for name in self._kept}
        return pyarrow.table({name: pyarrow.array(cells, pyarrow.string()) for name, cells in kept.items()}), rows
