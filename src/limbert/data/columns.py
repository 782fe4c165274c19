"""The columns that hold an example: given by the settings, known from GLUE, or guessed from names and contents."""

import itertools
from collections.abc import Callable
from dataclasses import replace

from limbert.core.config import DataConfig
from limbert.data.table import Table
from limbert.data.tasks import Columns, GlueTask
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

TableOpener = Callable[[bool], Table]  # called with: does the file have a header?


def choose_columns(
    opener: TableOpener, config: DataConfig, glue: GlueTask | None, *, labelled: bool
) -> tuple[Table, Columns]:
    """Open a table and choose the columns to read; False for ``labelled`` leaves the label column out.

    Columns named by the config are taken; a GLUE task brings the others. On other data, names compared without case:

    - label: the first of ``LABEL_COLUMN_NAMES`` in the table;
    - text and pair, if no text column is given: the first of ``TEXT_COLUMN_NAMES`` in the table; else the first pair
      of ``PAIR_COLUMN_NAMES``; else the first other column where most of the first hundred rows have two words or more;
    - pair, if a text column is given: none.

    If all given columns are numbers, the file has no header and they count from 0.
    """
    label = config.label_column if labelled and config.label_columns is None else None
    given = Columns(config.text_column, config.pair_column, label, (config.label_columns or ()) if labelled else ())
    if glue is None:
        table = opener(not given.are_positions)
        return table, check_columns(table, _guess_columns(table, given, labelled=labelled))
    candidates = []
    for layout in glue.column_layouts:
        wanted = Columns(
            given.text or layout.text, given.pair or layout.pair, (label or layout.label) if labelled else None
        )
        candidates.append((opener(not wanted.are_positions), wanted))
        if {*wanted.names} <= {*candidates[-1][0].columns}:
            return candidates[-1][0], check_columns(*candidates[-1])
    if not labelled:  # texts of any file, for a model that was trained on GLUE's
        return choose_columns(opener, config, None, labelled=False)
    table, wanted = min(candidates, key=lambda item: item[1].are_positions)  # report names, not positions
    return table, check_columns(table, wanted)


def check_columns(table: Table, columns: Columns) -> Columns:
    """The columns, if the table has each of them once."""
    for name in columns.names:
        if name not in table.columns:
            guess = ""
            if name in columns.guessed:
                options = "--text-column, --pair-column or --label-column"
                guess = f" (guessed from {columns.guessed_from}; choose another with {options})"
            raise table.error(f"no column {name!r}{guess}")
        if table.columns.count(name) > 1:
            raise DataError(f"{table.name}: {table.columns.count(name)} columns are named {name!r}; expected one")
    return columns


def _guess_columns(table: Table, given: Columns, *, labelled: bool) -> Columns:
    by_lower = {column.lower(): column for column in reversed(table.columns)}
    columns = given
    if labelled and given.label is None and not given.label_columns:
        label = next((by_lower[name] for name in LABEL_COLUMN_NAMES if name in by_lower), None)
        if label is None:
            raise table.error(f"no label column given and none named {', '.join(LABEL_COLUMN_NAMES)}")
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
    for index, column in enumerate(table.columns):
        texts = sum(isinstance(cell := cells[index], str) and len(cell.split()) > 1 for cells in rows)
        if column not in columns.names and texts * 2 > len(rows):
            return replace(columns, text=column)
    if not rows:
        raise DataError(f"{table.name}: no rows below the header; expected at least one")
    raise table.error("no text column given and none with texts of several words")
