"""Exit rules on a batch equal a loop over single examples."""

import math

import pytest
import torch

from limbert.errors import ConfigError
from limbert.method.early_exit import ExitRule

LOGITS = [torch.randn(50, 3, generator=torch.Generator().manual_seed(seed)) * 2 for seed in range(4)]


def exits_alone(rule: ExitRule, logits: list[torch.Tensor]) -> bool:
    probabilities = [value / sum(map(math.exp, logits[-1].tolist())) for value in map(math.exp, logits[-1].tolist())]
    if rule.name == "entropy":
        return -sum(p * math.log(p) for p in probabilities) < rule.threshold
    if rule.name == "confidence":
        return max(probabilities) >= rule.threshold
    unchanged = 0
    for earlier in reversed(logits[:-1]):
        if int(earlier.argmax()) != int(logits[-1].argmax()):
            break
        unchanged += 1
    return unchanged >= rule.threshold


@pytest.mark.parametrize(
    "rule",
    [ExitRule("entropy", 0.5), ExitRule("confidence", 0.8)] + [ExitRule("patience", float(n)) for n in range(4)],
    ids=str,
)
def test_batch_exits_equal_single_examples(rule: ExitRule) -> None:
    for count in range(1, 5):
        exited = rule.should_exit(LOGITS[:count], task_type="classification")
        assert exited.dtype == torch.bool
        assert exited.tolist() == [
            exits_alone(rule, [at_exit[index] for at_exit in LOGITS[:count]]) for index in range(50)
        ]


def test_regression_exits_when_the_value_settles() -> None:
    rule = ExitRule("patience", 0.5)
    first, second = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.4], [2.0]])
    assert rule.should_exit([first], task_type="regression").tolist() == [False, False]
    assert rule.should_exit([first, second], task_type="regression").tolist() == [True, False]


def test_certain_predictions_have_no_entropy() -> None:
    certain = torch.tensor([[1000.0, 0.0]])
    assert ExitRule("entropy", 1e-6).should_exit([certain], task_type="classification").tolist() == [True]
    assert ExitRule("entropy", 0.0).should_exit([certain], task_type="classification").tolist() == [False]


def test_invalid_rules_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"1\.5"):
        ExitRule("confidence", 1.5)
    with pytest.raises(ConfigError, match="-1"):
        ExitRule("entropy", -1.0)
    with pytest.raises(ConfigError, match="'entropy'"):
        ExitRule("entropy", 0.1).check("regression")
    with pytest.raises(ConfigError, match="whole number"):
        ExitRule("patience", 0.5).check("classification")
    ExitRule("patience", 0.5).check("regression")


MULTI_LABEL_RULES = [ExitRule("entropy", 0.6), ExitRule("confidence", 0.6), ExitRule("patience", 1.0)]


@pytest.mark.parametrize("rule", MULTI_LABEL_RULES, ids=str)
def test_multi_label_exits_on_the_least_certain_class(rule: ExitRule) -> None:
    binary = [torch.stack([at_exit, -at_exit], dim=-1) for at_exit in LOGITS[:3]]  # each class as two: yes and no
    single = [
        rule.should_exit([at_exit[:, label] / 2 for at_exit in binary], task_type="classification")
        for label in range(3)
    ]
    exited = rule.should_exit(LOGITS[:3], task_type="multi-label")
    assert exited.tolist() == torch.stack(single).all(dim=0).tolist()
    assert {*exited.tolist()} == {True, False}
