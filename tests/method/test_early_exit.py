"""Exit rules over a batch, against one example at a time."""

import math

import pytest
import torch

from limbert.errors import ConfigError
from limbert.method.early_exit import ExitRule

ANSWERS = [torch.randn(50, 3, generator=torch.Generator().manual_seed(seed)) * 2 for seed in range(4)]


def alone(rule: ExitRule, answers: list[torch.Tensor]) -> bool:
    probabilities = [value / sum(map(math.exp, answers[-1].tolist())) for value in map(math.exp, answers[-1].tolist())]
    if rule.name == "entropy":
        return -sum(p * math.log(p) for p in probabilities) < rule.threshold
    if rule.name == "confidence":
        return max(probabilities) >= rule.threshold
    stayed = 0
    for earlier in reversed(answers[:-1]):
        if int(earlier.argmax()) != int(answers[-1].argmax()):
            break
        stayed += 1
    return stayed >= rule.threshold


@pytest.mark.parametrize(
    "rule",
    [ExitRule("entropy", 0.5), ExitRule("confidence", 0.8)] + [ExitRule("patience", float(n)) for n in range(4)],
    ids=str,
)
def test_every_example_leaves_as_it_would_alone(rule: ExitRule) -> None:
    for ramps in range(1, 5):
        leaving = rule.should_exit(ANSWERS[:ramps], task_type="classification")
        assert leaving.dtype == torch.bool
        assert leaving.tolist() == [alone(rule, [answer[row] for answer in ANSWERS[:ramps]]) for row in range(50)]


def test_regression_leaves_where_the_value_settles() -> None:
    rule = ExitRule("patience", 0.5)
    first, second = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.4], [2.0]])
    assert rule.should_exit([first], task_type="regression").tolist() == [False, False]
    assert rule.should_exit([first, second], task_type="regression").tolist() == [True, False]


def test_certain_answers_have_no_entropy() -> None:
    sure = torch.tensor([[1000.0, 0.0]])
    assert ExitRule("entropy", 1e-6).should_exit([sure], task_type="classification").tolist() == [True]
    assert ExitRule("entropy", 0.0).should_exit([sure], task_type="classification").tolist() == [False]


def test_rules_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="exit rule is 'luck'; it must be one of entropy, confidence, patience"):
        ExitRule("luck", 0.1)
    with pytest.raises(ConfigError, match=r"exit threshold is 1\.5; it must be a probability"):
        ExitRule("confidence", 1.5)
    with pytest.raises(ConfigError, match="exit threshold is -1"):
        ExitRule("entropy", -1.0)
    with pytest.raises(ConfigError, match="exit rule 'entropy' needs classes"):
        ExitRule("entropy", 0.1).check("regression")
    with pytest.raises(ConfigError, match="whole number of off-ramps"):
        ExitRule("patience", 0.5).check("classification")
    ExitRule("patience", 0.5).check("regression")


SEVERAL = [ExitRule("entropy", 0.6), ExitRule("confidence", 0.6), ExitRule("patience", 1.0)]


@pytest.mark.parametrize("rule", SEVERAL, ids=str)
def test_several_labels_are_as_sure_as_the_least_sure_of_them(rule: ExitRule) -> None:
    ramps = [torch.stack([answer, -answer], dim=-1) for answer in ANSWERS[:3]]  # a class as two: yes and no
    single = [
        rule.should_exit([ramp[:, place] / 2 for ramp in ramps], task_type="classification") for place in range(3)
    ]
    leaving = rule.should_exit(ANSWERS[:3], task_type="multi-label")
    assert leaving.tolist() == torch.stack(single).all(dim=0).tolist()
    assert {*leaving.tolist()} == {True, False}
