"""Reading sentences of words with tags: CoNLL files, tables with lists of words and tags, and texts to tag."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import NamedTuple

from limbert.core.config import DataConfig
from limbert.data.labels import natural_sort_key
from limbert.data.readers import CharSpan, Examples
from limbert.data.table import Table, check_readable, file_format, lines_table, open_table, parse_rows
from limbert.data.tasks import Task, custom_task, entity_tags
from limbert.data.text_rows import TableRow
from limbert.data.token_classification import split_words
from limbert.errors import DataError

WORD_COLUMN_NAMES = ("tokens", "words")
TAG_COLUMN_NAMES = ("tags", "ner_tags", "labels", "ner")
_CONLL_FORMATS = (".conll", ".iob", ".bio", ".txt")
TAGGED_FORMATS = (*_CONLL_FORMATS, ".jsonl", ".json", ".parquet")
_DEFAULT_COLUMNS = 2  # columns of the simplest CoNLL file
_COMMENT = re.compile(r"# +\S+ += ")


def open_tagged(path: Path) -> Table:
    """A CoNLL file as a table of ``tokens`` and ``tags``, one row per sentence; other formats as they are."""
    return _conll_table(check_readable(path)) if file_format(path) in _CONLL_FORMATS else open_table(path)


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
                # words may hold other white space
                parts = text.split("\t") if "\t" in text else [part for part in text.split(" ") if part]
                lines.append(_ConllLine(number, text, parts))
                problem = line_problem or problem
            elif lines:
                words = [] if problem else _without_comments(lines, num_columns=columns)
                if problem:
                    yield TableRow(lines[0].line_number, (), problem)
                elif words:
                    columns = len(words[-1].cells)
                    tags = [line.cells[-1].strip() if len(line.cells) > 1 else None for line in words]
                    yield TableRow(words[0].line_number, ([line.cells[0] for line in words], tags))
                lines, problem = [], None

    return Table(str(path), ("tokens", "tags"), rows)


class _ConllLine(NamedTuple):
    line_number: int
    text: str
    cells: list[str]


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


def read_tagged(table: Table, config: DataConfig, task: Task | None) -> tuple[Task, Examples]:
    """The sentences of a table with their tags, and the task, inferred from the tags if it is None."""
    word_column = table.index_of(*_one_or(config.text_column, WORD_COLUMN_NAMES))
    tag_column = table.index_of(*_one_or(config.label_column, TAG_COLUMN_NAMES))
    lines, sentences, bad_rows = table.parse(
        lambda cells: _words_and_tags(cells[word_column], cells[tag_column]), skip_bad_rows=config.skip_bad_rows
    )
    if not sentences:
        raise DataError(f"{table.name}: no sentence with tags; expected at least one")
    if task is None:
        names = config.label_names or _infer_tag_names([tags for _, tags in sentences], table)
        task = custom_task("token-classification", names)
    tag_id = _tag_parser(task, config)
    _, parsed, unknown_tags = parse_rows(
        table.name,
        zip(lines, sentences, strict=True),
        lambda sentence: (*join_words(sentence[0]), tuple(map(tag_id, sentence[1]))),
        skip_bad_rows=config.skip_bad_rows,
    )
    bad_rows += unknown_tags
    if not parsed:
        raise DataError(f"{table.name}: none of the {bad_rows} sentences can be used; expected at least one")
    texts, spans, labels = zip(*parsed, strict=True)
    return task, Examples(texts, None, labels, bad_rows, word_spans=spans)


def read_untagged(path: Path, config: DataConfig) -> Examples:
    """Texts to tag: one text per line (``.txt``), words already split (CoNLL, or lists), or a column of texts."""
    table = lines_table(check_readable(path)) if file_format(path) == ".txt" else open_tagged(path)
    given = config.text_column if config.text_column in table.columns else None
    column = table.index_of(*_one_or(given, (*WORD_COLUMN_NAMES, "text", "sentence")))

    def parse(cells: Sequence[object]) -> tuple[str, tuple[CharSpan, ...]]:
        value = cells[column]
        if isinstance(value, str) and value.strip():
            return value, split_words(value)
        if isinstance(value, list) and value and all(isinstance(word, str) and word for word in value):
            return join_words(value)
        raise ValueError(f"no words in column {table.columns[column]!r}, expected a list of words or a text")

    _, parsed, bad_rows = table.parse(parse, skip_bad_rows=config.skip_bad_rows)
    if not parsed:
        raise DataError(f"{table.name}: no words; expected a text or a list of words in some row")
    texts, spans = zip(*parsed, strict=True)
    return Examples(texts, None, None, bad_rows, word_spans=spans)


def join_words(words: Sequence[str]) -> tuple[str, tuple[CharSpan, ...]]:
    """Words as one text with a space between, and the characters of each word."""
    ends = accumulate(len(word) + 1 for word in words)
    return " ".join(words), tuple((end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True))


def _one_or(name: str | None, names: tuple[str, ...]) -> tuple[str, ...]:
    return (name,) if name else names


def _words_and_tags(words: object, tags: object) -> tuple[list[str], list[str | int]]:
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError("a word is missing, expected a list of words")
    if not isinstance(tags, list) or len(tags) != len(words):
        found = len(tags) if isinstance(tags, list) else "no"
        raise ValueError(f"{found} tags for {len(words)} words, expected one per word")
    for word, tag in zip(words, tags, strict=True):
        if not isinstance(tag, (str, int)) or tag == "":
            raise ValueError(f"the word {word!r} has no tag, expected one")
    return words, tags


def _infer_tag_names(tag_rows: Sequence[Sequence[str | int]], table: Table) -> tuple[str, ...]:
    """All tags, ``O`` first; each entity type has a tag for every prefix in use, seen or not.

    Tags that mark no entity among those that do are left out, so that their rows are bad rows.
    """
    tags = {tag for row in tag_rows for tag in row}
    if any(isinstance(tag, int) for tag in tags):
        raise DataError(f"{table.name}: tags are numbers; give their names in the order of the ids with --label-names")
    names = {str(tag) for tag in tags}
    entities = entity_tags(names)
    if entities:
        prefixes = {name[0] for name in entities} - {"O"}
        if prefixes & {"B", "I"}:
            prefixes |= {"B"} if "M" in prefixes else {"B", "I"}
        names = {f"{prefix}-{name[2:]}" for name in entities - {"O"} for prefix in prefixes} | (entities & {"O"})
    return tuple(sorted(names, key=lambda name: (name != "O", natural_sort_key(name[2:]), name)))


def _tag_parser(task: Task, config: DataConfig) -> Callable[[str | int], int]:
    name_to_id = {name: index for index, name in enumerate(task.labels)}
    given = config.label_names

    def tag_id(tag: str | int) -> int:
        if given is not None and isinstance(tag, int) and not isinstance(tag, bool) and 0 <= tag < len(given):
            return name_to_id[given[tag]]
        if str(tag) not in name_to_id:
            raise ValueError(f"tag {tag!r} is unknown, expected one of {', '.join(name_to_id)}")
        return name_to_id[str(tag)]

    return tag_id
