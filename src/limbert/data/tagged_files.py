"""Sentences of words with tags: CoNLL files as tables, and the rows of tables with lists of words and tags."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

from limbert.data.readers import CharSpan, ParsedRow, check_text
from limbert.data.table import Table, TableRow, lines_table
from limbert.data.tasks import Columns

CONLL_FORMATS = (".conll", ".iob", ".bio", ".txt")
_DEFAULT_COLUMNS = 2  # columns of the simplest CoNLL file
_COMMENT = re.compile(r"# +\S+ += ")
_WORD = re.compile(r"[@#]?\w+(?:[-'\u2019./]\w+)*|[^\w\s]")


class _ConllLine(NamedTuple):
    line_number: int
    text: str
    cells: list[str]


def conll_table(path: Path) -> Table:
    """A CoNLL file as a table of ``tokens`` and ``tags``, one row per sentence, named by its first line.

    One word per line, a blank line between sentences; the first column is the word, the last its tag. Columns are
    separated by tabs or spaces. Lines that begin with ``-DOCSTART-`` and comments above a sentence
    (``# sent_id = 7``) are left out.
    """
    lines_of_file = lines_table(path)

    def rows() -> Iterator[TableRow]:
        lines: list[_ConllLine] = []
        problem, columns = None, 0
        for number, cells, line_problem in chain(lines_of_file.rows(), [TableRow(0, {"text": ""})]):
            text = cells["text"]
            if line_problem is not None or (text.strip() and not text.startswith("-DOCSTART-")):
                # words may hold other white space
                parts = text.split("\t") if "\t" in text else [part for part in text.split(" ") if part]
                lines.append(_ConllLine(number, text, parts))
                problem = line_problem or problem
            elif lines:
                words = [] if problem else _without_comments(lines, num_columns=columns)
                if problem:
                    yield TableRow(lines[0].line_number, {}, problem)
                elif words:
                    columns = len(words[-1].cells)
                    tags = [line.cells[-1].strip() if len(line.cells) > 1 else None for line in words]
                    yield TableRow(words[0].line_number, {"tokens": [line.cells[0] for line in words], "tags": tags})
                lines, problem = [], None

    return Table(str(path), ("tokens", "tags"), rows)


def _without_comments(lines: list[_ConllLine], *, num_columns: int) -> list[_ConllLine]:
    """The lines of a sentence without the comments above it.

    A comment begins with ``#`` and a space, and either says ``KEY = VALUE`` or has another number of columns than the
    other lines (if all look like comments, than ``num_columns`` of the sentence before). In a file of two columns,
    ``# O`` is the word ``#``.
    """
    words = [line for line in lines if not line.text.startswith("# ")]
    usual = len(words[-1].cells) if words else num_columns or _DEFAULT_COLUMNS
    for index, line in enumerate(lines):
        if not line.text.startswith("# ") or (len(line.cells) == usual and not _COMMENT.match(line.text)):
            return lines[index:]
    return []


def parse_tagged_row(cells: Mapping[str, Any], columns: Columns) -> ParsedRow:
    """A list of words with one tag (a name, or a number) per word; without a label column a text will do."""
    words, tags = cells.get(str(columns.text)), None
    if columns.label is None and not isinstance(words, list):
        text = check_text(words, str(columns.text))
        return ParsedRow(text, word_spans=split_words(text))
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError("a word is missing, expected a list of words")
    if columns.label is not None:
        tags = cells.get(columns.label)
        if not isinstance(tags, list) or len(tags) != len(words):
            found = len(tags) if isinstance(tags, list) else "no"
            raise ValueError(f"{found} tags for {len(words)} words, expected one per word")
        for word, tag in zip(words, tags, strict=True):
            if not isinstance(tag, (str, int)) or tag == "":
                raise ValueError(f"the word {word!r} has no tag, expected one")
    text, spans = join_words(words)
    return ParsedRow(text, label=tags and tuple(tags), word_spans=spans)


def join_words(words: Sequence[str]) -> tuple[str, tuple[CharSpan, ...]]:
    """Words as one text with a space between, and the characters of each word."""
    ends = accumulate(len(word) + 1 for word in words)
    return " ".join(words), tuple((end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True))


def split_words(text: str) -> tuple[CharSpan, ...]:
    """The words of a plain text; punctuation is a word, but not within one (``O'Neill``)."""
    return tuple(match.span() for match in _WORD.finditer(text))
