"""Metrics equal scikit-learn's and SciPy's, and are 0 where these are undefined; the majority baseline."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from limbert.data.metrics import baseline_logits, compute_metrics
from limbert.data.readers import Examples
from limbert.data.task_registry import baseline_metrics, tokenize_for_task
from limbert.data.tasks import custom_task, glue_task
from limbert.data.token_classification import word_examples
from limbert.errors import ConfigError, DataError

RANDOM = np.random.default_rng(0)


def examples_of(labels):
    return Examples(tuple(f"text {number}" for number in range(len(labels))), None, tuple(labels))


def test_metrics_of_glue_equal_the_libraries():
    logits, labels = RANDOM.normal(size=(200, 2)).astype(np.float32), RANDOM.integers(2, size=200)
    found = logits.argmax(1)
    expected = {"accuracy": metrics.accuracy_score(labels, found), "f1": metrics.f1_score(labels, found)}
    assert compute_metrics(glue_task("mrpc").task, logits, labels) == pytest.approx(expected)
    expected = {"matthews": metrics.matthews_corrcoef(labels, found)}
    assert compute_metrics(glue_task("cola").task, logits, labels) == pytest.approx(expected)
    scores = RANDOM.uniform(0, 5, size=300)
    logits = np.round(scores + RANDOM.normal(size=300), 1).astype(np.float32)[:, None]  # with ties
    expected = {name: getattr(stats, name + "r")(logits[:, 0], scores).statistic for name in ("pearson", "spearman")}
    assert compute_metrics(glue_task("stsb").task, logits, scores) == pytest.approx(expected, abs=1e-6)


def test_macro_f1_can_be_the_primary_metric():
    task = custom_task("classification", ("a", "b", "c")).with_primary_metric("macro_f1")
    logits, labels = RANDOM.normal(size=(200, 3)), RANDOM.integers(3, size=200)
    found = logits.argmax(1)
    expected = {"macro_f1": metrics.f1_score(labels, found, average="macro"), "accuracy": (labels == found).mean()}
    assert compute_metrics(task, logits, labels) == pytest.approx(expected)
    assert task.primary_metric == "macro_f1"
    with pytest.raises(ConfigError, match="'rouge'"):
        task.with_primary_metric("rouge")


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9, np.nan])
def test_constant_predictions_score_zero_without_warning(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constant = np.full((1001, 1), value)  # the mean of 0.1 is off by a rounding error, which is no correlation
        scores = compute_metrics(glue_task("stsb").task, constant, RANDOM.uniform(0, 5, size=1001))
        assert scores == {"pearson": 0.0, "spearman": 0.0}
        one_class, labels = np.tile([[1.0, 0.0]], (50, 1)), RANDOM.integers(2, size=50)
        assert compute_metrics(glue_task("cola").task, one_class, labels) == {"matthews": 0.0}
        assert compute_metrics(glue_task("mrpc").task, one_class, np.zeros(50, dtype=int))["f1"] == 0.0


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_multi_label_f1_equals_scikit_learn(classes):
    task = custom_task("multi-label", tuple("abcde"[:classes]))
    logits = RANDOM.normal(size=(300, classes)).astype(np.float32)
    labels = (RANDOM.random((300, classes)) < 0.2).astype(np.float32)
    logits[:, -1] = -1 if classes > 1 else logits[:, -1]  # a class that is never predicted
    found = compute_metrics(task, logits, labels)
    blank = np.zeros_like(labels)  # it takes one column alone for two classes
    said = np.hstack([labels, blank]), np.hstack([logits > 0, blank])
    assert found["micro_f1"] == pytest.approx(metrics.f1_score(*said, average="micro", zero_division=0.0))
    assert found["macro_f1"] == pytest.approx(2 * metrics.f1_score(*said, average="macro", zero_division=0.0))
    assert found["subset_accuracy"] == pytest.approx(((logits > 0) == labels).all(axis=1).mean())
    nothing = compute_metrics(task, np.full((10, classes), -1.0), np.eye(10, classes))
    assert nothing["micro_f1"] == nothing["macro_f1"] == 0.0


@pytest.mark.parametrize(
    ("task", "train", "expected"),
    [
        (custom_task("classification", ("a", "b")), [1, 1, 0], [0, 1]),
        (custom_task("multi-label", ("a", "b")), [(0,), (0, 1), (0,)], [1, -1]),
        (custom_task("token-classification", ("O", "B-x", "I-x")), [(0, 0, 1), (0,)], [1, 0, 0]),
        (custom_task("regression", ()), [1.0, 2.0], [1.5]),
    ],
)
def test_baseline_predicts_the_majority(task, train, expected):
    assert baseline_logits(task, examples_of(train)).tolist() == expected


def test_baseline_metrics_of_text_and_token_tasks(tokenizer):
    task = custom_task("classification", ("a", "b"))
    dev = tokenize_for_task(examples_of([1, 1, 1, 0]), task, tokenizer, max_length=8, use_cache=False)
    assert baseline_metrics(task, examples_of([0, 1, 1]), dev) == {"accuracy": 0.75}
    tags = custom_task("token-classification", ("N", "V"))
    words = replace(word_examples(["one two", "three"], None), labels=((0, 1), (0,)))
    tokens = tokenize_for_task(words, tags, tokenizer, max_length=8)
    assert baseline_metrics(tags, words, tokens) == {"accuracy": pytest.approx(2 / 3)}
    with pytest.raises(DataError):
        baseline_logits(custom_task("question-answering", ()), examples_of([1.0]))
