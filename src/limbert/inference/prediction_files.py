"""Files of prediction in one process: reads rows with their texts, and writes them with their predictions."""

import csv
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbert.core.config import DataConfig, require
from limbert.data.columns import PAIR_COLUMN_NAMES, TEXT_COLUMN_NAMES
from limbert.data.readers import Examples, check_text
from limbert.data.table import TableRow
from limbert.data.task_files import open_texts
from limbert.data.text_rows import format_csv_row
from limbert.errors import ConfigError, DataError
from limbert.files import atomic_file, is_special_file, json_line

Row = dict[str, Any]

_ENDINGS = {".csv": "csv", ".parquet": "parquet", ".jsonl": "json", ".ndjson": "json", ".json": "json", "": "json"}
_TEXT_COLUMNS = {*TEXT_COLUMN_NAMES, *(name for pair in PAIR_COLUMN_NAMES for name in pair)}
_FIRST_BYTES = 1 << 16  # of a pipe, to see what it holds


@dataclass(frozen=True)
class InputRows:
    """Rows to predict: their columns, and the texts of those that have one."""

    source: str  # where they are from
    rows: Sequence[Row]  # the kept columns of every row
    indices: Sequence[int]  # of the rows with a text
    examples: Examples  # these texts

    def with_predictions(self, predictions: Sequence[Row]) -> list[Row]:
        """Every row with its prediction; None in place of values where a row has no text.

        An input column that is named like a value of the predictions is called ``input_NAME``.
        """
        predicted = dict(zip(self.indices, predictions, strict=True))
        nothing = dict.fromkeys(next(iter(predictions), ()))

        def free_name(name: str, row: Row) -> str:
            free = name
            while free in nothing or (free != name and free in row):
                free = f"input_{free}"
            return free

        return [
            {free_name(name, row): value for name, value in row.items()} | predicted.get(index, nothing)
            for index, row in enumerate(self.rows)
        ]

    def with_texts(self, rows: Sequence[Row]) -> list[Row]:
        """Rows with their ``text`` and ``pair`` also under these names, whatever their columns are called."""
        pairs = self.examples.pairs
        texts = {
            index: {"text": text} | ({} if pairs is None else {"pair": pairs[number]})
            for number, (index, text) in enumerate(zip(self.indices, self.examples.texts, strict=True))
        }
        return [texts.get(index, {}) | row for index, row in enumerate(rows)]


def given_rows(examples: Examples) -> InputRows:
    """Rows of texts that are no file's: ``text``, and ``pair`` where there is one."""
    columns = {"text": examples.texts} | ({} if examples.pairs is None else {"pair": examples.pairs})
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return InputRows("command line", rows, range(len(rows)), examples)


def read_rows(
    path: str,
    config: DataConfig,
    *,
    keep: Sequence[str] | None = None,
    skip_bad_rows: bool = False,
    read_examples: Callable[[Path, DataConfig], Examples] | None = None,
) -> InputRows:
    """Read the rows of a file, or of standard input (``-``), for prediction.

    A pipe holds JSON lines, a table with a header that names a column of text, or else one text per line.

    Args:
        path: CSV, TSV, JSON lines or Parquet, gzipped or not; ``.txt`` holds one text per line.
        config: names the columns of texts.
        keep: columns in the output; None: all.
        skip_bad_rows: rows without a text get no prediction, instead of an error.
        read_examples: for task types with file formats of their own.

    Raises:
        DataError: for a file or a row that cannot be read (``FILE:LINE: what, expected``), or a column that is missing.
    """
    with _regular_file(path, config.text_column) as file:
        if read_examples is not None:
            examples = read_examples(file, replace(config, skip_bad_rows=skip_bad_rows))
            inputs = given_rows(examples)
        else:
            inputs = _read_table(file, config, keep=keep, skip_bad_rows=skip_bad_rows)
    return replace(inputs, source=_shown(path))


def _read_table(file: Path, config: DataConfig, *, keep: Sequence[str] | None, skip_bad_rows: bool) -> InputRows:
    table, columns = open_texts(file, config)
    read = [*table.rows()]
    names = dict.fromkeys([*table.columns, *(name for row in read for name in row.cells)])  # rows of JSON may have more
    for name in keep or ():
        if name not in names:
            raise DataError(f"--keep: column {name!r} not found in {table.name}; columns: {', '.join(names)}")
    for name in names if keep is None else keep:
        if (count := table.columns.count(name)) > 1:
            raise DataError(
                f"{table.name}: {count} columns are named {name!r}; rename them, or leave out with --keep A,B"
            )
    indices, examples = select_texts(str(file), read, columns.names, skip_bad_rows=skip_bad_rows)
    if not indices:
        raise DataError(f"{file}: no row with a text; expected at least one")
    rows = [{name: row.cells.get(name) for name in (names if keep is None else keep)} for row in read]
    return InputRows("", rows, indices, examples)


