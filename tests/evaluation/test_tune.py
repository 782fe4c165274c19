"""Tuning: candidates equal running their policy; a guaranteed limit is rarely exceeded over many draws."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import multinomial
from tests.factories.examples import TASK, make_examples
from tests.factories.gated_models import make_model
from tests.factories.runs import ENCODER, needs_encoder
from transformers import AutoTokenizer

from limbert import ElasticModel
from limbert.data.readers import Examples
from limbert.data.tasks import Task
from limbert.data.tokenize import tokenize_texts
from limbert.evaluation.evaluate import evaluate_policy
from limbert.evaluation.guarantee import drop_p_value, examples_needed, last_passing
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


def test_front_and_operating_points() -> None:
    def candidate(value: float, flops: float) -> PolicyCandidate:
        return PolicyCandidate(Policy(subnet=f"{flops:g}x{value:g}"), value, flops)

    values_and_flops = [(0.90, 1.0), (0.90, 0.8), (0.91, 0.9), (0.89, 0.5), (0.87, 0.3), (0.7, 0.4)]
    candidates = [candidate(*values) for values in values_and_flops]  # the first is the full model
    assert [one.flops_share for one in pareto_policies(candidates)] == [0.3, 0.5, 0.8, 0.9]
    drops = {"fast": 0.03, "balanced": 0.01, "accurate": 0.0}
    points = choose_operating_points(candidates, metric="accuracy", max_drops=drops)
    shares = {name: (point.flops_share, point.value) for name, point in points.items()}
    assert shares == {"fast": (0.3, 0.87), "balanced": (0.5, 0.89), "accurate": (0.8, 0.90)}


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


def test_guaranteed_point_needs_examples(caplog: pytest.LogCaptureFixture) -> None:
    records = random_records()
    point = guaranteed_point(records, max_drop=0.3, confidence=0.9, num_thresholds=3)["guaranteed"]
    full = evaluate_candidates(records, num_thresholds=3)[0]
    error = standard_error(records, full.policy)
    assert error == pytest.approx((0.8 * 0.2 / 300) ** 0.5, rel=0.15)  # of a proportion
    assert point.flops_share < 1
    assert point.value >= full.metric_value - 0.3
    assert guaranteed_point(records, max_drop=0.01, confidence=0.9, num_thresholds=3) == {}
    assert "401" in caplog.text


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_small_p_values_are_rare(share: float) -> None:
    """All outcomes of 30 examples whose drop is exactly the limit."""
    count, limit, level = 30, 0.1, 0.1
    chances = [(share + limit) / 2, (share - limit) / 2, 1 - share]
    outcomes = [(lost, gained) for lost, gained in product(range(count + 1), repeat=2) if lost + gained <= count]
    rejected = sum(
        multinomial.pmf([lost, gained, count - lost - gained], count, chances)
        for lost, gained in outcomes
        if (lost - gained) / count < limit and drop_p_value(lost, gained, count, max_drop=limit) <= level
    )
    assert 0 < rejected <= level
    needed = examples_needed(max_drop=limit, confidence=1 - level)  # just enough
    assert drop_p_value(0, 0, needed, max_drop=limit) <= level < drop_p_value(0, 0, needed - 1, max_drop=limit)


def test_sequence_ends_at_the_first_failure() -> None:
    full = np.ones(400, dtype=bool)
    worse = np.arange(400) >= 40
    assert last_passing(full, [full, full, worse, full], max_drop=0.02, confidence=0.9) == 1
    assert last_passing(full, [worse, full], max_drop=0.02, confidence=0.9) is None


def test_limit_is_rarely_exceeded() -> None:
    """100 draws of examples; ten candidates, each a little worse than the one before."""
    rng, limit, confidence = np.random.default_rng(0), 0.03, 0.9
    drops = np.linspace(0, 0.06, 10)
    exceeded, used = 0, 0
    for _ in range(100):
        hardness = rng.random(800)  # what one candidate gets wrong, all worse ones do
        flips = rng.random((10, 800)) < 0.005
        full = rng.random(800) < 0.9
        candidates = [(full & (hardness >= drop)) ^ flip for drop, flip in zip(drops / 0.9, flips, strict=True)]
        passed = last_passing(full, candidates, max_drop=limit, confidence=confidence)
        used += passed or 0
        accuracy = 0.9 - drops[passed or 0]
        exceeded += passed is not None and 0.9 - (0.995 * accuracy + 0.005 * (1 - accuracy)) > limit
    assert exceeded <= 10
    assert used > 100
