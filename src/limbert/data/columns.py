"""Which columns of a table hold the text, its pair and the label: what was given, what GLUE says, or a stated guess."""

import itertools
from collections.abc import Callable
from dataclasses import replace

from limbert.core.config import DataConfig
from limbert.data.table import Table
from limbert.data.tasks import Columns, GlueTask
from limbert.errors import DataError

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
