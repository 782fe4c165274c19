"""What each task type does with examples, as a table: tokenise, measure, decode."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from limbert.core.config import TaskType
from limbert.data import metrics
from limbert.data import question_answering as questions
from limbert.data import token_classification as tags
from limbert.data.readers import Examples
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, tokenize_texts


def _tokenize_texts(
    examples: Examples, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int, use_cache: bool, **_: Any
) -> TokenizedExamples:
    tokens = tokenize_texts(replace(examples, labels=None), tokenizer, max_length=max_length, use_cache=use_cache)
    return tokens.with_labels(metrics.label_tensor(task, examples))


@dataclass(frozen=True)
class TaskHandler:
    """What a task type does with data; by default, what those at texts do."""

    decode_predictions: Callable[[Task, np.ndarray, TokenizedExamples], list[dict[str, Any]]]
    tokenize: Callable[..., TokenizedExamples] = _tokenize_texts  # takes the arguments of `tokenize_for_task`
    make_examples: Callable[[Sequence[str], Sequence[str] | None], Examples] = metrics.text_examples  # texts and pairs
    compute_metrics: Callable[[Task, np.ndarray, TokenizedExamples], dict[str, float]] = metrics.text_metrics


TASK_HANDLERS: Mapping[TaskType, TaskHandler] = {
    "classification": TaskHandler(metrics.classification_predictions),
    "regression": TaskHandler(metrics.regression_predictions),
    "multi-label": TaskHandler(metrics.multi_label_predictions),
    "token-classification": TaskHandler(
        tags.tag_predictions, tags.tokenize_words, tags.word_examples, tags.tag_metrics
    ),
    "question-answering": TaskHandler(
        questions.answer_predictions, questions.tokenize_windows, questions.question_examples, questions.squad_metrics
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
