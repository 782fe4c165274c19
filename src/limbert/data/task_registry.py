"""The kinds of tasks as a table: a kind is added with a row here, one in ``core.kinds`` and its losses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from limbert.core.config import DataConfig, TaskType
from limbert.data import classification, question_answering, token_classification
from limbert.data.question_answering import tokenize_windows
from limbert.data.readers import Examples, Table
from limbert.data.tasks import Task
from limbert.data.token_classification import tokenize_words
from limbert.data.tokenize import TokenizedExamples, tokenize_texts


@dataclass(frozen=True)
class TaskFileReader:
    """How a kind with files of its own reads them.

    Attributes:
        formats: ends of file names.
        open: a file as a table.
        read: the labelled rows of a table, and the task, which follows from them where it is not given.
        read_unlabelled: a file to be answered.
    """

    formats: tuple[str, ...]
    open_table: Callable[[Path], Table]
    read_labelled: Callable[[Table, DataConfig, Task | None], tuple[Task, Examples]]
    read_unlabelled: Callable[[Path, DataConfig], Examples]


@dataclass(frozen=True)
class TokenizationOptions:
    """How long inputs may be, and whether their tokens are cached: see `prepared`."""

    max_length: int
    stride: int | None
    use_cache: bool


@dataclass(frozen=True)
class TaskHandler:
    """What a kind of task does with data.

    Attributes:
        prepare: examples as tokens with what the model is taught.
        typed: examples of texts, and second texts, that somebody typed.
        score: metrics by name, the primary one first, from logits in the order of the examples.
        answers: plain values for people and JSON, one an example.
        reader: None for tables of texts and labels.
    """

    tokenize: Callable[[Examples, Task, PreTrainedTokenizerBase, TokenizationOptions], TokenizedExamples]
    make_examples: Callable[[Sequence[str], Sequence[str] | None], Examples]
    compute_metrics: Callable[[Task, np.ndarray, TokenizedExamples], dict[str, float]]
    decode_predictions: Callable[[Task, np.ndarray, TokenizedExamples], list[dict[str, Any]]]
    file_reader: TaskFileReader | None = None


def _tokenize_texts(
    examples: Examples, task: Task, tokenizer: PreTrainedTokenizerBase, options: TokenizationOptions
) -> TokenizedExamples:
    return tokenize_texts(examples, tokenizer, max_length=options.max_length, use_cache=options.use_cache)


def _tokenize_multi_label(
    examples: Examples, task: Task, tokenizer: PreTrainedTokenizerBase, options: TokenizationOptions
) -> TokenizedExamples:
    tokens = _tokenize_texts(replace(examples, labels=None), task, tokenizer, options)
    hot = classification.multi_hot(examples, len(task.labels))
    return replace(tokens, labels=None if hot is None else torch.from_numpy(hot))


def _tokenize_words(
    examples: Examples, task: Task, tokenizer: PreTrainedTokenizerBase, options: TokenizationOptions
) -> TokenizedExamples:
    return tokenize_words(examples, tokenizer, max_length=options.max_length)


def _tokenize_windows(
    examples: Examples, task: Task, tokenizer: PreTrainedTokenizerBase, options: TokenizationOptions
) -> TokenizedExamples:
    return tokenize_windows(examples, tokenizer, max_length=options.max_length, stride=options.stride)


TASK_HANDLERS: Mapping[TaskType, TaskHandler] = {
    "classification": TaskHandler(
        _tokenize_texts,
        classification.text_examples,
        classification.text_metrics,
        classification.classification_predictions,
    ),
    "regression": TaskHandler(
        _tokenize_texts,
        classification.text_examples,
        classification.text_metrics,
        classification.regression_predictions,
    ),
    "multi-label": TaskHandler(
        _tokenize_multi_label,
        classification.text_examples,
        classification.text_metrics,
        classification.multi_label_predictions,
    ),
    "token-classification": TaskHandler(
        _tokenize_words,
        token_classification.word_examples,
        token_classification.tag_metrics,
        token_classification.tag_predictions,
        TaskFileReader(
            token_classification.FORMATS,
            token_classification.open_tagged,
            token_classification.read_tagged,
            token_classification.read_untagged,
        ),
    ),
    "question-answering": TaskHandler(
        _tokenize_windows,
        question_answering.question_examples,
        question_answering.squad_metrics,
        question_answering.answer_predictions,
        TaskFileReader(
            question_answering.FORMATS,
            question_answering.open_questions,
            question_answering.read_questions,
            question_answering.read_unlabelled_questions,
        ),
    ),
}


def file_reader_for(task_type: TaskType | None) -> TaskFileReader | None:
    """How a kind reads its own files; None for tables of texts and labels."""
    return None if task_type is None else TASK_HANDLERS[task_type].file_reader


def tokenize_for_task(
    examples: Examples,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    stride: int | None = None,
    use_cache: bool = True,
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
    return TASK_HANDLERS[task.task_type].tokenize(
        examples, task, tokenizer, TokenizationOptions(max_length, stride, use_cache)
    )


def compute_task_metrics(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> dict[str, float]:
    """The task's metrics by name, in the order of ``task.metrics``; higher is better for all of them.

    Args:
        task: says which metrics.
        logits: ``(examples, outputs)``; of tasks at tokens ``(all tokens, outputs)``.
        examples: labelled.

    Raises:
        DataError: no example, or shapes that do not fit.
    """
    return TASK_HANDLERS[task.task_type].compute_metrics(task, logits, examples)


def decode_predictions(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """What the logits say, in plain values, one an example.

    Args:
        task: what the outputs mean.
        logits: ``(examples, outputs)``; of tasks at tokens ``(all tokens, outputs)``.
        examples: need no labels.
    """
    return TASK_HANDLERS[task.task_type].decode_predictions(task, logits, examples)
