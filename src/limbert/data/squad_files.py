"""Reading questions with contexts and answers: SQuAD files, and tables with the same columns."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limbert.core.config import DataConfig
from limbert.data.columns import check_columns
from limbert.data.readers import Examples, ReferenceAnswers, check_text
from limbert.data.table import Table, check_readable, file_format, open_table
from limbert.data.tasks import Columns, Task, custom_task
from limbert.data.text_rows import TableRow, find_lone_surrogate
from limbert.errors import ConfigError, DataError

SQUAD_FORMATS = (".json", ".jsonl", ".parquet", ".csv", ".tsv")
_COLUMNS = ("title", "context", "question", "answers", "is_impossible")


def open_questions(path: Path) -> Table:
    """A SQuAD file as a table of ``title, context, question, answers, is_impossible``; other formats as they are."""
    if file_format(check_readable(path)) != ".json" or path.suffix.lower() == ".gz":
        return open_table(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):  # one object per line
        return open_table(path)
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
                    yield TableRow(number, [*cells.values()], problem)
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"not SQuAD's layout ({error!r}), expected articles with paragraphs, each with qas"
            yield TableRow(number + 1, (), problem)


def read_questions(table: Table, config: DataConfig, task: Task | None) -> tuple[Task, Examples]:
    """The questions with their contexts and answers; a row is named by the number of its question, from 1."""
    if config.label_names is not None:
        raise ConfigError(f"label names are {list(config.label_names)}; question answering has none")
    return task or custom_task("question-answering", ()), _read_examples(table, config, labelled=True)


def read_unlabelled_questions(path: Path, config: DataConfig) -> Examples:
    """Questions with their contexts."""
    return _read_examples(open_questions(path), config, labelled=False)


def _read_examples(table: Table, config: DataConfig, *, labelled: bool) -> Examples:
    question_column, context_column = config.text_column or "question", config.pair_column or "context"
    answer_column = (config.label_column or "answers") if labelled else None
    check_columns(table, Columns(question_column, context_column, answer_column))

    def parse(row: Any) -> tuple[str, str, ReferenceAnswers | None, str]:
        cells = dict(zip(table.columns, row, strict=True))
        question = check_text(cells[question_column], question_column)
        context = check_text(cells[context_column], context_column)
        answers = None
        if answer_column is not None:
            answers = _parse_answers(cells[answer_column], context, impossible=bool(cells.get("is_impossible")))
        return question, context, answers, str(cells.get("title") or context)

    _, rows, bad_rows = table.parse(parse, skip_bad_rows=config.skip_bad_rows)
    if not rows:
        raise DataError(f"{table.name}: no question that can be used; expected at least one")
    questions, contexts, answers, groups = zip(*rows, strict=True)
    return Examples(questions, contexts, answers if labelled else None, bad_rows, groups=groups)


def _parse_answers(value: object, context: str, *, impossible: bool) -> ReferenceAnswers:
    """Answers as SQuAD writes them (a list of objects) or as the Hub does (an object of lists)."""
    unreadable = "answers that cannot be read, expected objects with text and answer_start"
    try:
        if isinstance(value, dict):
            pairs = list(zip(value["text"], value["answer_start"], strict=True))
        else:
            pairs = [(answer["text"], answer["answer_start"]) for answer in value]  # type: ignore[attr-defined]
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
