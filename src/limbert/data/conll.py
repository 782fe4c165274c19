"""Reading CoNLL files: one word per line with its tag, a blank line between sentences."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from limbert.data.table import Table, TableRow, check_readable, file_format, lines_table, open_table

CONLL_FORMATS = (".conll", ".iob", ".bio", ".txt")
_DEFAULT_COLUMNS = 2  # columns of the simplest CoNLL file
_COMMENT = re.compile(r"# +\S+ += ")


def open_tagged(path: Path) -> Table:
    """A CoNLL file as a table of ``tokens`` and ``tags``, one row per sentence; other formats as they are.

    Raises:
        DataError: the file is missing, unreadable, empty or of an unknown format.
    """
    return _conll_table(check_readable(path)) if file_format(path) in CONLL_FORMATS else open_table(path)


def _conll_table(path: Path) -> Table:
    """One word per line, a blank line between sentences; the first column is the word, the last its tag.

    Columns are separated by tabs or spaces. Lines that begin with ``-DOCSTART-`` and comments above a sentence
    (``# sent_id = 7``) are left out. A row is named by its first line.
    """

    def rows() -> Iterator[TableRow]:
        lines: list[_ConllLine] = []
        problem, columns = None, 0
        for number, cells, line_problem in chain(lines_table(path).rows(), [TableRow(0, ())]):
            text = str(cells[0]) if cells else ""
            if line_problem is not None or (text.strip() and not text.startswith("-DOCSTART-")):
                lines.append(_ConllLine(number, text))
                problem = line_problem or problem
            elif lines:
                words = lines if problem else _without_comments(lines, num_columns=columns)
                if words:
                    columns = len(words[-1].cells)
                    tags = [line.cells[-1].strip() if len(line.cells) > 1 else None for line in words]
                    yield TableRow(words[0].line_number, ([line.cells[0] for line in words], tags), problem)
                lines, problem = [], None

    return Table(str(path), ("tokens", "tags"), rows)


class _ConllLine(NamedTuple):
    line_number: int
    text: str

    @property
    def cells(self) -> list[str]:
        if "\t" in self.text:
            return self.text.split("\t")
        return [part for part in self.text.split(" ") if part]  # words may hold other white space


def _without_comments(lines: list[_ConllLine], *, num_columns: int) -> list[_ConllLine]:
    """The lines of a sentence without the comments above it.

    A comment begins with ``#`` and a space, and either says ``KEY = VALUE`` or has another number of columns than the
    other lines. In a file of two columns, ``# O`` is the word ``#``.

    Args:
        lines: of one sentence.
        num_columns: of the sentence before, which decides if all lines look like comments; 0: there is none.
    """
    words = [line for line in lines if not line.text.startswith("# ")]
    usual = len(words[-1].cells) if words else num_columns or _DEFAULT_COLUMNS
    for index, line in enumerate(lines):
        if not line.text.startswith("# ") or (len(line.cells) == usual and not _COMMENT.match(line.text)):
            return lines[index:]
    return []
