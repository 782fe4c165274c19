"""Extractive question answering: reading SQuAD files, context windows, the best answer spans, SQuAD metrics."""

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
from limbert.data.columns import check_columns
from limbert.data.readers import Examples, ReferenceAnswers, check_text, skip_or_raise
from limbert.data.table import Table, TableRow, check_readable, file_format, find_lone_surrogate, open_table
from limbert.data.tasks import Columns, Task, custom_task
from limbert.data.tokenize import RaggedTokens, TokenAlignment, TokenizedExamples, check_tokenizer, concatenate_rows
from limbert.errors import ConfigError, DataError

FORMATS = (".json", ".jsonl", ".parquet", ".csv", ".tsv")
MAX_ANSWER_TOKENS = 30  # of an answer
N_BEST_SIZE = 20  # candidate spans of a window, and of a question
_CHUNK = 256  # questions given to the tokenizer at a time
_MIN_WINDOW_TOKENS = 16  # a shorter window has no room for a context
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = {ord(letter): None for letter in string.punctuation}


class AnswerSpan(NamedTuple):
    """A span of a context: its logit, its first character and the one after its last."""

    logit: float
    start: int
    end: int


def open_questions(path: Path) -> Table:
    """A SQuAD file as a table of ``title, context, question, answers, is_impossible``; other formats as they are.

    Raises:
        DataError: the file is missing, unreadable, empty or of an unknown format.
    """
    if file_format(check_readable(path)) != ".json" or path.suffix.lower() == ".gz":
        return open_table(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):  # one object per line
        return open_table(path)
    articles = content.get("data") if isinstance(content, dict) else None
    return _squad_table(str(path), articles) if isinstance(articles, list) else open_table(path)


def _squad_table(name: str, articles: list[Any]) -> Table:
    columns = ("title", "context", "question", "answers", "is_impossible")

    def rows() -> Iterator[TableRow]:
        number = 0
        for article in articles:
            try:
                for paragraph in article["paragraphs"]:
                    for question in paragraph["qas"]:
                        number += 1
                        values = {**question, "title": article.get("title"), "context": paragraph["context"]}
                        invalid = find_lone_surrogate({column: values.get(column) for column in columns})
                        problem = invalid and f"invalid Unicode (half of a surrogate pair) in {invalid!r}"
                        yield TableRow(number, [values.get(column) for column in columns], problem)
            except (KeyError, TypeError, AttributeError) as error:
                problem = f"not SQuAD's layout ({error!r}), expected articles with paragraphs, each with qas"
                yield TableRow(number + 1, (), problem)

    return Table(name, columns, rows)


def read_questions(table: Table, config: DataConfig, task: Task | None) -> tuple[Task, Examples]:
    """The questions with their contexts and answers; a row is named by the number of its question, from 1.

    Raises:
        ConfigError: label names.
        DataError: a missing column, or a bad row (``FILE:NUMBER: what, expected``), such as one without an answer.
    """
    if config.label_names is not None:
        raise ConfigError(f"label names are {list(config.label_names)}; question answering has none")
    return task or custom_task("question-answering", ()), _read_examples(table, config, labelled=True)


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
    question_column, context_column = config.text_column or "question", config.pair_column or "context"
    answer_column = (config.label_column or "answers") if labelled else None
    check_columns(table, Columns(question_column, context_column, answer_column))
    questions, contexts, answers, groups, bad_rows = [], [], [], [], 0
    for row in table.rows():
        try:
            if row.problem is not None:
                raise ValueError(row.problem)
            cells = dict(zip(table.columns, row.cells, strict=True))
            question = check_text(cells[question_column], question_column)
            context = check_text(cells[context_column], context_column)
            if answer_column is not None:
                answers.append(
                    _parse_answers(cells[answer_column], context, impossible=bool(cells.get("is_impossible")))
                )
        except ValueError as error:
            bad_rows += skip_or_raise(table, row.line_number, error, skip=config.skip_bad_rows)
            continue
        questions.append(question)
        contexts.append(context)
        groups.append(str(cells.get("title") or context))
    if not questions:
        raise DataError(f"{table.name}: no question that can be used; expected at least one")
    labels = tuple(answers) if labelled else None
    return Examples(tuple(questions), tuple(contexts), labels, bad_rows, groups=tuple(groups))


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


