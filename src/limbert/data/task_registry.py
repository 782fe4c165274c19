"""The kinds of tasks as a table: a kind is added with a row here, one in ``core.kinds`` and its losses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from limbert.core.config import DataConfig, TaskKind
from limbert.data import classification, question_answering, token_classification
from limbert.data.question_answering import tokenize_windows
from limbert.data.readers import Examples, Table
from limbert.data.tasks import Task
from limbert.data.token_classification import tokenize_words
from limbert.data.tokenize import TokenizedExamples, tokenize


@dataclass(frozen=True)
class Reader:
    """How a kind with files of its own reads them.

    Attributes:
        formats: ends of file names.
        open: a file as a table.
        read: the labelled rows of a table, and the task, which follows from them where it is not given.
        read_unlabelled: a file to be answered.
    """

    formats: tuple[str, ...]
    open: Callable[[Path], Table]
    read: Callable[[Table, DataConfig, Task | None], tuple[Task, Examples]]
    read_unlabelled: Callable[[Path, DataConfig], Examples]


@dataclass(frozen=True)
class Lengths:
    """How long inputs may be, and whether their tokens are cached: see `prepared`."""

    longest: int
    stride: int | None
    cache: bool


@dataclass(frozen=True)
class Kind:
    """What a kind of task does with data.

    Attributes:
        prepare: examples as tokens with what the model is taught.
        typed: examples of texts, and second texts, that somebody typed.
        score: metrics by name, the primary one first, from logits in the order of the examples.
        answers: plain values for people and JSON, one an example.
        reader: None for tables of texts and labels.
    """

    prepare: Callable[[Examples, Task, PreTrainedTokenizerBase, Lengths], TokenizedExamples]
    typed: Callable[[Sequence[str], Sequence[str] | None], Examples]
    score: Callable[[Task, np.ndarray, TokenizedExamples], dict[str, float]]
    answers: Callable[[Task, np.ndarray, TokenizedExamples], list[dict[str, Any]]]
    reader: Reader | None = None


def _texts(examples: Examples, task: Task, tokenizer: PreTrainedTokenizerBase, lengths: Lengths) -> TokenizedExamples:
    return tokenize(examples, tokenizer, max_length=lengths.longest, cache=lengths.cache)


def _texts_of_several_classes(
    examples: Examples, task: Task, tokenizer: PreTrainedTokenizerBase, lengths: Lengths
) -> TokenizedExamples:
    tokens = _texts(replace(examples, labels=None), task, tokenizer, lengths)
    hot = classification.multi_hot(examples, len(task.labels))
    return replace(tokens, labels=None if hot is None else torch.from_numpy(hot))


def _words(examples: Examples, task: Task, tokenizer: PreTrainedTokenizerBase, lengths: Lengths) -> TokenizedExamples:
    return tokenize_words(examples, tokenizer, max_length=lengths.longest)


def _windows(examples: Examples, task: Task, tokenizer: PreTrainedTokenizerBase, lengths: Lengths) -> TokenizedExamples:
    return tokenize_windows(examples, tokenizer, max_length=lengths.longest, stride=lengths.stride)


KINDS: Mapping[TaskKind, Kind] = {
    "classification": Kind(
        _texts, classification.typed_pairs, classification.score_texts, classification.class_answers
    ),
    "regression": Kind(_texts, classification.typed_pairs, classification.score_texts, classification.value_answers),
    "multi-label": Kind(
        _texts_of_several_classes, classification.typed_pairs, classification.score_texts, classification.label_answers
    ),
    "token-classification": Kind(
        _words,
        token_classification.typed_texts,
        token_classification.score_tags,
        token_classification.tag_answers,
        Reader(
            token_classification.FORMATS,
            token_classification.open_tagged,
            token_classification.read_tagged,
            token_classification.read_untagged,
        ),
    ),
    "question-answering": Kind(
        _windows,
        question_answering.typed_questions,
        question_answering.score_answers,
        question_answering.span_answers,
        Reader(
            question_answering.FORMATS,
            question_answering.open_questions,
            question_answering.read_questions,
            question_answering.read_unanswered,
        ),
    ),
}


def reader_of(kind: TaskKind | None) -> Reader | None:
    """How a kind reads its own files; None for tables of texts and labels."""
    return None if kind is None else KINDS[kind].reader


def prepared(
    examples: Examples,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    stride: int | None = None,
    cache: bool = True,
) -> TokenizedExamples:
    """Examples of a task as tokens with what its model is taught.

    Args:
        examples: read or typed for the task.
        task: what is predicted.
        tokenizer: a fast one with a padding token.
        max_length: longest input in tokens, special ones included.
        stride: of question answering: tokens that windows share; None is a quarter of the longest input.
        cache: whether to look for tokens of earlier runs and to keep these, where the kind has a cache.

    Raises:
        ConfigError: the tokenizer or the length cannot serve.
    """
    return KINDS[task.kind].prepare(examples, task, tokenizer, Lengths(max_length, stride, cache))


def score(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> dict[str, float]:
    """The task's metrics by name, in the order of ``task.metrics``; higher is better for all of them.

    Args:
        task: says which metrics.
        logits: ``(examples, outputs)``; of tasks at tokens ``(all tokens, outputs)``.
        examples: labelled.

    Raises:
        DataError: no example, or shapes that do not fit.
    """
    return KINDS[task.kind].score(task, logits, examples)


def answers(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """What the logits say, in plain values, one an example.

    Args:
        task: what the outputs mean.
        logits: ``(examples, outputs)``; of tasks at tokens ``(all tokens, outputs)``.
        examples: need no labels.
    """
    return KINDS[task.kind].answers(task, logits, examples)
