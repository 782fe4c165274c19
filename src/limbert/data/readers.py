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
from limbert.data.labels import LabelReader, label_text
from limbert.data.tasks import HUB_GLUE, Columns, GlueTask, glue_task
from limbert.errors import ConfigError, DataError

_BATCH = 1024  # rows turned into Python values at a time


class Row(NamedTuple):
    """One row: its line (in Parquet and Hub data its number, from 1), its cells, and what is wrong with it."""

    line: int
    cells: Sequence[object]
    problem: str | None = None


@dataclass(frozen=True)
class Table:
    """A named source of rows, each with one cell a column; ``rows()`` starts from the top every time."""

    name: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Row]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # column -> names, where the data says so
    search: Callable[[], tuple["Table", int]] | None = None  # what `walked` does where later rows may bring columns

    def walked(self) -> tuple["Table", int]:
        """The table with all its columns, and how many rows it has. JSON lines may tell of a key in their last row."""
        return (self, sum(1 for _ in self.rows())) if self.search is None else self.search()


def readable(path: Path) -> Path:
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
    return _cells_table(path, _split_tabs, header=header)


def csv_table(path: Path, *, header: bool) -> Table:
    """Comma-separated cells, quoted where they hold commas, quotes or newlines (RFC 4180).

    Where the header is a single cell that holds semicolons or tabs, these part the cells: so do spreadsheets write CSV
    in countries with a decimal comma.
    """
    first = next(_split_csv(path), None) if header else None
    alone = str(first.cells[0]) if first is not None and len(first.cells) == 1 else ""
    delimiter = next((sign for sign in _OTHER_DELIMITERS if sign in alone), ",")
    return _cells_table(path, partial(_split_csv, delimiter=delimiter), header=header)


def json_lines_table(path: Path, *, columns: tuple[str, ...] | None = None) -> Table:
    """One JSON object a line; the columns are those that are given, or else the keys of the first hundred objects."""
    if columns is None:
        sample = (value for _, value, _ in itertools.islice(_parse_json(path), _JSON_SAMPLE))
        columns = tuple(dict.fromkeys(key for value in sample if value for key in value))

    def search() -> tuple[Table, int]:
        count, keys = 0, dict[str, None]()
        for _, value, _ in _parse_json(path):
            count += 1
            keys |= dict.fromkeys(value or ())
        return json_lines_table(path, columns=tuple(keys)), count

    def rows() -> Iterator[Row]:
        for line, value, problem in _parse_json(path):
            if value is None:
                yield Row(line, (), problem)
            else:
                yield Row(line, [value.get(column) for column in columns])

    if not columns:
        first = next(rows(), None) or Row(1, ())
        problem = first.problem or "no keys, expected one JSON object a line with a text in it"
        raise DataError(f"{path}:{first.line}: {problem}")
    return Table(str(path), columns, rows, search=search)


def lines_table(path: Path) -> Table:
    """Plain text, one text a line, as one column named ``text``."""

    def rows() -> Iterator[Row]:
        for line, cells, problem in _without_last_blanks(_whole_lines(path)):
            yield Row(line, cells or ("",), problem)

    return Table(str(path), ("text",), rows)


def _cells_table(path: Path, split: Callable[[Path], Iterator[Row]], *, header: bool) -> Table:
    first = next(split(path), None)
    if first is None or first.problem is not None or not first.cells:
        problem = first.problem if first and first.problem else "the line is blank"
        raise DataError(f"{path}:1: {problem}; expected {'the names of the columns' if header else 'the first row'}")
    columns = tuple(str(cell) for cell in first.cells) if header else tuple(map(str, range(len(first.cells))))
    model = "header" if header else "first line"

    def rows() -> Iterator[Row]:
        for row in _without_last_blanks(itertools.islice(split(path), int(header), None)):
            if row.problem is None and len(row.cells) != len(columns):
                found = f"{len(row.cells)} columns" if row.cells else "a blank line"
                yield Row(row.line, (), f"{found}, expected {len(columns)} columns as in the {model}")
            else:
                yield row

    return Table(str(path), columns, rows)