def tokenize_windows(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int, stride: int | None
) -> TokenizedExamples:
    """Questions, each with a window of its context; a long context has several windows, one row each.

    The label of a window is the first and the last token of the question's first answer; if the window does not hold
    it whole, twice the first token, which is a special one. A question longer than half a window is truncated.

    Args:
        examples: questions, with contexts as their pairs.
        tokenizer: a fast one.
        max_length: tokens of a window, special tokens and the question included.
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
    max_question = max_length // 2 - 4
    ids, types, example_of, starts, ends, labels = [], [], [], [], [], []
    for begin in range(0, len(examples), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        encoded = tokenizer(
            [_truncate_question(question, tokenizer, max_tokens=max_question) for question in examples.texts[part]],
            list(examples.pairs[part]),
            truncation="only_second",
            max_length=max_length,
            stride=min(stride or max_length // 4, max_length // 3),
            padding=False,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        ids += encoded["input_ids"]
        types += encoded.get("token_type_ids", [])
        for row, sample in enumerate(encoded["overflow_to_sample_mapping"]):
            example_of.append(begin + sample)
            first, last = _context_offsets(encoded, row)
            starts.append(first)
            ends.append(last)
            if examples.labels is not None:
                labels.append(_answer_token_span(examples.labels[begin + sample], first, last))
    return TokenizedExamples(
        RaggedTokens.from_rows(ids, types),
        torch.tensor(labels, dtype=torch.long) if examples.labels is not None else None,
        pad_token_id=int(tokenizer.pad_token_id),  # type: ignore[arg-type]  # checked above
        pad_token_type_id=int(tokenizer.pad_token_type_id),
        alignment=TokenAlignment(examples, np.asarray(example_of), concatenate_rows(starts), concatenate_rows(ends)),
    )


def _truncate_question(question: str, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> str:
    if len(question) <= max_tokens:  # no token is shorter than a character
        return question
    offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return question if len(offsets) <= max_tokens else question[: offsets[max_tokens - 1][1]]


def _context_offsets(encoded: Any, row: int) -> tuple[np.ndarray, np.ndarray]:
    """First character and the one after the last of each token of the context; -1 for all other tokens."""
    spans = np.asarray(encoded["offset_mapping"][row], dtype=np.int32)
    inside = np.asarray([part == 1 for part in encoded.sequence_ids(row)]) & (spans[:, 1] > spans[:, 0])
    return np.where(inside, spans[:, 0], -1), np.where(inside, spans[:, 1], -1)


def _answer_token_span(answers: ReferenceAnswers, starts: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
    begin, stop = answers.answer_starts[0], answers.answer_starts[0] + len(answers.texts[0])
    inside = np.flatnonzero(starts >= 0)
    first = inside[(starts[inside] <= begin) & (begin < ends[inside])]
    last = inside[(starts[inside] < stop) & (stop <= ends[inside])]
    return (int(first[0]), int(last[-1])) if len(first) and len(last) else (0, 0)


def best_spans(
    logits: np.ndarray, examples: TokenizedExamples, *, n_best_size: int = N_BEST_SIZE
) -> list[list[AnswerSpan]]:
    """For each question the best distinct spans over all windows of its context, the best first.

    A span begins and ends with tokens of the context, in this order, and has at most ``MAX_ANSWER_TOKENS``.

    Args:
        logits: ``(all tokens, 2)``: of the first token, and of the last.
        examples: from `tokenize_windows`.
        n_best_size: spans per question.
    """
    alignment = examples.alignment
    assert alignment is not None
    spans: list[list[AnswerSpan]] = [[] for _ in alignment.examples.texts]
    for row, (begin, stop) in enumerate(zip(examples.tokens.offsets[:-1], examples.tokens.offsets[1:], strict=True)):
        tokens = begin + np.flatnonzero(alignment.char_starts[begin:stop] >= 0)
        for logit, first, last in _best_window_spans(logits[tokens], n_best_size):
            spans[alignment.example_index[row]].append(
                AnswerSpan(logit, int(alignment.char_starts[tokens[first]]), int(alignment.char_ends[tokens[last]]))
            )
    best = []
    for candidates in spans:
        distinct: dict[tuple[int, int], AnswerSpan] = {}  # overlapping windows find the same span
        for span in sorted(candidates, key=lambda span: -span.logit):
            distinct.setdefault((span.start, span.end), span)
        best.append(list(distinct.values())[:n_best_size])
    return best


def _best_window_spans(logits: np.ndarray, n_best_size: int) -> list[tuple[float, int, int]]:
    """Logit, first and last token of the best spans of one window's context, ``(tokens, 2)``."""
    if not len(logits):
        return []  # the context has no token
    padded = np.concatenate([logits[:, 1], np.full(MAX_ANSWER_TOKENS - 1, -np.inf, dtype=logits.dtype)])
    spans = logits[:, :1] + np.lib.stride_tricks.sliding_window_view(padded, MAX_ANSWER_TOKENS)  # (tokens, lengths)
    flat = spans.ravel()
    best = np.argpartition(flat, -n_best_size)[-n_best_size:] if len(flat) > n_best_size else np.arange(len(flat))
    firsts, lengths = np.divmod(best, MAX_ANSWER_TOKENS)
    return [
        (float(flat[index]), int(first), int(first + length))
        for index, first, length in zip(best, firsts, lengths, strict=True)
        if np.isfinite(flat[index])
    ]


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
    from scipy.special import softmax

    assert examples.alignment is not None
    contexts = examples.alignment.examples.pairs
    assert contexts is not None
    rows: list[dict[str, Any]] = []
    for context, spans in zip(contexts, best_spans(logits, examples), strict=True):
        if not spans:
            rows.append({"answer": "", "score": 0.0, "start": 0, "end": 0})
            continue
        score = softmax([span.logit for span in spans])[0]
        start, end = spans[0].start, spans[0].end
        start += len(context[start:end]) - len(context[start:end].lstrip())  # some tokens hold the space before a word
        rows.append({"answer": context[start:end], "score": float(score), "start": start, "end": end})
    return rows


def normalize_answer(text: str) -> str:
    """The answer without case, punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the words that two answers have in common."""
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(reference).split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    if not common:
        return float(predicted == expected)
    return 2 * common / (len(predicted) + len(expected))
