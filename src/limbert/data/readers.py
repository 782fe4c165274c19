"""Examples, the texts and labels that everything else works on, and how they are read from the rows of a table."""

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from limbert.core.config import DataConfig
from limbert.data.labels import LabelParser, label_text
from limbert.data.tasks import GLUE_HUB_NAME, Columns, GlueTask, glue_task
from limbert.errors import ConfigError, DataError

_BATCH_ROWS = 1024  # rows turned into Python values at a time


class TableRow(NamedTuple):
    """One row: its line (in Parquet and Hub data its number, from 1), its cells, and what is wrong with it."""

    line_number: int
    cells: Sequence[object]
    problem: str | None = None


@dataclass(frozen=True)
class Table:
    """A named source of rows, each with one cell a column; ``rows()`` starts from the top every time."""

    name: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[TableRow]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # column -> names, where the data says so
    scan_columns: Callable[[], tuple["Table", int]] | None = (
        None  # what `walked` does where later rows may bring columns
    )

    def with_all_columns(self) -> tuple["Table", int]:
        """The table with all its columns, and how many rows it has. JSON lines may tell of a key in their last row."""
        return (self, sum(1 for _ in self.rows())) if self.scan_columns is None else self.scan_columns()


def check_readable(path: Path) -> Path:
    """The path, if it is a file that can be opened.

    Raises:
        DataError: it is missing, a folder, or not readable.
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


def tsv_table(path: Path, *, header: bool) -> Table:
    """Tab-separated cells without quoting: quote characters are text. Without header, columns are "0", "1", ..."""
    return _delimited_table(path, _tsv_rows, header=header)


def csv_table(path: Path, *, header: bool) -> Table:
    """Comma-separated cells, quoted where they hold commas, quotes or newlines (RFC 4180).

    Where the header is a single cell that holds semicolons or tabs, these part the cells: so do spreadsheets write CSV
    in countries with a decimal comma.
    """
    first = next(_csv_rows(path), None) if header else None
    alone = str(first.cells[0]) if first is not None and len(first.cells) == 1 else ""
    delimiter = next((sign for sign in _OTHER_DELIMITERS if sign in alone), ",")
    return _delimited_table(path, partial(_csv_rows, delimiter=delimiter), header=header)


def json_lines_table(path: Path, *, columns: tuple[str, ...] | None = None) -> Table:
    """One JSON object a line; the columns are those that are given, or else the keys of the first hundred objects."""
    if columns is None:
        sample = (value for _, value, _ in itertools.islice(_json_objects(path), _JSON_SAMPLE_ROWS))
        columns = tuple(dict.fromkeys(key for value in sample if value for key in value))

    def search() -> tuple[Table, int]:
        count, keys = 0, dict[str, None]()
        for _, value, _ in _json_objects(path):
            count += 1
            keys |= dict.fromkeys(value or ())
        return json_lines_table(path, columns=tuple(keys)), count

    def rows() -> Iterator[TableRow]:
        for line, value, problem in _json_objects(path):
            if value is None:
                yield TableRow(line, (), problem)
            else:
                yield TableRow(line, [value.get(column) for column in columns])

    if not columns:
        first = next(rows(), None) or TableRow(1, ())
        problem = first.problem or "no keys, expected one JSON object a line with a text in it"
        raise DataError(f"{path}:{first.line_number}: {problem}")
    return Table(str(path), columns, rows, scan_columns=search)


def lines_table(path: Path) -> Table:
    """Plain text, one text a line, as one column named ``text``."""

    def rows() -> Iterator[TableRow]:
        for line, cells, problem in _drop_trailing_blanks(_line_rows(path)):
            yield TableRow(line, cells or ("",), problem)

    return Table(str(path), ("text",), rows)


def _delimited_table(path: Path, read_rows: Callable[[Path], Iterator[TableRow]], *, header: bool) -> Table:
    first = next(read_rows(path), None)
    if first is None or first.problem is not None or not first.cells:
        problem = first.problem if first and first.problem else "the line is blank"
        raise DataError(f"{path}:1: {problem}; expected {'the names of the columns' if header else 'the first row'}")
    columns = tuple(str(cell) for cell in first.cells) if header else tuple(map(str, range(len(first.cells))))
    model = "header" if header else "first line"

    def rows() -> Iterator[TableRow]:
        for row in _drop_trailing_blanks(itertools.islice(read_rows(path), int(header), None)):
            if row.problem is None and len(row.cells) != len(columns):
                found = f"{len(row.cells)} columns" if row.cells else "a blank line"
                yield TableRow(row.line_number, (), f"{found}, expected {len(columns)} columns as in the {model}")
            else:
                yield row

    return Table(str(path), columns, rows)


def _drop_trailing_blanks(rows: Iterable[TableRow]) -> Iterator[TableRow]:
    """All rows but the blank ones (no cells, no problem) at the end."""
    blanks: list[TableRow] = []
    for row in rows:
        if not row.cells and row.problem is None:
            blanks.append(row)
        else:
            yield from blanks
            blanks.clear()
            yield row


def _decoded_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """Numbered lines with their ends; None for bytes that are not UTF-8. Only LF ends a line: other breaks are text."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield number, (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode("utf-8")
            except UnicodeDecodeError:
                yield number, None


