"""The metrics of tasks with one answer a text, GLUE's among them: from logits and labels to numbers."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from limbert.data.tasks import Task
from limbert.errors import DataError


def predictions(task: Task, logits: np.ndarray) -> np.ndarray:
    """The answers that logits ``(examples, outputs)`` mean.

    Returns:
        Class ids or scores ``(examples,)``; of a multi-label task which classes hold, ``(examples, classes)``, 0 or 1.

    Raises:
        DataError: the logits have another number of outputs than the task.
    """
    if logits.ndim != 2 or logits.shape[1] != task.num_outputs:
        raise DataError(f"logits have shape {logits.shape}; expected (examples, {task.num_outputs})")
    if task.task_type == "multi-label":
        return (logits > 0).astype(np.float32)  # a probability over 0.5
    return np.asarray(logits.argmax(axis=1) if task.task_type == "classification" else logits[:, 0])


def compute_metrics(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics by name, in the order of ``task.metrics``; higher is better for all of them.

    Predictions that are all the same have no correlation: the value is 0.0, not NaN.

    Args:
        task: says which metrics.
        logits: ``(examples, outputs)``.
        labels: ``(examples,)``, class ids or scores; multi-label ``(examples, classes)``, 0 or 1.

    Raises:
        DataError: no example, or shapes that do not fit.
    """
    predicted = predictions(task, logits)
    if not len(labels) or predicted.shape != labels.shape:
        raise DataError(f"{predicted.shape} predictions for {labels.shape} labels; expected as many, and at least one")
    return {name: METRICS[name](predicted, labels) for name in task.metrics}


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float((predicted == labels).mean())


def _f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1 (the paraphrase, the duplicate)."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, zero_division=0.0))


def _matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation; 0 where predictions or labels are all the same."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def _pearson(predicted: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predicted, labels)


def _spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predicted, labels)


def _correlation(coefficient: Callable[..., Any], predicted: np.ndarray, labels: np.ndarray) -> float:
    """SciPy's coefficient; 0 where it is undefined, because one side is constant or not finite."""
    x, y = predicted.astype(np.float64), labels.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # SciPy warns where one side is constant, or so nearly that rounding decides
        try:
            value = float(coefficient(x, y).statistic)
        except (ValueError, RuntimeWarning):  # ConstantInputWarning and NearConstantInputWarning are RuntimeWarnings
            return 0.0
    return value if np.isfinite(value) else 0.0


def _micro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """F1 over all decisions, whichever class they are about; 0 where no label is there and none is predicted."""
    right, claimed_and_there = _class_counts(predicted, labels)
    return float(2 * right.sum() / max(claimed_and_there.sum(), 1))


def _macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the classes' F1; a class that is neither there nor predicted counts 0."""
    right, claimed_and_there = _class_counts(predicted, labels)
    return float((2 * right / np.maximum(claimed_and_there, 1)).mean())


def _class_counts(predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each class ``(classes,)``: texts where it is found rightly; those where it is predicted plus those with it.

    Not scikit-learn's, which takes one class alone for two, yes and no, and counts a right no as found.
    """
    claimed, there = predicted > 0, labels > 0
    return (claimed & there).sum(axis=0), claimed.sum(axis=0) + there.sum(axis=0)


def _subset_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of the texts of which every class is decided rightly."""
    return float((predicted == labels).all(axis=1).mean())


METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "micro_f1": _micro_f1,
    "macro_f1": _macro_f1,
    "subset_accuracy": _subset_accuracy,
}