def select_texts(
    source: str, rows: Sequence[TableRow], columns: Sequence[str], *, skip_bad_rows: bool
) -> tuple[list[int], Examples]:
    """The indices of the rows with a text in each of one or two columns, and these texts.

    Raises:
        DataError: for the first other row, unless bad rows are skipped.
    """
    indices, texts = list[int](), list[list[str]]()
    for index, row in enumerate(rows):
        try:
            if row.problem is not None:
                raise ValueError(row.problem)
            texts.append([check_text(row.cells.get(name), name) for name in columns])
            indices.append(index)
        except ValueError as error:
            if not skip_bad_rows:
                raise DataError(f"{source}:{row.line_number}: {error} (or --skip-bad-rows)") from None
    first, *second = [*zip(*texts, strict=True)] or [()] * len(columns)
    return indices, Examples(first, second[0] if second else None, None, len(rows) - len(texts))


def _shown(path: str) -> str:
    return "standard input" if path == "-" else path


@contextmanager
def _regular_file(path: str, text_column: str | None) -> Iterator[Path]:
    """The file, or a copy of what a pipe or device holds: files are read more than once."""
    file = Path(path).expanduser()
    if path != "-" and not is_special_file(file):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="limbert-") as folder:
        copy = Path(folder) / "input"
        with nullcontext(sys.stdin.buffer) if path == "-" else file.open("rb") as stream, copy.open("wb") as target:
            shutil.copyfileobj(stream, target)
        named = copy.rename(copy.with_suffix(_guess_suffix(copy, text_column)))
        try:
            yield named
        except DataError as error:
            raise DataError(str(error).replace(str(named), _shown(path))) from error


def _guess_suffix(file: Path, text_column: str | None) -> str:
    with file.open("rb") as opened:
        head = opened.read(_FIRST_BYTES)
    if head.startswith(b"PAR1"):
        return ".parquet"
    line = head.decode("utf-8", errors="replace").lstrip("\ufeff").partition("\n")[0].strip()
    if line.startswith("{"):
        return ".jsonl"
    for suffix, delimiter in ((".tsv", "\t"), (".csv", ","), (".csv", ";")):
        cells = next(csv.reader([line], delimiter=delimiter), [])
        if (text_column in cells) or (len(cells) > 1 and _TEXT_COLUMNS & {cell.strip().lower() for cell in cells}):
            return suffix
    return ".txt"


def check_output(output: str, input: str | None) -> str:
    """The output file with ``~`` expanded; ``-`` is standard output.

    Raises:
        ConfigError: if it cannot be written: a folder, the input, in no folder, or of another format.
    """
    path = Path(output).expanduser()
    if output == "-":
        return output
    target = Path(os.path.realpath(path))
    if input not in (None, "-") and os.path.realpath(Path(str(input)).expanduser()) == str(target):
        raise ConfigError(f"output {output} is the input; choose another file")
    if not target.parent.is_dir():
        raise ConfigError(f"the folder of output {output} does not exist; make it first")
    if path.is_dir():
        raise ConfigError(f"output {output} is a folder; write the name of a file")
    require(path.suffix.lower() in _ENDINGS, "output", output, "a file ending in .csv, .parquet or .jsonl")
    return str(path)


def is_table(output: str) -> bool:
    """Whether the file's format is one of tables, not JSON lines."""
    return _ENDINGS[Path(output).suffix.lower()] != "json"


def write_rows(output: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a file, whole or not at all, in the format of its ending; ``-`` is standard output.

    Values that a CSV cell cannot hold, such as lists, are written as JSON.

    Raises:
        StorageError: if the file cannot be written.
    """
    names = [*dict.fromkeys(name for row in rows for name in row)]
    format = _ENDINGS[Path(output).suffix.lower()]
    with nullcontext(sys.stdout) if output == "-" else atomic_file(output) as file:
        if format == "parquet":
            file.buffer.write(_to_parquet(names, rows))
        elif format == "csv":
            file.write(format_csv_row(names))
            file.writelines(format_csv_row([_to_cell(row.get(name)) for name in names]) for row in rows)
        else:
            file.writelines(json_line(row, file) for row in rows)
        file.flush()  # an error of standard output now, not at exit


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _to_cell(value: Any) -> Any:
    return _to_json(value) if isinstance(value, (list, dict)) else value


def _to_parquet(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    arrays = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            arrays[name] = pyarrow.array(values)
        except pyarrow.ArrowException:  # values of several types, in JSON lines
            arrays[name] = pyarrow.array([None if value is None else _to_json(value) for value in values])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(arrays), buffer)
    return buffer.getvalue()
