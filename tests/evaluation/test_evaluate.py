"""Evaluation of sub-networks: batches equal single examples, and results hold metric, cost and parameters."""

import numpy as np
import pytest
import torch
from tests.factories.examples import TASK, TEXTS, make_examples
from tests.factories.networks import make_network
from tests.factories.runs import needs_encoder

from limbert import ElasticModel
from limbert.errors import ConfigError
from limbert.evaluation.evaluate import count_parameters, evaluate_policy, evaluate_subnets, fit_temperatures
from limbert.inference.policy import Policy
from limbert.inference.predict import abstain, inference_inputs, predict, predict_subnet_logits
from limbert.method.calibration import calibration_error
from limbert.model.flops import CostModel

pytestmark = needs_encoder


def make_model() -> ElasticModel:
    return ElasticModel(make_network("bert", vocab_size=30522))


@torch.no_grad()
def test_logits_do_not_depend_on_the_batch() -> None:
    model, examples = make_model(), make_examples()
    for batch_size in (1, 2, 5):
        predictions = predict_subnet_logits(model, examples, subnets=model.subnets(), batch_size=batch_size)
        for name, subnet in model.subnets().items():
            for index in range(len(TEXTS)):
                alone = model.view(subnet)(**inference_inputs(examples, [index])).logits[0].numpy()
                np.testing.assert_allclose(predictions[name][index], alone, atol=1e-5, rtol=1e-5)


def test_results_hold_metric_flops_and_parameters() -> None:
    model, examples = make_model(), make_examples()
    subnets = {name: model.subnet(name) for name in ("1x1", "0.5x0.5")}
    full, small = evaluate_subnets(model, {"dev": examples}, task=TASK, subnets=subnets)
    assert full.params == sum(parameter.numel() for parameter in model.network.parameters())
    assert small.params == sum(p.numel() for p in model.extract(subnets["0.5x0.5"]).parameters())
    assert small.params == count_parameters(model, subnets["0.5x0.5"])
    cost = CostModel(model)
    for result, subnet in ((full, subnets["1x1"]), (small, subnets["0.5x0.5"])):
        assert result.flops == np.mean([cost.flops(subnet, length) for length in examples.lengths])
        batches = [inference_inputs(examples, [index]) for index in range(len(TEXTS))]
        guesses = [int(model.view(subnet)(**batch).logits.argmax()) for batch in batches]
        assert result.metrics["accuracy"] == np.mean(np.array(guesses) == examples.labels.numpy())
    two = evaluate_subnets(model, {"one": examples, "two": examples}, task=TASK, subnets=subnets)[0]
    assert two.metrics == {f"{name}/accuracy": full.metrics["accuracy"] for name in ("one", "two")}


def test_temperatures_change_scores_and_no_label() -> None:
    model, examples = make_model(), make_examples()
    subnets = {name: model.subnet(name) for name in ("1x1", "0.5x0.5")}
    raw = predict(model, examples, task=TASK, policy=Policy(subnet="0.5x0.5"), batch_size=2)
    logits = predict_subnet_logits(model, examples, subnets=subnets, batch_size=5)["0.5x0.5"]
    best = torch.from_numpy(logits).softmax(-1).max(-1)
    assert [one.label for one in raw] == [TASK.labels[index] for index in best.indices]
    np.testing.assert_allclose([one.score for one in raw], best.values, atol=1e-6)
    fit_temperatures(model, examples, task=TASK, subnets=subnets)
    temperature = model.record["temperatures"]["0.5x0.5"]
    assert temperature != model.record["temperatures"]["1x1"] != 1.0
    calibrated = predict(model, examples, task=TASK, policy=Policy(subnet="0.5x0.5"))
    assert [one.label for one in calibrated] == [one.label for one in raw]
    scores = torch.from_numpy(logits / temperature).softmax(-1).amax(-1)
    np.testing.assert_allclose([one.score for one in calibrated], scores, atol=1e-6)
    result = evaluate_subnets(model, {"dev": examples}, task=TASK, subnets=subnets)[1]
    of_policy = evaluate_policy(model, {"dev": examples}, task=TASK, policy=Policy(subnet="0.5x0.5"))
    labels = examples.labels.numpy()
    for calibration in (result.calibration, of_policy.calibration):
        error = calibration_error(logits / temperature, labels, task_type="classification")
        raw_error = calibration_error(logits, labels, task_type="classification")
        np.testing.assert_allclose([calibration.error, calibration.raw_error], [error, raw_error], atol=1e-6)
    assert result.calibration.temperature == temperature


def test_unsure_predictions_abstain() -> None:
    assert abstain({"label": "a", "score": 0.6}, 0.7) == {"label": None, "score": 0.6, "abstain": True}
    assert abstain({"label": "a", "score": 0.7}, 0.7) == {"label": "a", "score": 0.7, "abstain": False}
    with pytest.raises(ConfigError, match="classification"):
        abstain({"score": 0.6}, 0.7)
