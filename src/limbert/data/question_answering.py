"""Question answering: reading questions with their contexts and answers, as SQuAD lays them out or as columns."""

import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from limbert.core.config import DataConfig
from limbert.data.readers import (
    Examples,
    ReferenceAnswers,
    Table,
    TableRow,
    check_readable,
    find_lone_surrogate,
    open_table,
)
from limbert.data.tasks import Task, custom_task
from limbert.data.tokenize import RaggedTokens, TokenAlignment, TokenizedExamples, check_tokenizer
from limbert.errors import ConfigError, DataError

FORMATS = (".json", ".jsonl", ".parquet", ".csv", ".tsv")


def open_questions(path: Path) -> Table:
    """A SQuAD file as a table of ``title, context, question, answers, is_impossible``; other formats as they are.

    Raises:
        DataError: the file is missing, unreadable or empty, or of a format that is not read.
    """
    if check_readable(path).suffix.lower() != ".json":
        return open_table(path)
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):  # an object a line
        return open_table(path)
    articles = whole.get("data") if isinstance(whole, dict) else None
    return open_table(path) if not isinstance(articles, list) else _squad_table(str(path), articles)


def _squad_table(name: str, articles: list[Any]) -> Table:
    columns = ("title", "context", "question", "answers", "is_impossible")

    def rows() -> Iterator[TableRow]:
        number = 0
        for article in articles:
            try:
                for paragraph in article["paragraphs"]:
                    for asked in paragraph["qas"]:
                        number += 1
                        found = {**asked, "title": article.get("title"), "context": paragraph["context"]}
                        broken = find_lone_surrogate({column: found.get(column) for column in columns})
                        problem = broken and f"half a character in {broken!r}, expected whole ones"
                        yield TableRow(number, [found.get(column) for column in columns], problem)
            except (KeyError, TypeError, AttributeError) as error:
                yield TableRow(
                    number + 1, (), f"no SQuAD ({error!r}), expected articles with paragraphs, each with qas"
                )

    return Table(name, columns, rows)


def read_questions(table: Table, config: DataConfig, task: Task | None) -> tuple[Task, Examples]:
    """The questions with their contexts and answers; rows are named by the number of the question, from 1.

    Raises:
        ConfigError: label names.
        DataError: a missing column, or a row (``FILE:NUMBER: what, expected``), one without an answer among them.
    """
    if config.label_names is not None:
        raise ConfigError(f"label names are {list(config.label_names)}; question answering has none")
    found = _read_examples(table, config, labelled=True)
    return task or custom_task("question-answering", ()), found


def read_unlabelled_questions(path: Path, config: DataConfig) -> Examples:
    """Questions with their contexts.

    Raises:
        DataError: a missing or unusable file, column or row.
    """
    return _read_examples(open_questions(path), config, labelled=False)


def question_examples(texts: Sequence[str], pairs: Sequence[str] | None) -> Examples:
    """Questions, and the context of each as its pair.

    Raises:
        ConfigError: no contexts.
    """
    if not pairs:
        raise ConfigError("question answering needs the context of each question: --text QUESTION --pair CONTEXT")
    return Examples(tuple(texts), tuple(pairs), None)


def _read_examples(table: Table, config: DataConfig, *, labelled: bool) -> Examples:
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
            question, context = (_check_text(cells[name], name) for name in names[:2])
            if labelled:
                labels.append(_parse_answers(cells[names[2]], context, impossible=bool(cells.get("is_impossible"))))
        except ValueError as error:
            if not config.skip_bad_rows:
                raise DataError(f"{table.name}:{row.line_number}: {error}") from None
            bad_rows += 1
            continue
        questions.append(question)
        contexts.append(context)
        groups.append(str(cells.get("title") or context))
    if not questions:
        raise DataError(f"{table.name}: no question that can be used; expected at least one")
    answers = tuple(labels) if labelled else None
    return Examples(tuple(questions), tuple(contexts), answers, bad_rows, groups=tuple(groups))


def _check_text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no text in column {name!r}, expected some")
    return value


def _parse_answers(value: object, context: str, *, impossible: bool) -> ReferenceAnswers:
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
    return ReferenceAnswers(tuple(text for text, _ in pairs), tuple(start for _, start in pairs))


_CHUNK = 256  # questions given to the tokenizer at a time
_MIN_WINDOW_TOKENS = 16  # tokens of a window: less leaves no room for a context