def _without_last_blanks(rows: Iterable[Row]) -> Iterator[Row]:
    """All rows but the blank ones (no cells, no problem) at the end."""
    blanks: list[Row] = []
    for row in rows:
        if not row.cells and row.problem is None:
            blanks.append(row)
        else:
            yield from blanks
            blanks.clear()
            yield row


def _lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """Numbered lines with their ends; None for bytes that are not UTF-8. Only LF ends a line: other breaks are text."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield number, (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode("utf-8")
            except UnicodeDecodeError:
                yield number, None


NOT_UTF8 = "the bytes are not UTF-8; expected UTF-8 text"


def _whole_lines(path: Path) -> Iterator[Row]:
    for number, text in _lines(path):
        if text is None:
            yield Row(number, (), NOT_UTF8)
        else:
            text = text.removesuffix("\n").removesuffix("\r")
            yield Row(number, (text,) if text.strip(" ") else ())


def _split_tabs(path: Path) -> Iterator[Row]:
    for line, cells, problem in _whole_lines(path):
        yield Row(line, str(cells[0]).split("\t") if cells else (), problem)


def _split_csv(path: Path, *, delimiter: str = ",") -> Iterator[Row]:
    undecodable: list[int] = []

    def decoded() -> Iterator[str]:
        for number, text in _lines(path):
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
            yield Row(start, (), f"broken CSV ({error}); expected cells with closed quotes")
            continue
        if undecodable:
            yield Row(undecodable[0], (), NOT_UTF8)
            undecodable.clear()
        else:
            yield Row(start, cells)


def half_character(values: Mapping[str, object]) -> str | None:
    """The first column with one half of a surrogate pair, which JSON can write and no encoding can; else None."""
    for column, value in values.items():
        try:
            json.dumps({column: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return column
    return None


def _parse_json(path: Path) -> Iterator[tuple[int, dict[str, object] | None, str | None]]:
    for line, cells, problem in _without_last_blanks(_whole_lines(path)):
        value = None
        if problem is None:
            try:
                value = json.loads(str(cells[0])) if cells else None
                if not isinstance(value, dict):
                    found = "a blank line" if not cells else f"JSON of type {type(value).__name__}"
                    value, problem = None, f"{found}, expected one JSON object a line"
                elif (column := half_character(value)) is not None:
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


_OTHER_DELIMITERS = (";", "\t")  # of CSV whose header has no comma
_JSON_SAMPLE = 100  # objects looked at to learn the columns of a JSON lines file


LABEL_NAMES = ("label", "labels", "category", "class", "target", "intent", "score", "gold_label")
TEXT_NAMES = ("text", "sentence", "content", "message", "review", "question", "query")
PAIR_NAMES = (("sentence1", "sentence2"), ("text1", "text2"), ("question1", "question2"), ("premise", "hypothesis"))
_SAMPLE = 100  # rows looked at to find a column of text

Opener = Callable[[bool], Table]  # called with: does the file have a header?


def choose_columns(
    opener: Opener, config: DataConfig, glue: GlueTask | None, *, labelled: bool
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
        table = opener(not given.by_number)
        return table, check_columns(table, _guess(table, given, labelled=labelled))
    tried = []
    for layout in glue.layouts:
        wanted = Columns(
            given.text or layout.text, given.pair or layout.pair, (given.label or layout.label) if labelled else None
        )
        table = opener(not wanted.by_number)
        if not _missing(table, wanted):
            return table, check_columns(table, wanted)
        tried.append((table, wanted))
    table, wanted = min(tried, key=lambda pair: pair[1].by_number)  # complain about names rather than positions
    return table, check_columns(table, wanted)


def check_columns(table: Table, columns: Columns) -> Columns:
    """The columns, if the table has each of them once.

    Raises:
        DataError: it has not; the message names the missing column and those that there are.
    """
    for name in _missing(table, columns):
        raise DataError(f"{table.name}: no column {name!r}; it has {_listed(table)}")
    for name in columns.named:
        if table.columns.count(name) > 1:
            count = table.columns.count(name)
            raise DataError(f"{table.name}: column {name!r} stands there {count} times; expected once")
    return columns


def _missing(table: Table, columns: Columns) -> list[str]:
    return [name for name in columns.named if name not in table.columns]


def _listed(table: Table) -> str:
    return ", ".join(repr(column) for column in table.columns)


def _guess(table: Table, given: Columns, *, labelled: bool) -> Columns:
    by_lower = {column.lower(): column for column in reversed(table.columns)}
    columns = given
    if labelled and given.label is None:
        label = next((by_lower[name] for name in LABEL_NAMES if name in by_lower), None)
        if label is None:
            raise DataError(
                f"{table.name}: no label column given and none called {', '.join(LABEL_NAMES)}; it has {_listed(table)}"
            )
        columns = replace(columns, label=label)
    if given.text is not None:
        return columns
    free = {lower: column for lower, column in by_lower.items() if column not in columns.named}
    for name in TEXT_NAMES:
        if name in free:
            return replace(columns, text=free[name])
    for first, second in PAIR_NAMES:
        if first in free and (second in free or given.pair):
            return replace(columns, text=free[first], pair=given.pair or free[second])
    return replace(columns, text=_first_of_text(table, taken=columns.named))


def _first_of_text(table: Table, *, taken: tuple[str, ...]) -> str:
    rows = [row.cells for row in itertools.islice(table.rows(), _SAMPLE) if row.problem is None]
    for position, column in enumerate(table.columns):
        texts = sum(isinstance(cell := cells[position], str) and len(cell.split()) > 1 for cells in rows)
        if column not in taken and texts * 2 > len(rows):
            return column
    if not rows:
        raise DataError(f"{table.name}: no rows below the header; expected at least one")
    raise DataError(f"{table.name}: no text column given and none with texts of several words; it has {_listed(table)}")


FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


Span = tuple[int, int]  # characters of a text: the first, and the one after the last


@dataclass(frozen=True)
class Answers:
    """What is accepted as the answer of a question: pieces of its context, and where each begins."""

    texts: tuple[str, ...]
    starts: tuple[int, ...]


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
    words: tuple[tuple[Span, ...], ...] | None = None  # for token classification: where each text's words are
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
            words=None if self.words is None else tuple(self.words[index] for index in indices),
            groups=None if self.groups is None else tuple(self.groups[index] for index in indices),
        )


@dataclass(frozen=True)
class RawExamples:
    """Examples whose labels still stand as in the file, with the line of each for messages."""

    source: str
    lines: list[int]
    texts: list[str]
    pairs: list[str] | None
    labels: list[object] | None
    bad_rows: int = 0

    def append(self, line: int, text: str, pair: str, label: object) -> None:
        """Add one row; its pair and label only where the examples have them."""
        self.lines.append(line)
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
    kind = readable(path).suffix.lower()
    if kind == ".csv":
        return csv_table(path, header=header)
    if kind in (".jsonl", ".json"):
        return json_lines_table(path, columns=columns)
    if kind == ".parquet":
        return parquet_table(path)
    if kind in (".tsv", ".txt", ""):
        return tsv_table(path, header=header)
    raise DataError(f"{path}: format {kind!r} is not read; expected one of {', '.join(FORMATS)}")


def read_rows(
    table: Table,
    columns: Columns,
    *,
    skip_bad_rows: bool,
    unlabelled: Sequence[str] = (),
    several_labels: bool = False,
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
            label = _label(row.cells, label_at, table, several=several_labels)
            if label in unlabelled:
                continue
            text, pair = (
                "" if place is None else checked_text(row.cells[place], table.columns[place])
                for place in (text_at, pair_at)
            )
        except ValueError as error:
            bad_rows += _refuse(f"{table.name}:{row.line}: {error}", skip=skip_bad_rows)
            continue
        raw.append(row.line, text, pair, label)
    if not raw.texts:
        found = f"none of the {bad_rows} rows can be used" if bad_rows else "no rows below the header"
        raise DataError(f"{table.name}: {found}; expected at least one")
    return replace(raw, bad_rows=bad_rows)


def checked_text(value: object, column: str) -> str:
    """What stands in a cell of this column, if it is a text.

    Raises:
        ValueError: it is none, or blank; the message says so of the column.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"no text in column {column!r}, expected some")
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} in column {column!r}, expected text")
    return value


