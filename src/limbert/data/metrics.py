"""Text-level tasks (classification, regression, multi-label): metrics, and predictions for people."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

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


def _f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1 (the paraphrase, the duplicate)."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, zero_division=0.0))


def _matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))  # 0 where predictions or labels are all the same


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


def _macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the classes' F1: all classes of a multi-label task, else those in predictions or labels."""
    if predicted.ndim == 1:
        from sklearn.metrics import f1_score

        return float(f1_score(labels, predicted, average="macro", zero_division=0.0))
    correct, total = _class_counts(predicted, labels)
    return float((2 * correct / np.maximum(total, 1)).mean())


def _micro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """F1 over all pairs of example and class; 0 if no class applies and none is predicted."""
    correct, total = _class_counts(predicted, labels)
    return float(2 * correct.sum() / max(total.sum(), 1))


def _class_counts(predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each class ``(classes,)``: correct positive predictions; positive predictions plus positive labels.

    scikit-learn reads one column as two classes, and counts a correct negative as found.
    """
    positive, actual = predicted > 0, labels > 0
    return (positive & actual).sum(axis=0), positive.sum(axis=0) + actual.sum(axis=0)


METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda predicted, labels: float((predicted == labels).mean()),
    "f1": _f1,
    "matthews": _matthews,
    "pearson": partial(_correlation, "pearsonr"),
    "spearman": partial(_correlation, "spearmanr"),
    "micro_f1": _micro_f1,
    "macro_f1": _macro_f1,
    "subset_accuracy": lambda predicted, labels: float((predicted == labels).all(axis=1).mean()),
}


def label_counts(task: Task, examples: Examples) -> np.ndarray:
    """How often each class occurs in the labels, ``(classes,)``."""
    ids = [np.atleast_1d(np.asarray(label, dtype=np.int64)) for label in examples.labels or ()]
    return np.bincount(np.concatenate([*ids, np.empty(0, dtype=np.int64)]), minlength=len(task.labels))


def multi_hot(examples: Examples, num_classes: int) -> np.ndarray | None:
    """``(examples, classes)``, float32, 1 for each label; None without labels."""
    if examples.labels is None:
        return None
    labels = np.zeros((len(examples), num_classes), dtype=np.float32)
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
    return [
        {"label": task.labels[index], "score": float(score)}
        for index, score in zip(probabilities.argmax(axis=-1), probabilities.max(axis=-1), strict=True)
    ]


def regression_predictions(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """``score``, the predicted value."""
    return [{"score": float(score)} for score in logits[:, 0]]


def multi_label_predictions(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """``labels``: those with a probability over the threshold, the most probable first, with their scores."""
    from scipy.special import expit

    return [
        {
            "labels": [
                {"label": task.labels[index], "score": float(row[index])}
                for index in np.argsort(-row, kind="stable")
                if row[index] > MULTI_LABEL_THRESHOLD
            ]
        }
        for row in expit(logits.astype(np.float64))
    ]


def baseline_logits(task: Task, train: Examples) -> np.ndarray:
    """Constant logits ``(outputs,)`` of the best guess without looking at the text, from the training labels.

    Classification and token classification: the most frequent class; multi-label: the classes of most examples;
    regression: the mean score.

    Raises:
        DataError: question answering, which has no such guess.
    """
    assert train.labels is not None
    if task.task_type == "question-answering":
        raise DataError("question answering has no majority-class baseline")
    if task.task_type == "regression":
        return np.asarray([np.mean(train.labels)], dtype=np.float32)
    ids = [np.atleast_1d(np.asarray(label, dtype=np.int64)) for label in train.labels]
    counts = np.bincount(np.concatenate(ids), minlength=len(task.labels))
    if task.task_type == "multi-label":
        return np.where(counts > MULTI_LABEL_THRESHOLD * len(train), 1.0, -1.0).astype(np.float32)
    return np.eye(len(counts), dtype=np.float32)[counts.argmax()]
