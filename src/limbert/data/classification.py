"""Tasks with one answer a text: classification, regression and multi-label."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from limbert.data.metrics import compute_metrics
from limbert.data.readers import Examples
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples

_THRESHOLD = 0.5  # a class holds where its probability is over this


def multi_hot(examples: Examples, num_classes: int) -> np.ndarray | None:
    """``(examples, classes)``, 1 where a class holds; None without labels."""
    if examples.labels is None:
        return None
    found = np.zeros((len(examples), num_classes), dtype=np.float32)
    for row, ids in enumerate(examples.labels):
        found[row, list(ids)] = 1
    return found


def text_metrics(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> dict[str, float]:
    """The task's metrics by name."""
    assert examples.labels is not None
    return compute_metrics(task, logits, examples.labels.numpy())


def text_examples(texts: Sequence[str], pairs: Sequence[str] | None) -> Examples:
    """Texts, or pairs of texts."""
    return Examples(tuple(texts), tuple(pairs) if pairs else None, None)


def classification_predictions(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """``label`` and ``score``, its probability."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=-1, keepdims=True)  # (examples, classes)
    return [
        {"label": task.labels[index], "score": float(score)}
        for index, score in zip(probabilities.argmax(axis=-1), probabilities.max(axis=-1), strict=True)
    ]


def regression_predictions(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """``score``, the predicted value."""
    return [{"score": float(score)} for score in logits[:, 0]]


def multi_label_predictions(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """``labels``: all whose probability is over 0.5, the most probable first, with their scores."""
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return [
        {
            "labels": [
                {"label": task.labels[index], "score": float(row[index])}
                for index in np.argsort(-row, kind="stable")
                if row[index] > _THRESHOLD
            ]
        }
        for row in probabilities
    ]
