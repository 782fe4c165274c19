"""What each task type does with examples, as a table: tokenise, measure, decode."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from limbert.core.config import TaskType
from limbert.data import metrics, question_answering, token_classification
from limbert.data.readers import Examples
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, tokenize_texts


@dataclass(frozen=True)
class TaskHandler:
    """What a task type does with data."""

    tokenize: Callable[..., TokenizedExamples]  # takes the arguments of `tokenize_for_task`
    make_examples: Callable[[Sequence[str], Sequence[str] | None], Examples]  # of texts and second texts
    compute_metrics: Callable[[Task, np.ndarray, TokenizedExamples], dict[str, float]]
    decode_predictions: Callable[[Task, np.ndarray, TokenizedExamples], list[dict[str, Any]]]


def _tokenize_texts(
    examples: Examples, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int, use_cache: bool, **_: Any
) -> TokenizedExamples:
    if task.task_type != "multi-label":
        return tokenize_texts(examples, tokenizer, max_length=max_length, use_cache=use_cache)
    tokens = tokenize_texts(replace(examples, labels=None), tokenizer, max_length=max_length, use_cache=use_cache)
    labels = metrics.multi_hot(examples, len(task.labels))
    return replace(tokens, labels=None if labels is None else torch.from_numpy(labels))


def _text_handler(decode_predictions: Any) -> TaskHandler:
    return TaskHandler(_tokenize_texts, metrics.text_examples, metrics.text_metrics, decode_predictions)


TASK_HANDLERS: Mapping[TaskType, TaskHandler] = {
    "classification": _text_handler(metrics.classification_predictions),
    "regression": _text_handler(metrics.regression_predictions),
    "multi-label": _text_handler(metrics.multi_label_predictions),
    "token-classification": TaskHandler(
        token_classification.tokenize_words,
        token_classification.word_examples,
        token_classification.tag_metrics,
        token_classification.tag_predictions,
    ),
    "question-answering": TaskHandler(
        question_answering.tokenize_windows,
        question_answering.question_examples,
        question_answering.squad_metrics,
        question_answering.answer_predictions,
    ),
}


def tokenize_for_task(
    examples: Examples,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    stride: int | None = None,
    use_cache: bool = True,
) -> TokenizedExamples:
    """Examples of a task as tokens with labels, of at most ``max_length`` tokens, special ones included.

    Windows of question answering share ``stride`` tokens (None: a quarter of the longest input). ``use_cache``, where
    the task type has a token cache.
    """
    tokenize = TASK_HANDLERS[task.task_type].tokenize
    return tokenize(examples, task, tokenizer, max_length=max_length, stride=stride, use_cache=use_cache)


def compute_task_metrics(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> dict[str, float]:
    """`metrics.compute_metrics` of labelled examples; logits of token-level tasks are ``(all tokens, outputs)``."""
    return TASK_HANDLERS[task.task_type].compute_metrics(task, logits, examples)


def baseline_metrics(task: Task, train: Examples, examples: TokenizedExamples) -> dict[str, float]:
    """The task's metrics on ``examples`` of the majority class (or mean score) of the training labels.

    Raises:
        DataError: question answering, which has no such baseline.
    """
    count = len(examples.tokens.ids) if task.task_type == "token-classification" else len(examples)
    return compute_task_metrics(task, np.tile(metrics.baseline_logits(task, train), (count, 1)), examples)


def decode_predictions(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """Predictions as plain values, one per example, from logits shaped as for `compute_task_metrics`."""
    return TASK_HANDLERS[task.task_type].decode_predictions(task, logits, examples)
