"""Question answering: reading questions with their contexts and answers, as SQuAD lays them out or as columns."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from limbert.core.config import DataConfig
from limbert.data.readers import Answers, Examples, open_table
from limbert.data.table import Row, Table, half_character, readable
from limbert.data.tasks import Task, own_task
from limbert.errors import ConfigError, DataError

FORMATS = (".json", ".jsonl", ".parquet", ".csv", ".tsv")


def open_questions(path: Path) -> Table:
    """A SQuAD file as a table of ``title, context, question, answers, is_impossible``; other formats as they are.

    Raises:
        DataError: the file is missing, unreadable or empty, or of a format that is not read.
    """
    if readable(path).suffix.lower() != ".json":
        return open_table(path)
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):  # an object a line
        return open_table(path)
    articles = whole.get("data") if isinstance(whole, dict) else None
    return open_table(path) if not isinstance(articles, list) else _squad_table(str(path), articles)


def _squad_table(name: str, articles: list[Any]) -> Table:
    columns = ("title", "context", "question", "answers", "is_impossible")

    def rows() -> Iterator[Row]:
        number = 0
        for article in articles:
            try:
                for paragraph in article["paragraphs"]:
                    for asked in paragraph["qas"]:
                        number += 1
                        found = {**asked, "title": article.get("title"), "context": paragraph["context"]}
                        broken = half_character({column: found.get(column) for column in columns})
                        problem = broken and f"half a character in {broken!r}, expected whole ones"
                        yield Row(number, [found.get(column) for column in columns], problem)
            except (KeyError, TypeError, AttributeError) as error:
                yield Row(number + 1, (), f"no SQuAD ({error!r}), expected articles with paragraphs, each with qas")

    return Table(name, columns, rows)


def read_questions(table: Table, config: DataConfig, task: Task | None) -> tuple[Task, Examples]:
    """The questions with their contexts and answers; rows are named by the number of the question, from 1.

    Raises:
        ConfigError: label names.
        DataError: a missing column, or a row (``FILE:NUMBER: what, expected``), one without an answer among them.
    """
    if config.label_names is not None:
        raise ConfigError(f"label names are {list(config.label_names)}; question answering has none")
    found = _read(table, config, labelled=True)
    return task or own_task("question-answering", ()), found


def read_unanswered(path: Path, config: DataConfig) -> Examples:
    """Questions with their contexts.

    Raises:
        DataError: a missing or unusable file, column or row.
    """
    return _read(open_questions(path), config, labelled=False)


def typed_questions(texts: Sequence[str], pairs: Sequence[str] | None) -> Examples:
    """Questions, and the context of each as its pair.

    Raises:
        ConfigError: no contexts.
    """
    if not pairs:
        raise ConfigError("question answering needs the context of each question: --text QUESTION --pair CONTEXT")
    return Examples(tuple(texts), tuple(pairs), None)


def _read(table: Table, config: DataConfig, *, labelled: bool) -> Examples:
    names = [config.text_column or "question", config.pair_column or "context"]
    names += [config.label_column or "answers"] if labelled else []
    for name in names:
        if name not in table.columns:
            raise DataError(f"{table.name}: no column {name!r}; it has {', '.join(map(repr, table.columns))}")
    questions, contexts, labels, groups, bad_rows = [], [], [], [], 0
    for row in table.rows():
        try:
            if row.problem is not None:
                raise ValueError(row.problem)
            cells = dict(zip(table.columns, row.cells, strict=True))
            question, context = (_text(cells[name], name) for name in names[:2])
            if labelled:
                labels.append(_answers(cells[names[2]], context, impossible=bool(cells.get("is_impossible"))))
        except ValueError as error:
            if not config.skip_bad_rows:
                raise DataError(f"{table.name}:{row.line}: {error}") from None
            bad_rows += 1
            continue
        questions.append(question)
        contexts.append(context)
        groups.append(str(cells.get("title") or context))
    if not questions:
        raise DataError(f"{table.name}: no question that can be used; expected at least one")
    answers = tuple(labels) if labelled else None
    return Examples(tuple(questions), tuple(contexts), answers, bad_rows, groups=tuple(groups))


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no text in column {name!r}, expected some")
    return value


def _answers(value: object, context: str, *, impossible: bool) -> Answers:
    """Answers as SQuAD writes them (a list of objects) or as the Hub does (an object of lists)."""
    try:
        if isinstance(value, dict):
            pairs = list(zip(value["text"], value["answer_start"], strict=True))
        else:
            pairs = [(one["text"], one["answer_start"]) for one in value]  # type: ignore[attr-defined]  # see below
    except (KeyError, TypeError, ValueError):
        raise ValueError("answers that cannot be read, expected objects with text and answer_start") from None
    if impossible or not pairs:
        raise ValueError("a question without an answer (SQuAD 2), expected one with an answer in its context")
    for text, start in pairs:
        if not isinstance(text, str) or type(start) is not int or not text.strip():
            raise ValueError("answers that cannot be read, expected objects with text and answer_start")
        if start < 0 or context[start : start + len(text)] != text:
            raise ValueError(f"answer {text!r} does not stand at character {start} of its context, expected it there")
    return Answers(tuple(text for text, _ in pairs), tuple(start for _, start in pairs))
