"""Questions with contexts and answers: SQuAD files as tables, and the rows of tables with the same columns."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from limbert.data.readers import ParsedRow, ReferenceAnswers, check_text
from limbert.data.table import Table, TableRow, check_readable, open_table
from limbert.data.tasks import Columns
from limbert.data.text_rows import find_lone_surrogate

_COLUMNS = ("title", "context", "question", "answers", "is_impossible")


def squad_table(path: Path) -> Table:
    """A SQuAD file, with a row per question, numbered from 1; a file of JSON lines as it is."""
    try:
        content = None if path.suffix == ".gz" else json.loads(check_readable(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):  # one object per line
        content = None
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list):
        return open_table(path)
    return Table(str(path), _COLUMNS, lambda: _squad_rows(articles))


def _squad_rows(articles: list[Any]) -> Iterator[TableRow]:
    number = 0
    for article in articles:
        try:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    number += 1
                    values = {**question, "title": article.get("title"), "context": paragraph["context"]}
                    cells = {column: values.get(column) for column in _COLUMNS}
                    invalid = find_lone_surrogate(cells)
                    problem = invalid and f"invalid Unicode (half of a surrogate pair) in {invalid!r}"
                    yield TableRow(number, cells, problem)
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"not SQuAD's layout ({error!r}), expected articles with paragraphs, each with qas"
            yield TableRow(number + 1, {}, problem)


def parse_question_row(cells: Mapping[str, Any], columns: Columns) -> ParsedRow:
    """A question, its context, its answers, and its article."""
    question, context = (check_text(cells.get(name), name) for name in (columns.text, columns.pair) if name)
    answers = None
    if columns.label is not None:
        answers = _parse_answers(cells.get(columns.label), context, impossible=bool(cells.get("is_impossible")))
    return ParsedRow(question, context, answers, group=str(cells.get("title") or context))


def _parse_answers(value: Any, context: str, *, impossible: bool) -> ReferenceAnswers:
    """Answers as SQuAD writes them (a list of objects) or as the Hub does (an object of lists)."""
    unreadable = "answers that cannot be read, expected objects with text and answer_start"
    try:
        if isinstance(value, dict):
            pairs = list(zip(value["text"], value["answer_start"], strict=True))
        else:
            pairs = [(answer["text"], answer["answer_start"]) for answer in value]
    except (KeyError, TypeError, ValueError):
        raise ValueError(unreadable) from None
    if impossible or not pairs:
        raise ValueError("a question without an answer (SQuAD 2), expected one with an answer in its context")
    for text, start in pairs:
        if not isinstance(text, str) or type(start) is not int or not text.strip():
            raise ValueError(unreadable)
        if start < 0 or context[start : start + len(text)] != text:
            raise ValueError(f"answer {text!r} is not at character {start} of its context, expected it there")
    return ReferenceAnswers(tuple(text for text, _ in pairs), tuple(start for _, start in pairs))
