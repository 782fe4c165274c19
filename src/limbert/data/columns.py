"""The columns that hold an example: given by the settings, known from the task, or guessed from names and contents."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from limbert.core.config import DataConfig
from limbert.data.table import Table
from limbert.data.tasks import Columns
from limbert.errors import DataError

LABEL_COLUMN_NAMES = ("label", "labels", "category", "class", "target", "intent", "score", "gold_label")
TEXT_COLUMN_NAMES = ("text", "sentence", "content", "message", "review", "question", "query")
PAIR_COLUMN_NAMES = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
)
_SAMPLE_ROWS = 100  # rows searched for a column of text
_MAX_SHOWN_CHARS = 40  # of a column's name in messages: without a header it may be a text


def choose_columns(
    table: Table, config: DataConfig, layouts: Sequence[Columns] = (), *, labelled: bool
) -> tuple[Table, Columns]:
    """Choose the columns to read, and the table with them; False for ``labelled`` leaves the label column out.

    Columns named by the config are taken; the first of the task's ``layouts`` that the table has brings the others.
    Without layouts, names compared without case:

    - label: the first of ``LABEL_COLUMN_NAMES`` in the table;
    - text and pair, if no text column is given: the first of ``TEXT_COLUMN_NAMES`` in the table; else the first pair
      of ``PAIR_COLUMN_NAMES``; else the first other column where most of the first hundred rows have two words or more;
    - pair, if a text column is given: none.

    If all given columns are numbers, the file has no header and they count from 0.
    """
    label = config.label_column if labelled and config.label_columns is None else None
    given = Columns(config.text_column, config.pair_column, label, (config.label_columns or ()) if labelled else ())
    options = [
        Columns(given.text or layout.text, given.pair or layout.pair, (label or layout.label) if labelled else None)
        for layout in layouts
    ]
    if not layouts:
        options = [given if given.are_positions else _guess_columns(table, given, labelled=labelled)]
    fitting = (columns for columns in options if {*columns.names} <= {*_as_addressed(table, columns).columns})
    columns = next(fitting, options[0])
    return select_columns(table, columns), columns


def _as_addressed(table: Table, columns: Columns) -> Table:
    return table.without_header() if columns.are_positions and table.without_header else table


def select_columns(table: Table, columns: Columns) -> Table:
    """The table, read without header if the columns are positions; DataError if it has not each of them once."""
    table = _as_addressed(table, columns)
    for name in columns.names:
        count = table.columns.count(name)
        if count > 1:
            raise DataError(f"{table.name}: {count} columns are named {name!r}; expected one")
        if count == 0:
            guess = " (several columns of labels: --label-columns)" if "," in name else ""
            if name in columns.guessed:
                options = "--text-column, --pair-column or --label-column"
                guess = f" (guessed from {columns.guessed_from}; choose another with {options})"
            raise _error(table, f"column {name!r} not found in {table.name}{guess}")
    return table


def _error(table: Table, problem: str) -> DataError:
    shown = (name if len(name) <= _MAX_SHOWN_CHARS else f"{name[:_MAX_SHOWN_CHARS]}..." for name in table.columns)
    hint = " (or numbers from 0, if the file has no header: --text-column 1 --label-column 0)"
    return DataError(f"{problem}; columns: {', '.join(shown)}{hint if table.without_header else ''}")


def _guess_columns(table: Table, given: Columns, *, labelled: bool) -> Columns:
    by_lower = {column.lower(): column for column in reversed(table.columns)}
    columns = given
    if labelled and not (given.label or given.label_columns):
        label = next((by_lower[name] for name in LABEL_COLUMN_NAMES if name in by_lower), None)
        if label is None:
            raise _error(table, f"no label column given and none named {', '.join(LABEL_COLUMN_NAMES)} in {table.name}")
        columns = replace(columns, label=label)
    if given.text is None:
        columns = _guess_texts(table, columns, by_lower)
    guessed = tuple(name for name in columns.names if name not in given.names)
    return replace(columns, guessed=guessed, guessed_from=table.name)


def _guess_texts(table: Table, columns: Columns, by_lower: dict[str, str]) -> Columns:
    free = {lower: column for lower, column in by_lower.items() if column not in columns.names}
    for name in TEXT_COLUMN_NAMES:
        if name in free:
            return replace(columns, text=free[name])
    for first, second in PAIR_COLUMN_NAMES:
        if first in free and (second in free or columns.pair):
            return replace(columns, text=free[first], pair=columns.pair or free[second])
    rows = [row.cells for row in itertools.islice(table.rows(), _SAMPLE_ROWS) if row.problem is None]
    for column in table.columns:
        texts = sum(isinstance(cell := cells.get(column), str) and len(cell.split()) > 1 for cells in rows)
        if column not in columns.names and texts * 2 > len(rows):
            return replace(columns, text=column)
    if not rows:
        raise DataError(f"{table.name}: no rows below the header; expected at least one")
    raise _error(table, f"no text column given and none with texts of several words in {table.name}")
