"""The input cut into shards, each a range of rows of one file and one file of answers; small facts, no texts.

The cut follows from the files' footers and one setting, so that it is the same whenever it is made again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limbert.core.config import DataConfig
from limbert.data.columns import choose_columns
from limbert.data.table import Table, open_table, parquet_table
from limbert.data.tasks import Columns, glue_task
from limbert.errors import ConfigError, DataError
from limbert.inference.batch.store import FileInfo, StoragePath

INPUT_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
_MAX_SHARD_BYTES = 64 * 2**20  # of a shard's rows in memory, by what the footers say of their mean size


@dataclass(frozen=True)
class InputFile:
    """One input file.

    Attributes:
        path: in the input's file system.
        bytes: its size; with ``modified``, what tells that it has changed.
        modified: seconds since 1970.
        rows: that it holds.
    """

    path: str
    bytes: int
    modified: float
    rows: int


@dataclass(frozen=True)
class Shard:
    """A range of rows of one file.

    Attributes:
        name: of the file with its answers.
        path: of the file with its texts.
        start: its first row in that file, from 0.
        rows: how many.
    """

    name: str
    path: str
    start: int
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``Shard(**values)`` reads them back."""
        return asdict(self)


@dataclass(frozen=True)
class ShardedInput:
    """All that is to be answered.

    Attributes:
        store: where the files are.
        sources: the files in the order of their paths.
        columns: of the text and its pair.
        kept: columns that the output repeats.
        shards: in the order of the files and their rows, which is the order of their names.
    """

    storage: StoragePath
    files: tuple[InputFile, ...]
    columns: Columns
    kept_columns: tuple[str, ...]
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(source.rows for source in self.files)


def shard_input(
    uri: str,
    config: DataConfig,
    *,
    keep_columns: Sequence[str] | None,
    added_columns: Sequence[str],
    max_shard_rows: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ShardedInput:
    """Look at the input's files and cut them into shards. Of Parquet only the footers are read.

    A key that some objects of JSON lines do not have, or some files, is a column all the same, empty there.

    Args:
        address: a file, a folder or a pattern, local or a URI.
        config: how to read it; its column settings are used.
        keep: columns that the output repeats; None is all.
        added: columns that the answers bring; none of them may be kept.
        shard_rows: most rows a shard; fewer where rows are large.
        progress: called with files looked at and in all.

    Raises:
        ConfigError: a column that is asked to be kept is missing, or has the name of an answer's.
        DataError: a missing or unusable file, or one with other columns than the first.
    """
    store = StoragePath.from_uri(uri)
    files = store.list_files(INPUT_SUFFIXES)
    columns, kept, first, schema = Columns("", None, None), tuple(keep_columns or ()), "", dict[str, str]()
    sources, ranges = [], []
    for place, file in enumerate(files):
        table = _open_table(store, file)
        if not place:
            glue = glue_task(config.task) if config.task is not None else None
            opener = _column_opener(store, file, table)
            table, columns = choose_columns(opener, config, glue, labelled=False)
        table, rows, row_bytes, types = _table_statistics(store, file, table)
        if not place:
            kept, first, schema = _kept_columns(table, keep_columns), file.path, types
        elif keep_columns is None:
            kept = _extend_columns(kept, table, file, first_path=first)
        _check_name_conflicts(kept, added_columns)
        _check_same_columns(
            file, table, types, columns=columns, kept_columns=kept, first_path=first, first_types=schema
        )
        sources.append(InputFile(file.path, file.bytes, file.modified, rows))
        size = max(1, min(max_shard_rows, int(_MAX_SHARD_BYTES // max(1, row_bytes))))
        ranges += [(file.path, start, min(size, rows - start)) for start in range(0, rows, size)]
        progress(place + 1, len(files))
    if not ranges:
        raise DataError(f"{uri}: no rows; expected at least one")
    digits = max(5, len(str(len(ranges) - 1)))
    shards = [Shard(f"part-{place:0{digits}}.parquet", *found) for place, found in enumerate(ranges)]
    return ShardedInput(store, tuple(sources), columns, kept, tuple(shards))


def _open_table(storage: StoragePath, file: FileInfo) -> Table:
    if file.path.lower().endswith(".parquet"):
        return parquet_table(Path(file.path), filesystem=storage.filesystem)
    if not storage.is_local:
        raise DataError(f"{file.path}: only Parquet is read from an object store")
    return open_table(Path(file.path))


def _column_opener(storage: StoragePath, file: FileInfo, table: Table) -> Callable[[bool], Table]:
    """Columns by number are for files without a header, which would have no names in the output either."""

    def opener(header: bool) -> Table:
        if not header:
            raise ConfigError(f"{file.path}: columns are given by number; --engine ray needs columns with names")
        return table

    return opener


def _table_statistics(storage: StoragePath, file: FileInfo, table: Table) -> tuple[Table, int, float, dict[str, str]]:
    """The table with all columns, its rows, mean bytes a row in memory, and the types of columns that have any."""
    if not file.path.lower().endswith(".parquet"):
        table, rows = table.with_all_columns()
        return table, rows, 2 * file.bytes / max(1, rows), {}
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path, filesystem=storage.filesystem) as parquet:
        metadata, schema = parquet.metadata, parquet.schema_arrow
    held = sum(metadata.row_group(place).total_byte_size for place in range(metadata.num_row_groups))
    types = {field.name: str(field.type) for field in schema}
    return table, metadata.num_rows, held / max(1, metadata.num_rows), types


def _kept_columns(table: Table, keep_columns: Sequence[str] | None) -> tuple[str, ...]:
    for name in keep_columns or ():
        if name not in table.columns:
            raise ConfigError(f"--keep {name!r}: {table.name} has no such column; it has {', '.join(table.columns)}")
    return tuple(dict.fromkeys(table.columns if keep_columns is None else keep_columns))


def _extend_columns(kept_columns: tuple[str, ...], table: Table, file: FileInfo, *, first_path: str) -> tuple[str, ...]:
    """The columns with those that only a later file has."""
    more = [name for name in dict.fromkeys(table.columns) if name not in kept_columns]
    if more and not _is_json(file):
        raise DataError(
            f"{file.path}: column {more[0]!r} is not in {first_path}; choose those to repeat with --keep COLUMN,..."
        )
    return (*kept_columns, *more)


def _check_name_conflicts(kept_columns: Sequence[str], added_columns: Sequence[str]) -> None:
    for name in kept_columns:
        if name in added_columns:
            raise ConfigError(
                f"input column {name!r} has the name of an answer's; choose others with --keep COLUMN,..."
            )


def _check_same_columns(
    file: FileInfo,
    table: Table,
    types: Mapping[str, str],
    *,
    columns: Columns,
    kept_columns: Sequence[str],
    first_path: str,
    first_types: Mapping[str, str],
) -> None:
    """Refuse a file that is not like the first."""
    wanted = [name for name in (columns.text, columns.pair) if name is not None]
    wanted += () if _is_json(file) else kept_columns
    missing = [name for name in wanted if name not in table.columns]
    if missing or any(types.get(name) != first_types.get(name) for name in kept_columns):
        what = f"no column {missing[0]!r}" if missing else "other column types"
        raise DataError(f"{file.path}: {what}; expected the columns of {first_path}")


def _is_json(file: FileInfo) -> bool:
    return file.path.lower().endswith((".jsonl", ".json"))