def with_labels(raw: RawExamples, reader: LabelReader, *, skip_bad_rows: bool) -> Examples:
    """The examples with their labels as class ids or scores.

    Raises:
        DataError: a label that the task does not know (``FILE:LINE: what, expected``), or no usable row.
    """
    assert raw.labels is not None, "read with a label column"
    kept: list[int] = []
    labels: list[Any] = []
    for place, value in enumerate(raw.labels):
        try:
            labels.append(reader.read(value))
        except ValueError as error:
            _refuse(f"{raw.source}:{raw.lines[place]}: {error}", skip=skip_bad_rows)
            continue
        kept.append(place)
    if not kept:
        raise DataError(f"{raw.source}: no row has a label of the task; expected at least one")
    bad_rows = raw.bad_rows + len(raw.texts) - len(kept)
    return replace(without_labels(raw).select(kept), labels=tuple(labels), bad_rows=bad_rows)


def without_labels(raw: RawExamples) -> Examples:
    """The examples for prediction."""
    return Examples(tuple(raw.texts), None if raw.pairs is None else tuple(raw.pairs), None, raw.bad_rows)


def _refuse(message: str, *, skip: bool) -> int:
    """One bad row more, or the error that it is."""
    if not skip:
        raise DataError(message)
    return 1


def _label(cells: Sequence[object], place: int | None, table: Table, *, several: bool) -> object:
    """The label in the cell as it stands there, a list as a tuple; None where there is no such column."""
    if place is None:
        return None
    value = cells[place]
    if isinstance(value, list) and all(isinstance(part, (str, int, float)) for part in value):
        return _labels(value, table.columns[place])
    if several and isinstance(value, str) and not value.strip():
        return ()
    if value is None or value != value or not label_text(value):  # NaN is the only value that is not itself
        raise ValueError(f"no label in column {table.columns[place]!r}, expected one")
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"{type(value).__name__} in column {table.columns[place]!r}, expected a name or a number")
    return value


