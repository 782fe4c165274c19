"""Tuning: every candidate's metric and FLOPs equal those of running its policy."""

import numpy as np
import pytest
import torch
from tests.factories.examples import TASK, make_examples
from tests.factories.gated_models import make_model
from tests.factories.runs import ENCODER, needs_encoder
from transformers import AutoTokenizer

from limbert import ElasticModel
from limbert.data.readers import Examples
from limbert.data.tasks import Task
from limbert.data.tokenize import tokenize_texts
from limbert.evaluation.evaluate import evaluate_policy
from limbert.evaluation.policy_records import PolicyRecords
from limbert.evaluation.tune import (
    PolicyCandidate,
    choose_operating_points,
    evaluate_candidates,
    guaranteed_point,
    pareto_policies,
    standard_error,
)
from limbert.inference.policy import Policy
from limbert.inference.predict import predict_subnet_logits

pytestmark = needs_encoder
SCORES = Task("own", "regression", (), ("pearson",))


def tuned(model: ElasticModel, task: Task, rule: str) -> list[PolicyCandidate]:
    records = PolicyRecords(model, make_examples(), task=task, widths=(0.34, 0.5, 1.0), exit_rule=rule, batch_size=2)
    return evaluate_candidates(records, num_thresholds=3)


@pytest.mark.parametrize("rule", ["entropy", "confidence", "patience"])
def test_candidates_equal_running_their_policy(rule: str) -> None:
    model = make_model("bert", vocab_size=30522)
    candidates = tuned(model, TASK, rule)
    assert candidates[0].policy == Policy(subnet="1x1")
    names = {one.policy.name.partition(":")[0] for one in candidates}
    assert names == {"static", "width", "depth", "width+depth", "cascade"}
    rng = np.random.default_rng(0)
    cascades = [one for one in candidates if one.policy.cascade]
    for candidate in [candidates[index] for index in rng.choice(len(candidates), size=35)] + cascades[:5]:
        result = evaluate_policy(model, {"dev": make_examples()}, task=TASK, policy=candidate.policy, batch_size=3)
        assert candidate.metric_value == pytest.approx(result.metrics["accuracy"])
        assert (candidate.policy.temperatures is None) == (candidate.policy.subnet is not None)
        assert candidate.flops_share == pytest.approx(result.flops_mean / result.flops_full)


def test_regression_is_tuned_by_patience() -> None:
    model = make_model("bert", vocab_size=30522, num_labels=1)
    candidates = tuned(model, SCORES, "patience")
    dynamic = [one for one in candidates if one.policy.exits is not None]
    assert dynamic
    for candidate in dynamic[::9]:
        result = evaluate_policy(model, {"dev": make_examples()}, task=SCORES, policy=candidate.policy, batch_size=3)
        assert candidate.metric_value == pytest.approx(result.metrics["pearson"], abs=1e-6)
        assert candidate.flops_share == pytest.approx(result.flops_mean / result.flops_full)


def test_without_gates_and_exits_nothing_leaves_early() -> None:
    model = make_model("bert", vocab_size=30522)
    model.gates = None
    model.space = type(model.space)(layers="spread")
    assert {one.policy.name.partition(":")[0] for one in tuned(model, TASK, "entropy")} <= {"static", "cascade"}


def candidate(value: float, flops: float) -> PolicyCandidate:
    return PolicyCandidate(Policy(subnet=f"{flops:g}x{value:g}"), value, flops)


def test_front_and_operating_points() -> None:
    full = candidate(0.90, 1.0)
    values_and_flops = [(0.90, 0.8), (0.91, 0.9), (0.89, 0.5), (0.87, 0.3), (0.7, 0.4)]
    others = [candidate(value, flops) for value, flops in values_and_flops]
    best = [one.flops_share for one in pareto_policies([full, *others])]
    assert best == [0.3, 0.5, 0.8, 0.9]
    drops = {"fast": 0.03, "balanced": 0.01, "accurate": 0.0}
    points = choose_operating_points([full, *others], metric="accuracy", max_drops=drops)
    flops = {name: point.flops_share for name, point in points.items()}
    assert flops == {"fast": 0.3, "balanced": 0.5, "accurate": 0.8}
    assert points["fast"].value == 0.87


def random_records() -> PolicyRecords:
    """The records of a model with random weights on texts that it labels itself, all but every fifth."""
    model, texts = make_model("bert", vocab_size=30522), tuple(f"text {n} " * (1 + n % 7) for n in range(300))
    examples = tokenize_texts(
        Examples(texts, None, (0,) * 300), AutoTokenizer.from_pretrained(ENCODER), max_length=16, use_cache=False
    )
    logits = predict_subnet_logits(model, examples, subnets={"": model.full}, batch_size=64)[""]
    labels = torch.from_numpy(logits.argmax(axis=1))
    labels[::5] = (labels[::5] + 1) % 3
    return PolicyRecords(model, examples.with_labels(labels), task=TASK, widths=(0.5, 1.0), exit_rule="entropy")


def test_standard_error_is_that_of_a_proportion() -> None:
    records = random_records()
    error = standard_error(records, Policy(subnet="1x1"))
    assert error == pytest.approx((0.8 * 0.2 / 300) ** 0.5, rel=0.15)


def test_guaranteed_point_needs_examples(caplog: pytest.LogCaptureFixture) -> None:
    records = random_records()
    point = guaranteed_point(records, max_drop=0.3, confidence=0.9, num_thresholds=3)["guaranteed"]
    full = evaluate_candidates(records, num_thresholds=3)[0]
    assert point.flops_share < 1
    assert point.value >= full.metric_value - 0.3
    assert guaranteed_point(records, max_drop=0.01, confidence=0.9, num_thresholds=3) == {}
    assert "401" in caplog.text