def tokenize_windows(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int, stride: int | None
) -> TokenizedExamples:
    """Questions, each with a window of its context; a long context has several, and as many rows.

    The label of a window is the first and the last token of the question's first answer; where that is not whole in the
    window, twice the first token, which is a special one. A question longer than half a window is cut.

    Args:
        examples: questions, with contexts as their pairs.
        tokenizer: a fast one.
        max_length: tokens of a window, special ones and the question included.
        stride: tokens that a window shares with the one before; at most a third of the window.

    Raises:
        ConfigError: the tokenizer is not a fast one or cannot pad, or windows are too short.
    """
    check_tokenizer(tokenizer)
    if max_length < _MIN_WINDOW_TOKENS:
        raise ConfigError(
            f"longest input is {max_length} tokens; for question answering it must be at least {_MIN_WINDOW_TOKENS}"
        )
    assert examples.pairs is not None
    rows: dict[str, list[np.ndarray]] = {"ids": [], "types": [], "starts": [], "ends": []}
    example_of, labels = [], []
    for begin in range(0, len(examples), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        encoded = tokenizer(
            [
                _truncate_question(question, tokenizer, max_tokens=max_length // 2 - 4)
                for question in examples.texts[part]
            ],
            list(examples.pairs[part]),
            truncation="only_second",
            max_length=max_length,
            stride=min(stride or max_length // 4, max_length // 3),
            padding=False,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        for row, ids in enumerate(encoded["input_ids"]):
            number = begin + encoded["overflow_to_sample_mapping"][row]
            starts, ends = _context_offsets(encoded, row)
            example_of.append(number)
            rows["ids"].append(np.asarray(ids, dtype=np.int32))
            rows["starts"].append(starts)
            rows["ends"].append(ends)
            if "token_type_ids" in encoded:
                rows["types"].append(np.asarray(encoded["token_type_ids"][row], dtype=np.int32))
            if examples.labels is not None:
                labels.append(_answer_token_span(examples.labels[number], starts, ends))
    offsets = np.cumsum([0, *(len(ids) for ids in rows["ids"])], dtype=np.int64)
    flat = {name: np.concatenate(parts) for name, parts in rows.items() if parts}
    return TokenizedExamples(
        RaggedTokens(flat["ids"], flat.get("types"), offsets),
        torch.tensor(labels, dtype=torch.long) if examples.labels is not None else None,
        pad_token_id=int(tokenizer.pad_token_id),  # type: ignore[arg-type]  # checked above
        pad_token_type_id=int(tokenizer.pad_token_type_id),
        alignment=TokenAlignment(examples, np.asarray(example_of), flat["starts"], flat["ends"]),
    )


def _truncate_question(question: str, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> str:
    if len(question) <= max_tokens:  # no token is shorter than a character
        return question
    offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return question if len(offsets) <= max_tokens else question[: offsets[max_tokens - 1][1]]


def _context_offsets(encoded: Any, row: int) -> tuple[np.ndarray, np.ndarray]:
    """First character and the one after the last of each token of the context; -1 for all other tokens."""
    spans = np.asarray(encoded["offset_mapping"][row], dtype=np.int32)
    inside = np.asarray([which == 1 for which in encoded.sequence_ids(row)]) & (spans[:, 1] > spans[:, 0])
    return np.where(inside, spans[:, 0], -1).astype(np.int32), np.where(inside, spans[:, 1], -1).astype(np.int32)


def _answer_token_span(answers: ReferenceAnswers, starts: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
    begin, stop = answers.answer_starts[0], answers.answer_starts[0] + len(answers.texts[0])
    inside = np.flatnonzero(starts >= 0)
    first = inside[(starts[inside] <= begin) & (begin < ends[inside])]
    last = inside[(starts[inside] < stop) & (stop <= ends[inside])]
    return (int(first[0]), int(last[-1])) if len(first) and len(last) else (0, 0)


MAX_ANSWER_TOKENS = 30  # of an answer
N_BEST_SIZE = 20  # spans of a window, and of a question, that are weighed against each other
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = {ord(letter): None for letter in string.punctuation}


class AnswerSpan(NamedTuple):
    """A span of a context: its logit, its first character and the one after its last."""

    logit: float
    start: int
    end: int


def best_spans(
    logits: np.ndarray, examples: TokenizedExamples, *, n_best_size: int = N_BEST_SIZE
) -> list[list[AnswerSpan]]:
    """For each question the best spans over all windows of its context, the best first.

    A span begins and ends with tokens of the context, does not end before it begins, and has at most ``MOST_TOKENS``.

    Args:
        logits: ``(all tokens, 2)``: of being the first, and the last.
        examples: from `tokenize_windows`.
        count: spans a question.
    """
    places = examples.alignment
    assert places is not None
    found: list[list[AnswerSpan]] = [[] for _ in places.examples.texts]
    for row, (begin, stop) in enumerate(zip(examples.tokens.offsets[:-1], examples.tokens.offsets[1:], strict=True)):
        tokens = begin + np.flatnonzero(places.char_starts[begin:stop] >= 0)
        for logit, first, last in _best_window_spans(logits[tokens], n_best_size):
            found[places.example_index[row]].append(
                AnswerSpan(logit, int(places.char_starts[tokens[first]]), int(places.char_ends[tokens[last]]))
            )
    return [_deduplicate(sorted(spans, key=lambda one: -one.logit), n_best_size) for spans in found]


def _best_window_spans(logits: np.ndarray, n_best_size: int) -> list[tuple[float, int, int]]:
    """Logit, first and last token of the best spans of one window's context, ``(tokens, 2)``."""
    if not len(logits):
        return []  # the tokenizer finds nothing in this context
    padded = np.concatenate([logits[:, 1], np.full(MAX_ANSWER_TOKENS - 1, -np.inf, dtype=logits.dtype)])
    spans = logits[:, :1] + np.lib.stride_tricks.sliding_window_view(padded, MAX_ANSWER_TOKENS)  # (tokens, lengths)
    flat = spans.ravel()
    best = np.argpartition(flat, -n_best_size)[-n_best_size:] if len(flat) > n_best_size else np.arange(len(flat))
    return [
        (float(flat[at]), int(at) // MAX_ANSWER_TOKENS, int(at) // MAX_ANSWER_TOKENS + int(at) % MAX_ANSWER_TOKENS)
        for at in best
        if np.isfinite(flat[at])
    ]


def _deduplicate(spans: Sequence[AnswerSpan], count: int) -> list[AnswerSpan]:
    """The first so many that differ: windows overlap, and find the same."""
    kept: dict[tuple[int, int], AnswerSpan] = {}
    for span in spans:
        kept.setdefault((span.start, span.end), span)
    return list(kept.values())[:count]


def squad_metrics(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> dict[str, float]:
    """Mean F1 and exact match of the best spans, from 0 to 1.

    Args:
        task: question answering.
        logits: ``(all tokens, 2)``.
        examples: with answers.
    """
    assert examples.alignment is not None
    source = examples.alignment.examples
    assert source.pairs is not None
    assert source.labels is not None
    f1, exact = 0.0, 0.0
    for context, spans, answers in zip(
        source.pairs, best_spans(logits, examples, n_best_size=1), source.labels, strict=True
    ):
        text = context[spans[0].start : spans[0].end] if spans else ""
        f1 += max(token_f1(text, answer) for answer in answers.texts)
        exact += max(float(normalize_answer(text) == normalize_answer(answer)) for answer in answers.texts)
    return {"f1": f1 / len(source), "exact_match": exact / len(source)}


def answer_predictions(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """For each question ``answer``, its ``score`` (probability among the best spans), ``start`` and ``end``."""
    assert examples.alignment is not None
    contexts = examples.alignment.examples.pairs
    assert contexts is not None
    rows: list[dict[str, Any]] = []
    for context, spans in zip(contexts, best_spans(logits, examples), strict=True):
        if not spans:
            rows.append({"answer": "", "score": 0.0, "start": 0, "end": 0})
            continue
        share = 1 / sum(np.exp(span.logit - spans[0].logit) for span in spans)
        start, end = spans[0].start, spans[0].end
        start += len(context[start:end]) - len(context[start:end].lstrip())  # some tokens hold the space before a word
        rows.append({"answer": context[start:end], "score": float(share), "start": start, "end": end})
    return rows


def normalize_answer(text: str) -> str:
    """The answer without what does not matter: case, punctuation, articles, extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the words that two answers share."""
    ours, theirs = normalize_answer(prediction).split(), normalize_answer(reference).split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    if not shared:
        return float(ours == theirs)
    return 2 * shared / (len(ours) + len(theirs))