def _labels(values: list[str | int | float], column: str) -> tuple[object, ...]:
    """The labels that hold; a list with a number for *every* class would be read as the classes 0 and 1."""
    numbers = [value for value in values if not isinstance(value, str)]
    if len({*numbers}) < len(numbers) or any(isinstance(value, (bool, float)) for value in numbers):
        raise ValueError(f"a 0 or 1 for each class in column {column!r}, expected a list of the labels that hold")
    return tuple(values)


DEV_NAMES = ("dev", "validation", "valid", "val", "test")  # test only where there is none of the others
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?")


@dataclass(frozen=True)
class Sources:
    """Openers of the tables; the training one is None where it is absent or was not asked for."""

    train: Opener | None
    dev: Mapping[str, Opener]


def find_sources(
    config: DataConfig,
    glue: GlueTask | None,
    *,
    formats: Sequence[str] = FORMATS,
    opened: Callable[[Path], Table] | None = None,
) -> Sources:
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
        train = None if config.train is None else _file(Path(config.train).expanduser(), opened)
        return Sources(train, {} if config.dev is None else {"dev": _file(Path(config.dev).expanduser(), opened)})
    if config.data is None:
        if glue is None:
            raise ConfigError("no data given; it must be a folder or Hub name, train and dev files, or a GLUE task")
        return _from_hub(HUB_GLUE, glue)
    folder = Path(config.data).expanduser()
    if folder.is_dir():
        return _from_folder(folder, glue, formats=formats, opened=opened)
    if folder.exists():
        raise DataError(f"{config.data}: a file; data must be a folder or a Hub name (give files as train and dev)")
    if not _HUB_NAME.fullmatch(config.data) or ("/" in config.data and folder.parent.is_dir()):
        raise DataError(f"{config.data}: no such folder")
    return _from_hub(config.data, glue)


def _from_folder(
    folder: Path, glue: GlueTask | None, *, formats: Sequence[str], opened: Callable[[Path], Table] | None
) -> Sources:
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
    train = _find(files, "train", formats)
    parts = {part: _find(files, stem, formats) for part, stem in glue.dev} if glue else {}
    found = {part: path for part, path in parts.items() if path is not None}
    if not found:
        dev = next((path for path in (_find(files, stem, formats) for stem in DEV_NAMES) if path is not None), None)
        found = {} if dev is None else {"dev": dev}
    if train is None and not found:
        held = ", ".join(path.name for path in files[:10]) or "nothing"
        raise DataError(f"{folder}: no train.* or dev.* ending in {', '.join(formats)}; it holds {held}")
    return Sources(
        None if train is None else _file(train, opened), {part: _file(path, opened) for part, path in found.items()}
    )