INVALID_UNICODE = "the bytes are not UTF-8; expected UTF-8 text"


def _line_rows(path: Path) -> Iterator[TableRow]:
    for number, text in _decoded_lines(path):
        if text is None:
            yield TableRow(number, (), INVALID_UNICODE)
        else:
            text = text.removesuffix("\n").removesuffix("\r")
            yield TableRow(number, (text,) if text.strip(" ") else ())


def _tsv_rows(path: Path) -> Iterator[TableRow]:
    for line, cells, problem in _line_rows(path):
        yield TableRow(line, str(cells[0]).split("\t") if cells else (), problem)


def _csv_rows(path: Path, *, delimiter: str = ",") -> Iterator[TableRow]:
    undecodable: list[int] = []

    def decoded() -> Iterator[str]:
        for number, text in _decoded_lines(path):
            if text is None:
                undecodable.append(number)
            yield "\n" if text is None else text

    reader = csv.reader(decoded(), delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1  # a quoted cell may run over several lines: the row is named by its first
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield TableRow(start, (), f"broken CSV ({error}); expected cells with closed quotes")
            continue
        if undecodable:
            yield TableRow(undecodable[0], (), INVALID_UNICODE)
            undecodable.clear()
        else:
            yield TableRow(start, cells)


def find_lone_surrogate(values: Mapping[str, object]) -> str | None:
    """The first column with one half of a surrogate pair, which JSON can write and no encoding can; else None."""
    for column, value in values.items():
        try:
            json.dumps({column: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return column
    return None


def _json_objects(path: Path) -> Iterator[tuple[int, dict[str, object] | None, str | None]]:
    for line, cells, problem in _drop_trailing_blanks(_line_rows(path)):
        value = None
        if problem is None:
            try:
                value = json.loads(str(cells[0])) if cells else None
                if not isinstance(value, dict):
                    found = "a blank line" if not cells else f"JSON of type {type(value).__name__}"
                    value, problem = None, f"{found}, expected one JSON object a line"
                elif (column := find_lone_surrogate(value)) is not None:
                    value, problem = None, f"half a character in column {column!r}, expected whole ones"
            except (ValueError, RecursionError) as error:
                problem = f"broken JSON ({error}), expected one JSON object a line"
        yield line, value, problem


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
                yield from file.iter_batches(_BATCH_ROWS)
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
    return _arrow_table(name, dataset.features.arrow_schema, lambda: view.iter(_BATCH_ROWS))


def _arrow_table(name: str, schema: Any, batches: Callable[[], Iterable[Any]]) -> Table:
    class_names = class_names_from_schema(schema)

    def rows() -> Iterator[TableRow]:
        number = itertools.count(1)
        for batch in batches():
            found = [column_values(batch.column(column), class_names.get(column)) for column in schema.names]
            columns = [values for values, _ in found]
            broken = {row for _, rows in found for row in rows}
            for row, cells in enumerate(zip(*columns, strict=True)):
                yield TableRow(next(number), cells, INVALID_UNICODE if row in broken else None)

    return Table(name, tuple(schema.names), rows, class_names)


def class_names_from_schema(schema: Any) -> Mapping[str, tuple[str, ...]]:
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


def column_values(column: Any, class_names: tuple[str, ...] | None = None) -> tuple[list[object], set[int]]:
    """The values of an Arrow column, and the places of those that are no text though they should be; None there.

    Args:
        column: an array, whole or in chunks.
        names: of classes, where the values are their ids and are to be read as names.
    """
    try:
        return _ids_to_names(column.to_pylist(), class_names), set()
    except UnicodeDecodeError:
        broken, values = set(), []
        for place, value in enumerate(column):
            try:
                values.append(value.as_py())
            except UnicodeDecodeError:
                broken.add(place)
                values.append(None)
        return values, broken


def _ids_to_names(values: list[object], class_names: tuple[str, ...] | None) -> list[object]:
    if class_names is None:
        return values
    return [
        _ids_to_names(value, class_names)
        if isinstance(value, list)
        else class_names[value]
        if isinstance(value, int) and 0 <= value < len(class_names)
        else None
        for value in values
    ]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_OTHER_DELIMITERS = (";", "\t")  # of CSV whose header has no comma
_JSON_SAMPLE_ROWS = 100  # objects looked at to learn the columns of a JSON lines file


LABEL_COLUMN_NAMES = ("label", "labels", "category", "class", "target", "intent", "score", "gold_label")
TEXT_COLUMN_NAMES = ("text", "sentence", "content", "message", "review", "question", "query")
PAIR_COLUMN_NAMES = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
)
_SAMPLE_ROWS = 100  # rows looked at to find a column of text

TableOpener = Callable[[bool], Table]  # called with: does the file have a header?


def choose_columns(
    opener: TableOpener, config: DataConfig, glue: GlueTask | None, *, labelled: bool
) -> tuple[Table, Columns]:
    """Open a table and say which columns to read.

    A column that the config names is taken. A GLUE task brings the others. On own data, names compared without case:

    - label: the first of ``LABEL_NAMES`` that the table has;
    - text and pair, if no text column is given: the first of ``TEXT_NAMES`` that the table has; else the first couple
      of ``PAIR_NAMES`` that it has whole (two texts); else the first other column where most of the first hundred
      rows hold two words or more;
    - pair, if a text column is given: none.

    Where all given columns are numbers, the file has no header and they count from 0.

    Args:
        opener: opens the table with (True) or without (False) a header.
        config: its column settings.
        glue: the GLUE task, or None for own data.
        labelled: False leaves the label column out.

    Raises:
        DataError: a column is missing; the message names it and those that there are.
    """
    given = Columns(config.text_column, config.pair_column, config.label_column if labelled else None)
    if glue is None:
        table = opener(not given.are_positions)
        return table, check_columns(table, _guess_columns(table, given, labelled=labelled))
    tried = []
    for layout in glue.column_layouts:
        wanted = Columns(
            given.text or layout.text, given.pair or layout.pair, (given.label or layout.label) if labelled else None
        )
        table = opener(not wanted.are_positions)
        if not _missing(table, wanted):
            return table, check_columns(table, wanted)
        tried.append((table, wanted))
    table, wanted = min(tried, key=lambda pair: pair[1].are_positions)  # complain about names rather than positions
    return table, check_columns(table, wanted)


def check_columns(table: Table, columns: Columns) -> Columns:
    """The columns, if the table has each of them once.

    Raises:
        DataError: it has not; the message names the missing column and those that there are.
    """
    for name in _missing(table, columns):
        raise DataError(f"{table.name}: no column {name!r}; it has {_format_columns(table)}")
    for name in columns.names:
        if table.columns.count(name) > 1:
            count = table.columns.count(name)
            raise DataError(f"{table.name}: column {name!r} stands there {count} times; expected once")
    return columns


def _missing(table: Table, columns: Columns) -> list[str]:
    return [name for name in columns.names if name not in table.columns]


def _format_columns(table: Table) -> str:
    return ", ".join(repr(column) for column in table.columns)


def _guess_columns(table: Table, given: Columns, *, labelled: bool) -> Columns:
    by_lower = {column.lower(): column for column in reversed(table.columns)}
    columns = given
    if labelled and given.label is None:
        label = next((by_lower[name] for name in LABEL_COLUMN_NAMES if name in by_lower), None)
        if label is None:
            raise DataError(
                f"{table.name}: no label column given and none called {', '.join(LABEL_COLUMN_NAMES)}; it has {_format_columns(table)}"
            )
        columns = replace(columns, label=label)
    if given.text is not None:
        return columns
    free = {lower: column for lower, column in by_lower.items() if column not in columns.names}
    for name in TEXT_COLUMN_NAMES:
        if name in free:
            return replace(columns, text=free[name])
    for first, second in PAIR_COLUMN_NAMES:
        if first in free and (second in free or given.pair):
            return replace(columns, text=free[first], pair=given.pair or free[second])
    return replace(columns, text=_guess_text_column(table, exclude=columns.names))


def _guess_text_column(table: Table, *, exclude: tuple[str, ...]) -> str:
    rows = [row.cells for row in itertools.islice(table.rows(), _SAMPLE_ROWS) if row.problem is None]
    for position, column in enumerate(table.columns):
        texts = sum(isinstance(cell := cells[position], str) and len(cell.split()) > 1 for cells in rows)
        if column not in exclude and texts * 2 > len(rows):
            return column
    if not rows:
        raise DataError(f"{table.name}: no rows below the header; expected at least one")
    raise DataError(
        f"{table.name}: no text column given and none with texts of several words; it has {_format_columns(table)}"
    )


FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


CharSpan = tuple[int, int]  # characters of a text: the first, and the one after the last


@dataclass(frozen=True)
class ReferenceAnswers:
    """What is accepted as the answer of a question: pieces of its context, and where each begins."""

    texts: tuple[str, ...]
    answer_starts: tuple[int, ...]


@dataclass(frozen=True)
class Examples:
    """Texts, their second texts if ``pairs`` is set, and labels if they are known.

    A label is a class id or a score; of a multi-label task the ids of all classes that hold, rising; of token
    classification the class id of each word; of a question its `Answers`.
    """

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[Any, ...] | None
    bad_rows: int = 0  # malformed rows that were skipped
    word_spans: tuple[tuple[CharSpan, ...], ...] | None = None  # for token classification: where each text's words are
    groups: tuple[str, ...] | None = None  # what must not be parted by a split, such as the article of a question

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Sequence[int]) -> "Examples":
        """The examples at these places, in this order."""
        return Examples(
            texts=tuple(self.texts[index] for index in indices),
            pairs=None if self.pairs is None else tuple(self.pairs[index] for index in indices),
            labels=None if self.labels is None else tuple(self.labels[index] for index in indices),
            bad_rows=self.bad_rows,
            word_spans=None if self.word_spans is None else tuple(self.word_spans[index] for index in indices),
            groups=None if self.groups is None else tuple(self.groups[index] for index in indices),
        )


@dataclass(frozen=True)
class RawExamples:
    """Examples whose labels still stand as in the file, with the line of each for messages."""

    source: str
    line_numbers: list[int]
    texts: list[str]
    pairs: list[str] | None
    labels: list[object] | None
    bad_rows: int = 0

    def append(self, line_number: int, text: str, pair: str, label: object) -> None:
        """Add one row; its pair and label only where the examples have them."""
        self.line_numbers.append(line_number)
        self.texts.append(text)
        if self.pairs is not None:
            self.pairs.append(pair)
        if self.labels is not None:
            self.labels.append(label)


def open_table(path: Path, *, header: bool = True, columns: tuple[str, ...] | None = None) -> Table:
    """The table in a file, by the end of its name; one of another name, or none, is read as TSV.

    Args:
        path: of the file.
        header: whether the first line of CSV and TSV names the columns.
        columns: those of JSON lines, where they are known; None learns them from the first objects.

    Raises:
        DataError: the file is missing, unreadable or empty, or of a format that is not read.
    """
    kind = check_readable(path).suffix.lower()
    if kind == ".csv":
        return csv_table(path, header=header)
    if kind in (".jsonl", ".json"):
        return json_lines_table(path, columns=columns)
    if kind == ".parquet":
        return parquet_table(path)
    if kind in (".tsv", ".txt", ""):
        return tsv_table(path, header=header)
    raise DataError(f"{path}: format {kind!r} is not read; expected one of {', '.join(FORMATS)}")


def read_raw_examples(
    table: Table,
    columns: Columns,
    *,
    skip_bad_rows: bool,
    excluded_labels: Sequence[str] = (),
    multi_label: bool = False,
) -> RawExamples:
    """Read the texts, pairs and raw labels of all rows.

    Args:
        table: where the rows come from.
        columns: those to read; checked to be there.
        skip_bad_rows: count malformed rows and go on, instead of stopping at the first.
        unlabelled: labels of rows that are left out without counting as malformed.
        several_labels: whether a row may have any number of labels, none among them.

    Raises:
        DataError: a malformed row (``FILE:LINE: what, expected``), or no row at all.
    """
    raw = RawExamples(table.name, [], [], None if columns.pair is None else [], None if columns.label is None else [])
    text_at, pair_at, label_at = (
        None if name is None else table.columns.index(name) for name in (columns.text, columns.pair, columns.label)
    )
    bad_rows = 0
    for row in table.rows():
        try:
            if row.problem is not None:
                raise ValueError(row.problem)
            label = _raw_label(row.cells, label_at, table, multi_label=multi_label)
            if label in excluded_labels:
                continue
            text, pair = (
                "" if place is None else check_text(row.cells[place], table.columns[place])
                for place in (text_at, pair_at)
            )
        except ValueError as error:
            bad_rows += _skip_or_raise(f"{table.name}:{row.line_number}: {error}", skip=skip_bad_rows)
            continue
        raw.append(row.line_number, text, pair, label)
    if not raw.texts:
        found = f"none of the {bad_rows} rows can be used" if bad_rows else "no rows below the header"
        raise DataError(f"{table.name}: {found}; expected at least one")
    return replace(raw, bad_rows=bad_rows)


def check_text(value: object, column: str) -> str:
    """What stands in a cell of this column, if it is a text.

    Raises:
        ValueError: it is none, or blank; the message says so of the column.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"no text in column {column!r}, expected some")
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} in column {column!r}, expected text")
    return value


def parse_labels(raw: RawExamples, label_parser: LabelParser, *, skip_bad_rows: bool) -> Examples:
    """The examples with their labels as class ids or scores.

    Raises:
        DataError: a label that the task does not know (``FILE:LINE: what, expected``), or no usable row.
    """
    assert raw.labels is not None, "read with a label column"
    kept: list[int] = []
    labels: list[Any] = []
    for place, value in enumerate(raw.labels):
        try:
            labels.append(label_parser.parse(value))
        except ValueError as error:
            _skip_or_raise(f"{raw.source}:{raw.line_numbers[place]}: {error}", skip=skip_bad_rows)
            continue
        kept.append(place)
    if not kept:
        raise DataError(f"{raw.source}: no row has a label of the task; expected at least one")
    bad_rows = raw.bad_rows + len(raw.texts) - len(kept)
    return replace(unlabelled_examples(raw).select(kept), labels=tuple(labels), bad_rows=bad_rows)


def unlabelled_examples(raw: RawExamples) -> Examples:
    """The examples for prediction."""
    return Examples(tuple(raw.texts), None if raw.pairs is None else tuple(raw.pairs), None, raw.bad_rows)


def _skip_or_raise(message: str, *, skip: bool) -> int:
    """One bad row more, or the error that it is."""
    if not skip:
        raise DataError(message)
    return 1


def _raw_label(cells: Sequence[object], column: int | None, table: Table, *, multi_label: bool) -> object:
    """The label in the cell as it stands there, a list as a tuple; None where there is no such column."""
    if column is None:
        return None
    value = cells[column]
    if isinstance(value, list) and all(isinstance(part, (str, int, float)) for part in value):
        return _raw_labels(value, table.columns[column])
    if multi_label and isinstance(value, str) and not value.strip():
        return ()
    if value is None or value != value or not label_text(value):  # NaN is the only value that is not itself
        raise ValueError(f"no label in column {table.columns[column]!r}, expected one")
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"{type(value).__name__} in column {table.columns[column]!r}, expected a name or a number")
    return value


def _raw_labels(values: list[str | int | float], column: str) -> tuple[object, ...]:
    """The labels that hold; a list with a number for *every* class would be read as the classes 0 and 1."""
    numbers = [value for value in values if not isinstance(value, str)]
    if len({*numbers}) < len(numbers) or any(isinstance(value, (bool, float)) for value in numbers):
        raise ValueError(f"a 0 or 1 for each class in column {column!r}, expected a list of the labels that hold")
    return tuple(values)


DEV_SPLIT_NAMES = ("dev", "validation", "valid", "val", "test")  # test only where there is none of the others
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?")


@dataclass(frozen=True)
class DataSources:
    """Openers of the tables; the training one is None where it is absent or was not asked for."""

    train: TableOpener | None
    dev: Mapping[str, TableOpener]


def find_sources(
    config: DataConfig,
    glue: GlueTask | None,
    *,
    formats: Sequence[str] = FORMATS,
    open_file: Callable[[Path], Table] | None = None,
) -> DataSources:
    """Find what ``train`` and ``dev``, or ``data``, or the GLUE task alone (then from the Hub) point to.

    A folder holds ``train.*`` and ``dev.*`` (also ``validation.*``, ``valid.*`` or ``val.*``) with one of the endings
    in ``FORMATS``. Where it has no such development file, ``test.*`` is reported on, and must have labels. MNLI's two
    parts are ``dev_matched`` and ``dev_mismatched``; one is enough. The same holds for the splits of a Hub data set,
    ``NAME`` or ``NAME:CONFIGURATION``.

    Args:
        config: where the data is.
        glue: the GLUE task, or None for other data.
        formats: ends of the names of files in a folder.
        opened: how a file becomes a table; None for files of texts and labels.

    Raises:
        ConfigError: settings that contradict each other, or none at all.
        DataError: nothing lies there.
    """
    if config.train is not None or config.dev is not None:
        if config.data is not None:
            raise ConfigError(f"data is {config.data!r} beside train or dev; it must be one or the other")
        train = None if config.train is None else _file_opener(Path(config.train).expanduser(), open_file)
        return DataSources(
            train, {} if config.dev is None else {"dev": _file_opener(Path(config.dev).expanduser(), open_file)}
        )
    if config.data is None:
        if glue is None:
            raise ConfigError("no data given; it must be a folder or Hub name, train and dev files, or a GLUE task")
        return _from_hub(GLUE_HUB_NAME, glue)
    folder = Path(config.data).expanduser()
    if folder.is_dir():
        return _from_folder(folder, glue, formats=formats, open_file=open_file)
    if folder.exists():
        raise DataError(f"{config.data}: a file; data must be a folder or a Hub name (give files as train and dev)")
    if not _HUB_NAME.fullmatch(config.data) or ("/" in config.data and folder.parent.is_dir()):
        raise DataError(f"{config.data}: no such folder")
    return _from_hub(config.data, glue)


def _from_folder(
    folder: Path, glue: GlueTask | None, *, formats: Sequence[str], open_file: Callable[[Path], Table] | None
) -> DataSources:
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
    train = _find_split_file(files, "train", formats)
    parts = {part: _find_split_file(files, stem, formats) for part, stem in glue.dev_files} if glue else {}
    found = {part: path for part, path in parts.items() if path is not None}
    if not found:
        dev = next(
            (path for path in (_find_split_file(files, stem, formats) for stem in DEV_SPLIT_NAMES) if path is not None),
            None,
        )
        found = {} if dev is None else {"dev": dev}
    if train is None and not found:
        held = ", ".join(path.name for path in files[:10]) or "nothing"
        raise DataError(f"{folder}: no train.* or dev.* ending in {', '.join(formats)}; it holds {held}")
    return DataSources(
        None if train is None else _file_opener(train, open_file),
        {part: _file_opener(path, open_file) for part, path in found.items()},
    )


def _from_hub(name: str, glue: GlueTask | None) -> DataSources:
    name, _, configuration = name.partition(":")
    if glue is not None and not configuration:
        configuration = str(glue.task.name)
    tables = hub_tables(name, configuration or None)
    parts = [(part, stem.replace("dev", "validation")) for part, stem in glue.dev_files] if glue else []
    found = {part: tables[split] for part, split in parts if split in tables}
    if not found:
        dev = next((tables[split] for split in DEV_SPLIT_NAMES if split in tables), None)
        found = {} if dev is None else {"dev": dev}
    if "train" not in tables and not found:
        raise DataError(f"{name}: no split train or {', '.join(DEV_SPLIT_NAMES)}; it has {', '.join(tables)}")
    train = tables.get("train")
    return DataSources(
        None if train is None else _table_opener(train), {part: _table_opener(table) for part, table in found.items()}
    )


def _find_split_file(files: Sequence[Path], stem: str, formats: Sequence[str]) -> Path | None:
    found = [path for path in files if path.stem == stem and path.suffix.lower() in formats]
    if len(found) > 1:
        raise DataError(f"{found[0].parent}: {' and '.join(path.name for path in found)} are both there; expected one")
    return found[0] if found else None


def _file_opener(path: Path, open_file: Callable[[Path], Table] | None) -> TableOpener:
    return lambda header: open_table(path, header=header) if open_file is None else open_file(path)


def _table_opener(table: Table) -> TableOpener:
    return lambda header: table


def read_texts(path: Path, config: DataConfig) -> Examples:
    """Texts, or pairs of texts: of a ``.txt`` file one a line, of any other as training files are read.

    Raises:
        DataError: a missing or unusable file, column or row.
    """
    glue = glue_task(config.task) if config.task is not None else None
    if path.suffix.lower() == ".txt":
        table = lines_table(check_readable(path))
        pair = config.pair_column or (glue.column_layouts[0].pair if glue else None)
        columns = check_columns(table, Columns("text", pair, None))
    else:
        table, columns = choose_columns(lambda header: open_table(path, header=header), config, glue, labelled=False)
    return unlabelled_examples(read_raw_examples(table, columns, skip_bad_rows=config.skip_bad_rows))


FileSuffix = Literal[".tsv", ".csv", ".jsonl"]


@dataclass(frozen=True)
class TableFormat:
    """How rows are laid out in a file: its ending, its columns, and whether the first line names them."""

    suffix: FileSuffix
    columns: tuple[str, ...]
    has_header: bool

    def header(self) -> str:
        """The first line, or nothing where the file has none."""
        return self._format_cells(self.columns) if self.has_header and self.suffix != ".jsonl" else ""

    def format_row(self, cells: Sequence[object]) -> str:
        """One row with its end; in JSON a cell that is None is left out, as in the rows that were read."""
        if self.suffix != ".jsonl":
            return self._format_cells(cells)
        values = {name: cell for name, cell in zip(self.columns, cells, strict=True) if cell is not None}
        return json.dumps(values, ensure_ascii=False, default=str) + "\n"

    def _format_cells(self, cells: Sequence[object]) -> str:
        texts = ["" if cell is None else str(cell) for cell in cells]
        if self.suffix == ".tsv":
            return "\t".join(texts) + "\n"
        file = io.StringIO()
        csv.writer(file, lineterminator="\r\n").writerow(texts)  # it quotes what stands in a line's end, lone ones too
        return file.getvalue().removesuffix("\r\n") + "\n"


def table_format_of(table: Table, *, extra_columns: tuple[str, ...], has_header: bool) -> TableFormat:
    """The format of a table's file with further columns; Parquet files and Hub data sets become JSON lines."""
    path = Path(table.name)
    kinds: dict[str, FileSuffix] = {".csv": ".csv", ".tsv": ".tsv", ".txt": ".tsv", "": ".tsv"}
    suffix = kinds.get(path.suffix.lower(), ".jsonl") if path.is_file() else ".jsonl"
    return TableFormat(suffix, (*table.columns, *extra_columns), has_header)
