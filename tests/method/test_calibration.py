"""Temperatures: fitted to labels, applied without changing a prediction."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from tests.factories.networks import make_network
from transformers import AutoModelForTokenClassification

from limbert import ElasticModel
from limbert.core.task_types import IGNORE_INDEX
from limbert.method.calibration import calibrated_network, calibration_error, fit_temperature, temperature_of

INPUTS = {"input_ids": torch.arange(5, 25).reshape(4, 5), "attention_mask": torch.ones(4, 5, dtype=torch.long)}


def overconfident(temperature: float, *, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are ``temperature`` times too large for their labels."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2.0, size=(count, 3))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    return temperature * logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_fit_finds_the_temperature(temperature: float) -> None:
    logits, labels = overconfident(temperature)
    assert fit_temperature(logits, labels, task_type="classification") == pytest.approx(temperature, rel=0.03)


def test_sigmoid_is_a_softmax_of_two_classes() -> None:
    logits, _ = overconfident(2.0)
    labels = (np.random.default_rng(1).random(logits.shape) < 1 / (1 + np.exp(-logits / 2))).astype(np.float32)
    assert fit_temperature(logits, labels, task_type="multi-label") == pytest.approx(2.0, rel=0.03)
    assert calibration_error(logits / 2, labels, task_type="multi-label") < 0.01


def test_error_falls_where_labels_count() -> None:
    logits, labels = overconfident(3.0)
    labels[::2] = IGNORE_INDEX
    raw, calibrated = (
        calibration_error(values, labels, task_type="token-classification") for values in (logits, logits / 3)
    )
    assert raw > 0.1
    assert calibrated < 0.02
    logits[::2] = -logits[::2]
    assert calibration_error(logits, labels, task_type="token-classification") == raw


def test_few_correct_predictions_are_no_certainty() -> None:
    logits = np.array([[2.0, 0.0]] * 10)
    temperature = fit_temperature(logits, np.zeros(10, dtype=int), task_type="classification")
    assert softmax(logits[0] / temperature)[0] == pytest.approx(1 - 1 / 24, abs=1e-3)
    assert fit_temperature(logits, np.zeros(10), task_type="regression") == 1.0


@torch.no_grad()
@pytest.mark.parametrize("case", ["bert", "roberta", "distilbert", "modernbert"])
def test_head_divides_logits(case: str) -> None:
    model = ElasticModel(make_network(case))
    small, other = model.subnet("0.5x0.5"), model.subnet("1x1")
    model.record["temperatures"] = {"0.5x0.5": 2.0}
    assert (temperature_of(model, small), temperature_of(model, other)) == (2.0, 1.0)
    expected = model.view(small)(**INPUTS).logits
    torch.testing.assert_close(calibrated_network(model, small)(**INPUTS).logits, expected / 2)
    assert torch.equal(model.view(small)(**INPUTS).logits, expected)


@torch.no_grad()
def test_head_at_tokens_divides_logits() -> None:
    torch.manual_seed(0)
    config = make_network("bert").config
    model = ElasticModel(AutoModelForTokenClassification.from_config(config).eval())
    model.record["temperatures"] = {"1x1": 4.0}
    expected = model.view(model.full)(**INPUTS).logits / 4
    torch.testing.assert_close(calibrated_network(model, model.full)(**INPUTS).logits, expected)


def test_temperatures_of_unknown_names_are_ignored() -> None:
    model = ElasticModel(make_network("bert"))
    model.record = {"temperatures": {"found-by-a-search-that-was-killed": 9.0, "1x1": 2.0}}
    assert temperature_of(model, model.full) == 2.0
