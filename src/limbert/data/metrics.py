"""Text-level tasks (classification, regression, multi-label): metrics, and predictions for people."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbert.core.task_types import MULTI_LABEL_THRESHOLD
from limbert.data.readers import Examples
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import DataError


def predictions(task: Task, logits: np.ndarray) -> np.ndarray:
    """Predictions for logits ``(examples, outputs)``: class ids or scores ``(examples,)``.

    Of a multi-label task 0 or 1 for each class, ``(examples, classes)``.
    """
    if logits.ndim != 2 or logits.shape[1] != task.num_outputs:
        raise DataError(f"logits have shape {logits.shape}; expected (examples, {task.num_outputs})")
    if task.task_type == "multi-label":
        threshold = np.log(MULTI_LABEL_THRESHOLD / (1 - MULTI_LABEL_THRESHOLD))  # of the probability, as a logit
        return (logits > threshold).astype(np.float32)
    return np.asarray(logits.argmax(axis=1) if task.task_type == "classification" else logits[:, 0])


def compute_metrics(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics by name, in the order of ``task.metrics``; higher is better for all of them.

    Args:
        task: says which metrics.
        logits: ``(examples, outputs)``.
        labels: ``(examples,)``, class ids or scores; multi-label ``(examples, classes)``, 0 or 1.
    """
    predicted = predictions(task, logits)
    if not len(labels) or predicted.shape != labels.shape:
        raise DataError(f"{predicted.shape} predictions for {labels.shape} labels; expected as many, and at least one")
    return {name: METRICS[name](predicted, labels) for name in task.metrics}


def text_metrics(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> dict[str, float]:
    """`compute_metrics` of labelled examples."""
    assert examples.labels is not None
    return compute_metrics(task, logits, examples.labels.numpy())


def _scikit_learn(function: str, predicted: np.ndarray, labels: np.ndarray, **options: Any) -> float:
    from sklearn import metrics

    return float(getattr(metrics, function)(labels, predicted, **options))


def _correlation(function: str, predicted: np.ndarray, labels: np.ndarray) -> float:
    """The coefficient by a function of SciPy; 0 where it is undefined, because one side is constant or not finite."""
    from scipy import stats

    x, y = predicted.astype(np.float64), labels.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # SciPy warns of constant input, and of input that is constant but for rounding
        try:
            value = float(getattr(stats, function)(x, y).statistic)
        except (ValueError, RuntimeWarning):
            return 0.0
    return value if np.isfinite(value) else 0.0


def _f1(average: str, predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean F1 of the classes in predictions or labels; of a multi-label task of all classes, or over all its labels."""
    if predicted.ndim == 1:
        return _scikit_learn("f1_score", predicted, labels, average=average, zero_division=0.0)
    columns = zip(predicted.T, labels.T, strict=True) if average == "macro" else [(predicted.ravel(), labels.ravel())]
    return float(np.mean([_scikit_learn("f1_score", *column, zero_division=0.0) for column in columns]))


METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda predicted, labels: float((predicted == labels).mean()),
    "f1": partial(_scikit_learn, "f1_score", zero_division=0.0),  # of class 1 (the paraphrase, the duplicate)
    "matthews": partial(_scikit_learn, "matthews_corrcoef"),  # 0 where predictions or labels are all the same
    "pearson": partial(_correlation, "pearsonr"),
    "spearman": partial(_correlation, "spearmanr"),
    "micro_f1": partial(_f1, "micro"),
    "macro_f1": partial(_f1, "macro"),
    "subset_accuracy": lambda predicted, labels: float((predicted == labels).all(axis=1).mean()),
}


def label_counts(task: Task, examples: Examples) -> np.ndarray:
    """How often each class occurs in the labels, ``(classes,)``."""
    ids = [np.atleast_1d(np.asarray(label, dtype=np.int64)) for label in examples.labels or ()]
    return np.bincount(np.concatenate([*ids, np.empty(0, dtype=np.int64)]), minlength=len(task.labels))


def baseline_logits(task: Task, train: Examples) -> np.ndarray:
    """Constant logits ``(outputs,)`` of the best guess without looking at the text, from the training labels.

    Classification and token classification: the most frequent class; multi-label: the classes of most examples;
    regression: the mean score.

    Raises:
        DataError: question answering, which has no such guess.
    """
    if task.task_type == "question-answering":
        raise DataError("question answering has no majority-class baseline")
    if task.task_type == "regression":
        return np.asarray([np.mean(train.labels or ())], dtype=np.float32)
    counts = label_counts(task, train)
    if task.task_type == "multi-label":
        return np.where(counts > MULTI_LABEL_THRESHOLD * len(train), 1.0, -1.0).astype(np.float32)
    return np.eye(len(counts), dtype=np.float32)[counts.argmax()]


def label_tensor(task: Task, examples: Examples) -> Tensor | None:
    """Class ids or scores ``(examples,)``, multi-label ``(examples, classes)``, 0 or 1; None without labels."""
    if examples.labels is None or task.task_type != "multi-label":
        return None if examples.labels is None else torch.tensor(examples.labels)
    labels = torch.zeros(len(examples), len(task.labels))
    for row, ids in enumerate(examples.labels):
        labels[row, [*ids]] = 1
    return labels


def text_examples(texts: Sequence[str], pairs: Sequence[str] | None) -> Examples:
    """Texts, or pairs of texts."""
    return Examples(tuple(texts), tuple(pairs) if pairs else None, None)


def classification_predictions(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """``label`` and ``score``, its probability."""
    from scipy.special import softmax

    probabilities = softmax(logits, axis=-1)  # (examples, classes)
    best = zip(probabilities.argmax(axis=-1), probabilities.max(axis=-1), strict=True)
    return [{"label": task.labels[index], "score": float(score)} for index, score in best]


def regression_predictions(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """``score``, the predicted value."""
    return [{"score": float(score)} for score in logits[:, 0]]


def multi_label_predictions(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """``labels``: those with a probability over the threshold, the most probable first, with their scores."""
    from scipy.special import expit

    def labels(row: np.ndarray) -> list[dict[str, Any]]:
        chosen = [index for index in np.argsort(-row, kind="stable") if row[index] > MULTI_LABEL_THRESHOLD]
        return [{"label": task.labels[index], "score": float(row[index])} for index in chosen]

    return [{"labels": labels(row)} for row in expit(logits.astype(np.float64))]