def _from_hub(name: str, glue: GlueTask | None) -> Sources:
    name, _, configuration = name.partition(":")
    if glue is not None and not configuration:
        configuration = str(glue.task.name)
    tables = hub_tables(name, configuration or None)
    parts = [(part, stem.replace("dev", "validation")) for part, stem in glue.dev] if glue else []
    found = {part: tables[split] for part, split in parts if split in tables}
    if not found:
        dev = next((tables[split] for split in DEV_NAMES if split in tables), None)
        found = {} if dev is None else {"dev": dev}
    if "train" not in tables and not found:
        raise DataError(f"{name}: no split train or {', '.join(DEV_NAMES)}; it has {', '.join(tables)}")
    train = tables.get("train")
    return Sources(None if train is None else _opened(train), {part: _opened(table) for part, table in found.items()})


def _find(files: Sequence[Path], stem: str, formats: Sequence[str]) -> Path | None:
    found = [path for path in files if path.stem == stem and path.suffix.lower() in formats]
    if len(found) > 1:
        raise DataError(f"{found[0].parent}: {' and '.join(path.name for path in found)} are both there; expected one")
    return found[0] if found else None


def _file(path: Path, opened: Callable[[Path], Table] | None) -> Opener:
    return lambda header: open_table(path, header=header) if opened is None else opened(path)


def _opened(table: Table) -> Opener:
    return lambda header: table


def read_texts(path: Path, config: DataConfig) -> Examples:
    """Texts, or pairs of texts: of a ``.txt`` file one a line, of any other as training files are read.

    Raises:
        DataError: a missing or unusable file, column or row.
    """
    glue = glue_task(config.task) if config.task is not None else None
    if path.suffix.lower() == ".txt":
        table = lines_table(readable(path))
        pair = config.pair_column or (glue.layouts[0].pair if glue else None)
        columns = check_columns(table, Columns("text", pair, None))
    else:
        table, columns = choose_columns(lambda header: open_table(path, header=header), config, glue, labelled=False)
    return without_labels(read_rows(table, columns, skip_bad_rows=config.skip_bad_rows))


Suffix = Literal[".tsv", ".csv", ".jsonl"]


@dataclass(frozen=True)
class RowFormat:
    """How rows are laid out in a file: its ending, its columns, and whether the first line names them."""

    suffix: Suffix
    columns: tuple[str, ...]
    named: bool

    def header(self) -> str:
        """The first line, or nothing where the file has none."""
        return self._cells(self.columns) if self.named and self.suffix != ".jsonl" else ""

    def line(self, cells: Sequence[object]) -> str:
        """One row with its end; in JSON a cell that is None is left out, as in the rows that were read."""
        if self.suffix != ".jsonl":
            return self._cells(cells)
        values = {name: cell for name, cell in zip(self.columns, cells, strict=True) if cell is not None}
        return json.dumps(values, ensure_ascii=False, default=str) + "\n"

    def _cells(self, cells: Sequence[object]) -> str:
        texts = ["" if cell is None else str(cell) for cell in cells]
        if self.suffix == ".tsv":
            return "\t".join(texts) + "\n"
        file = io.StringIO()
        csv.writer(file, lineterminator="\r\n").writerow(texts)  # it quotes what stands in a line's end, lone ones too
        return file.getvalue().removesuffix("\r\n") + "\n"


def format_like(table: Table, *, more: tuple[str, ...], named: bool) -> RowFormat:
    """The format of a table's file with further columns; Parquet files and Hub data sets become JSON lines."""
    path = Path(table.name)
    kinds: dict[str, Suffix] = {".csv": ".csv", ".tsv": ".tsv", ".txt": ".tsv", "": ".tsv"}
    suffix = kinds.get(path.suffix.lower(), ".jsonl") if path.is_file() else ".jsonl"
    return RowFormat(suffix, (*table.columns, *more), named)
