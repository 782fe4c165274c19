"""Question answering: the best spans of a context, and how near an answer is to those that people gave.

Exact match and F1 are those of SQuAD (Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text",
2016, section 6.1): after lower-casing, without punctuation, articles and extra white space, the best over all answers.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from limbert.data.tokenize import TokenizedExamples
from limbert.data.tasks import Task

MOST_TOKENS = 30  # of an answer
BEST = 20  # spans of a window, and of a question, that are weighed against each other
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = {ord(letter): None for letter in string.punctuation}


class Found(NamedTuple):
    """A span of a context: its logit, its first character and the one after its last."""

    logit: float
    start: int
    end: int


def best_spans(logits: np.ndarray, examples: TokenizedExamples, *, count: int = BEST) -> list[list[Found]]:
    """For each question the best spans over all windows of its context, the best first.

    A span begins and ends with tokens of the context, does not end before it begins, and has at most ``MOST_TOKENS``.

    Args:
        logits: ``(all tokens, 2)``: of being the first, and the last.
        examples: from `tokenize_windows`.
        count: spans a question.
    """
    places = examples.places
    assert places is not None
    found: list[list[Found]] = [[] for _ in places.examples.texts]
    for row, (begin, stop) in enumerate(zip(examples.tokens.offsets[:-1], examples.tokens.offsets[1:], strict=True)):
        tokens = begin + np.flatnonzero(places.starts[begin:stop] >= 0)
        for logit, first, last in _best_of_window(logits[tokens], count):
            found[places.example_of[row]].append(
                Found(logit, int(places.starts[tokens[first]]), int(places.ends[tokens[last]]))
            )
    return [_distinct(sorted(spans, key=lambda one: -one.logit), count) for spans in found]


def _best_of_window(logits: np.ndarray, count: int) -> list[tuple[float, int, int]]:
    """Logit, first and last token of the best spans of one window's context, ``(tokens, 2)``."""
    if not len(logits):
        return []  # the tokenizer finds nothing in this context
    padded = np.concatenate([logits[:, 1], np.full(MOST_TOKENS - 1, -np.inf, dtype=logits.dtype)])
    spans = logits[:, :1] + np.lib.stride_tricks.sliding_window_view(padded, MOST_TOKENS)  # (tokens, lengths)
    flat = spans.ravel()
    best = np.argpartition(flat, -count)[-count:] if len(flat) > count else np.arange(len(flat))
    return [
        (float(flat[at]), int(at) // MOST_TOKENS, int(at) // MOST_TOKENS + int(at) % MOST_TOKENS)
        for at in best
        if np.isfinite(flat[at])
    ]


def _distinct(spans: Sequence[Found], count: int) -> list[Found]:
    """The first so many that differ: windows overlap, and find the same."""
    kept: dict[tuple[int, int], Found] = {}
    for span in spans:
        kept.setdefault((span.start, span.end), span)
    return list(kept.values())[:count]


def score_answers(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> dict[str, float]:
    """Mean F1 and exact match of the best spans, from 0 to 1.

    Args:
        task: question answering.
        logits: ``(all tokens, 2)``.
        examples: with answers.
    """
    assert examples.places is not None
    source = examples.places.examples
    assert source.pairs is not None
    assert source.labels is not None
    f1, exact = 0.0, 0.0
    for context, spans, answers in zip(source.pairs, best_spans(logits, examples, count=1), source.labels, strict=True):
        text = context[spans[0].start : spans[0].end] if spans else ""
        f1 += max(token_f1(text, answer) for answer in answers.texts)
        exact += max(float(normalized(text) == normalized(answer)) for answer in answers.texts)
    return {"f1": f1 / len(source), "exact_match": exact / len(source)}


def span_answers(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """For each question ``answer``, its ``score`` (probability among the best spans), ``start`` and ``end``."""
    assert examples.places is not None
    contexts = examples.places.examples.pairs
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


def normalized(text: str) -> str:
    """The answer without what does not matter: case, punctuation, articles, extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(text: str, answer: str) -> float:
    """F1 of the words that two answers share."""
    ours, theirs = normalized(text).split(), normalized(answer).split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    if not shared:
        return float(ours == theirs)
    return 2 * shared / (len(ours) + len(theirs))
