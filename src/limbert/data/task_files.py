"""How the files and rows of each task type are read: CoNLL, SQuAD, tables; texts to predict."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from limbert.core.config import DataConfig, TaskType
from limbert.data.columns import choose_columns
from limbert.data.readers import (
    CharSpan,
    Examples,
    ParsedRow,
    ReferenceAnswers,
    RowParser,
    check_text,
    parse_text_row,
    read_examples,
)
from limbert.data.table import Table, TableRow, check_readable, file_format, lines_table, open_table
from limbert.data.tasks import Columns, column_layouts, find_glue_task
from limbert.data.text_rows import surrogate_problem
from limbert.errors import DataError

_CONLL_FORMATS = (".conll", ".iob", ".bio", ".txt")
TAGGED_FORMATS = (*_CONLL_FORMATS, ".jsonl", ".json", ".parquet")
_SQUAD_COLUMNS = ("title", "context", "question", "answers", "is_impossible")
_COMMENT = re.compile(r"# +\S+ += ")
_WORD = re.compile(r"[@#]?\w+(?:[-'\u2019./]\w+)*|[^\w\s]")


def open_file(path: Path, task_type: TaskType | None = None, *, labelled: bool = True) -> Table:
    """`open_table`, and formats of task types: CoNLL, SQuAD. Without labels ``.txt`` is a text per line (``text``)."""
    suffix = file_format(path)
    if task_type == "question-answering":
        return squad_table(path) if suffix == ".json" else open_table(path)
    if suffix == ".txt" and not labelled:
        return lines_table(path)
    return conll_table(path) if task_type == "token-classification" and suffix in _CONLL_FORMATS else open_table(path)


def open_texts(
    path: Path,
    config: DataConfig,
    *,
    task_type: TaskType | None = None,
    open_table: Callable[[Path], Table] | None = None,
) -> tuple[Table, Columns]:
    """The table in a file, and its columns of texts: a ``.txt`` file has a text per line, others are as in training.

    ``open_table`` replaces `open_file`, for files that are not on a disk.
    """
    glue = find_glue_task(config.task, task_type)
    layouts = column_layouts(glue, task_type)
    if file_format(path) == ".txt" and task_type != "question-answering":
        config, layouts = replace(config, text_column="text"), layouts[:1] or (Columns(None),)
    elif task_type == "token-classification" and config.text_column:  # words in training, perhaps plain texts here
        config, layouts = replace(config, text_column=None), (Columns(config.text_column), *layouts)
    table = open_table(path) if open_table else open_file(path, task_type, labelled=False)
    try:
        return choose_columns(table, config, layouts, labelled=False)
    except DataError:
        if glue is None:
            raise
        return choose_columns(table, config, labelled=False)  # any file, for a model that was trained on GLUE's


def load_texts(path: str | Path, config: DataConfig, *, task_type: TaskType | None = None) -> Examples:
    """Load texts, or pairs of texts, without labels: for prediction.

    A ``.txt`` file holds one text per line. Any other file is read as training files are, with the same columns, with
    or without a label column.
    """
    table, columns = open_texts(Path(path).expanduser(), config, task_type=task_type)
    return read_examples(table, columns, row_parser(task_type), skip_bad_rows=config.skip_bad_rows).examples


def row_parser(task_type: TaskType | None) -> RowParser:
    """Parses the rows of a task type."""
    return _ROW_PARSERS.get(task_type, parse_text_row)


# -- words with tags


def conll_table(path: Path) -> Table:
    """A CoNLL file as a table of ``tokens`` and ``tags``, one row per sentence, named by its first line.

    One word per line, a blank line between sentences; the first column is the word, the last its tag. Columns are
    separated by tabs or spaces. Lines that begin with ``-DOCSTART-`` and comments above a sentence
    (``# sent_id = 7``) are left out.
    """
    lines_of_file = lines_table(path)

    def in_sentence(line: TableRow) -> bool:
        text = line.cells["text"]
        return line.problem is not None or bool(text.strip() and not text.startswith("-DOCSTART-"))

    def rows() -> Iterator[TableRow]:
        num_columns = 2  # of the sentence before; the simplest file has two
        for _, group in filter(lambda item: item[0], groupby(lines_of_file.rows(), in_sentence)):
            lines = [*group]
            words = _without_comments(lines, num_columns)
            if problem := next((line.problem for line in lines if line.problem), None):
                yield TableRow(lines[0].line_number, {}, problem)
            elif words:
                cells = [_split_columns(line) for line in words]
                num_columns = len(cells[-1])
                tags = [parts[-1].strip() if len(parts) > 1 else None for parts in cells]
                yield TableRow(words[0].line_number, {"tokens": [parts[0] for parts in cells], "tags": tags})

    return Table(str(path), ("tokens", "tags"), rows)


def _split_columns(line: TableRow) -> list[str]:
    text = line.cells["text"]  # words may hold other white space
    return text.split("\t") if "\t" in text else [part for part in text.split(" ") if part]


def _without_comments(lines: list[TableRow], num_columns: int) -> list[TableRow]:
    """The lines of a sentence without the comments above it.

    A comment begins with ``#`` and a space, and either says ``KEY = VALUE`` or has another number of columns than the
    other lines (if all look like comments, than ``num_columns``). In a file of two columns, ``# O`` is the word ``#``.
    """
    words = [line for line in lines if not line.cells["text"].startswith("# ")]
    usual = len(_split_columns(words[-1])) if words else num_columns
    for index, line in enumerate(lines):
        if line in words or (len(_split_columns(line)) == usual and not _COMMENT.match(line.cells["text"])):
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


# -- questions


def squad_table(path: Path) -> Table:
    """A SQuAD file, with a row per question, numbered from 1; a file of JSON lines as it is."""
    try:
        content = None if path.suffix == ".gz" else json.loads(check_readable(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):  # one object per line
        content = None
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list):
        return open_table(path)

    def rows() -> Iterator[TableRow]:
        number = 0
        for article in articles:
            try:
                for paragraph in article["paragraphs"]:
                    for question in paragraph["qas"]:
                        number += 1
                        values = {**question, "title": article.get("title"), "context": paragraph["context"]}
                        cells = {column: values.get(column) for column in _SQUAD_COLUMNS}
                        yield TableRow(number, cells, surrogate_problem(cells))
            except (KeyError, TypeError, AttributeError) as error:
                problem = f"not SQuAD's layout ({error!r}), expected articles with paragraphs, each with qas"
                yield TableRow(number + 1, {}, problem)

    return Table(str(path), _SQUAD_COLUMNS, rows)


def parse_question_row(cells: Mapping[str, Any], columns: Columns) -> ParsedRow:
    """A question, its context, its answers as SQuAD or the Hub writes them, and its article."""
    question, context = (check_text(cells.get(name), name) for name in (columns.text, columns.pair) if name)
    group = str(cells.get("title") or context)
    if columns.label is None:
        return ParsedRow(question, context, group=group)
    unreadable = "answers that cannot be read, expected objects with text and answer_start"
    value: Any = cells.get(columns.label)
    try:
        if isinstance(value, dict):  # the Hub's object of lists
            pairs = list(zip(value["text"], value["answer_start"], strict=True))
        else:
            pairs = [(answer["text"], answer["answer_start"]) for answer in value]
    except (KeyError, TypeError, ValueError):
        raise ValueError(unreadable) from None
    if cells.get("is_impossible") or not pairs:
        raise ValueError("a question without an answer (SQuAD 2), expected one with an answer in its context")
    for text, start in pairs:
        if not isinstance(text, str) or type(start) is not int or not text.strip():
            raise ValueError(unreadable)
        if start < 0 or context[start : start + len(text)] != text:
            raise ValueError(f"answer {text!r} is not at character {start} of its context, expected it there")
    texts, starts = zip(*pairs, strict=True)
    return ParsedRow(question, context, ReferenceAnswers(texts, starts), group=group)


_ROW_PARSERS: Mapping[TaskType | None, RowParser] = {
    "multi-label": partial(parse_text_row, multi_label=True),
    "token-classification": parse_tagged_row,
    "question-answering": parse_question_row,
}
