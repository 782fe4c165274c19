"""Extractive question answering: context windows, the best answer spans, SQuAD metrics."""

import itertools
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from limbert.data.readers import Examples, ReferenceAnswers
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, check_tokenizer, tokenize_aligned
from limbert.errors import ConfigError

MAX_ANSWER_TOKENS = 30  # of an answer
N_BEST_SIZE = 20  # candidate spans of a window, and of a question
_MIN_WINDOW_TOKENS = 16  # a shorter window has no room for a context
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = {ord(letter): None for letter in string.punctuation}


class AnswerSpan(NamedTuple):
    """A span of a context: its logit, its first character and the one after its last."""

    logit: float
    start: int
    end: int


def question_examples(texts: Sequence[str], pairs: Sequence[str] | None) -> Examples:
    """Questions, and the context of each as its pair."""
    if not pairs:
        raise ConfigError("question answering needs the context of each question: --text QUESTION --pair CONTEXT")
    return Examples(tuple(texts), tuple(pairs), None)


def tokenize_windows(
    examples: Examples, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int, stride: int | None, **_: Any
) -> TokenizedExamples:
    """Questions, each with a window of its context; a long context has several windows, one row each.

    The label of a window is the first and the last token of the question's first answer; if the window does not hold
    it whole, twice the first token, which is a special one. A question longer than half a window is truncated. Windows
    share ``stride`` tokens, at most a third of their length.
    """
    check_tokenizer(tokenizer)
    if max_length < _MIN_WINDOW_TOKENS:
        raise ConfigError(
            f"longest input is {max_length} tokens; for question answering it must be at least {_MIN_WINDOW_TOKENS}"
        )

    def truncate(question: str, max_tokens: int = max_length // 2 - 4) -> str:
        if len(question) <= max_tokens:  # no token is shorter than a character
            return question
        offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return question if len(offsets) <= max_tokens else question[: offsets[max_tokens - 1][1]]

    def align(number: int, encoded: Any, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        spans = np.asarray(encoded["offset_mapping"][row], dtype=np.int32)
        in_context = np.asarray([part == 1 for part in encoded.sequence_ids(row)]) & (spans[:, 1] > spans[:, 0])
        starts, ends = (np.where(in_context, spans[:, index], -1) for index in (0, 1))
        labels = () if examples.labels is None else _answer_token_span(examples.labels[number], starts, ends)
        return starts, ends, np.asarray(labels)

    windows = {"stride": min(stride or max_length // 4, max_length // 3), "return_overflowing_tokens": True}
    options: dict[str, Any] = {"max_length": max_length, "truncation": "only_second"} | windows
    truncated = replace(examples, texts=tuple(map(truncate, examples.texts)))
    tokens = tokenize_aligned(truncated, tokenizer, align, **options)
    return replace(tokens, alignment=replace(tokens.aligned, examples=examples))


def _answer_token_span(answers: ReferenceAnswers, starts: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
    begin, stop = answers.answer_starts[0], answers.answer_starts[0] + len(answers.texts[0])
    first = np.flatnonzero((starts >= 0) & (starts <= begin) & (begin < ends))
    last = np.flatnonzero((starts >= 0) & (starts < stop) & (stop <= ends))
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
    alignment = examples.aligned
    spans: list[dict[tuple[int, int], float]] = [{} for _ in alignment.examples.texts]  # logits by characters
    for row, (begin, stop) in enumerate(itertools.pairwise(examples.tokens.offsets)):
        tokens = begin + np.flatnonzero(alignment.char_starts[begin:stop] >= 0)
        found = spans[alignment.example_index[row]]
        for logit, first, last in _best_window_spans(logits[tokens], n_best_size):
            span = int(alignment.char_starts[tokens[first]]), int(alignment.char_ends[tokens[last]])
            found[span] = max(logit, found.get(span, logit))  # overlapping windows find the same span
    ranked = [sorted(found.items(), key=lambda item: -item[1])[:n_best_size] for found in spans]
    return [[AnswerSpan(logit, *span) for span, logit in best] for best in ranked]


def _best_window_spans(logits: np.ndarray, n_best_size: int) -> list[tuple[float, int, int]]:
    """Logit, first and last token of the best spans of one window's context, ``(tokens, 2)``."""
    if not len(logits):
        return []  # the context has no token
    padded = np.concatenate([logits[:, 1], np.full(MAX_ANSWER_TOKENS - 1, -np.inf, dtype=logits.dtype)])
    spans = logits[:, :1] + np.lib.stride_tricks.sliding_window_view(padded, MAX_ANSWER_TOKENS)  # (tokens, lengths)
    count = min(n_best_size, spans.size)
    best = np.argpartition(spans, spans.size - count, axis=None)[-count:]
    firsts, lengths = np.unravel_index(best, spans.shape)
    rows = zip(spans.flat[best].tolist(), firsts.tolist(), (firsts + lengths).tolist(), strict=True)
    return [row for row in rows if np.isfinite(row[0])]


def squad_metrics(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> dict[str, float]:
    """Mean F1 and exact match of the best spans, from 0 to 1; logits ``(all tokens, 2)``."""
    source = examples.aligned.examples
    assert source.pairs is not None
    assert source.labels is not None
    f1, exact = 0.0, 0.0
    best = best_spans(logits, examples, n_best_size=1)
    for context, spans, answers in zip(source.pairs, best, source.labels, strict=True):
        text = context[spans[0].start : spans[0].end] if spans else ""
        f1 += max(token_f1(text, answer) for answer in answers.texts)
        exact += max(float(normalize_answer(text) == normalize_answer(answer)) for answer in answers.texts)
    return {"f1": f1 / len(source), "exact_match": exact / len(source)}


def answer_predictions(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """For each question ``answer``, its ``score`` (probability among the best spans), ``start`` and ``end``."""
    from scipy.special import softmax

    contexts = examples.aligned.examples.pairs
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
