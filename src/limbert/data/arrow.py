"""Columnar sources, Parquet files and data sets of the Hugging Face Hub, as tables of rows."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from limbert.data.table import NOT_UTF8, Row, Table
from limbert.errors import DataError

_BATCH = 1024  # rows turned into Python values at a time


def parquet_table(path: Path, *, filesystem: Any = None) -> Table:
    """The rows of a Parquet file; a row is named by its number, from 1.

    Args:
        path: of the file.
        filesystem: the ``pyarrow.fs`` file system that it is in; None is this machine's.

    Raises:
        DataError: the file is no readable Parquet.
    """
    import pyarrow
    import pyarrow.parquet

    def batches() -> Iterator[Any]:
        try:
            with pyarrow.parquet.ParquetFile(str(path), filesystem=filesystem) as file:
                yield from file.iter_batches(_BATCH)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: broken Parquet ({_first_line(error)})") from None

    try:
        schema = pyarrow.parquet.read_schema(str(path), filesystem=filesystem)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: no Parquet file ({_first_line(error)})") from None
    return _arrow_table(str(path), schema, batches)


def hub_tables(name: str, configuration: str | None = None) -> dict[str, Table]:
    """The splits of a data set of the Hub (or of a local folder that ``datasets`` can load), by split name.

    Raises:
        DataError: there is no such data set or configuration, or it could not be fetched.
    """
    import datasets
    import pyarrow

    try:
        splits = datasets.load_dataset(name, configuration)
    except (OSError, ValueError, datasets.exceptions.DatasetsError, pyarrow.ArrowException) as error:
        which = f"{name!r}" + (f" (configuration {configuration!r})" if configuration else "")
        raise DataError(f"{which} is no local folder and no data set of the Hub: {_first_line(error)}") from None
    return {str(split): _dataset_table(f"{name} ({split})", dataset) for split, dataset in splits.items()}


def _dataset_table(name: str, dataset: Any) -> Table:
    view = dataset.with_format("arrow")
    return _arrow_table(name, dataset.features.arrow_schema, lambda: view.iter(_BATCH))


def _arrow_table(name: str, schema: Any, batches: Callable[[], Iterable[Any]]) -> Table:
    class_names = class_names_of(schema)

    def rows() -> Iterator[Row]:
        number = itertools.count(1)
        for batch in batches():
            found = [values_of(batch.column(column), class_names.get(column)) for column in schema.names]
            columns = [values for values, _ in found]
            broken = {row for _, rows in found for row in rows}
            for row, cells in enumerate(zip(*columns, strict=True)):
                yield Row(next(number), cells, NOT_UTF8 if row in broken else None)

    return Table(name, tuple(schema.names), rows, class_names)


def class_names_of(schema: Any) -> Mapping[str, tuple[str, ...]]:
    """The class names that ``datasets`` left in the schema, by column; ids in that column are then turned to names."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {column: _label_names(feature) for column, feature in features.items()}
        return {column: names for column, names in found.items() if names is not None}
    except (KeyError, TypeError, ValueError):  # written by another program
        return {}


def _label_names(feature: Any) -> tuple[str, ...] | None:
    """The names of a ``ClassLabel``, or of a list of them in any of the forms that ``datasets`` has written."""
    if isinstance(feature, list) and len(feature) == 1:
        return _label_names(feature[0])
    if not isinstance(feature, dict):
        return None
    return tuple(feature["names"]) if feature.get("_type") == "ClassLabel" else _label_names(feature.get("feature"))


def values_of(column: Any, names: tuple[str, ...] | None = None) -> tuple[list[object], set[int]]:
    """The values of an Arrow column, and the places of those that are no text though they should be; None there.

    Args:
        column: an array, whole or in chunks.
        names: of classes, where the values are their ids and are to be read as names.
    """
    try:
        return _named(column.to_pylist(), names), set()
    except UnicodeDecodeError:
        broken, values = set(), []
        for place, value in enumerate(column):
            try:
                values.append(value.as_py())
            except UnicodeDecodeError:
                broken.add(place)
                values.append(None)
        return values, broken


def _named(values: list[object], names: tuple[str, ...] | None) -> list[object]:
    if names is None:
        return values
    return [
        _named(value, names)
        if isinstance(value, list)
        else names[value]
        if isinstance(value, int) and 0 <= value < len(names)
        else None
        for value in values
    ]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
