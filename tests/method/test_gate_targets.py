"""Gate targets and loss equal loops over single examples."""

import pytest
import torch
import torch.nn.functional as F

from limbert.core.config import GatesConfig
from limbert.errors import ConfigError
from limbert.method.gate_targets import balanced_class_weights, gate_loss, is_correct, lowest_cost, narrowest_correct
from limbert.model.width_gates import WidthGates, gate_layer_indices

LOGITS = torch.randn(40, 3, 4, generator=torch.Generator().manual_seed(0))  # examples, widths, outputs
LABELS = torch.randint(4, (40,), generator=torch.Generator().manual_seed(1))
RELATIVE_FLOPS = torch.tensor([0.25, 0.5, 1.0])


def test_target_is_the_narrowest_correct_width() -> None:
    expected = []
    for logits, label in zip(LOGITS, LABELS, strict=True):
        correct = [width for width in range(3) if int(logits[width].argmax()) == int(label)]
        expected.append(correct[0] if correct else 2)
    assert 2 in expected
    assert 0 in expected
    targets = narrowest_correct(is_correct(LOGITS, LABELS, task_type="classification", tolerance=0.0))
    assert targets.tolist() == expected


def test_regression_is_correct_within_the_tolerance() -> None:
    logits = torch.tensor([[[1.0], [2.0], [2.4]], [[0.0], [0.1], [5.0]]])
    correct = is_correct(logits, torch.tensor([2.5, 2.5]), task_type="regression", tolerance=0.5)
    assert correct.tolist() == [[False, True, True], [False, False, False]]
    assert narrowest_correct(correct).tolist() == [1, 2]


def test_multi_label_needs_all_classes_correct() -> None:
    labels = (LOGITS[:, 1] > 0).float()
    correct = is_correct(LOGITS, labels, task_type="multi-label", tolerance=0.0)
    assert correct[:, 1].all()
    assert correct[:, 0].tolist() == [bool(((first > 0) == (second > 0)).all()) for first, second in LOGITS[:, :2]]
    agreement = LOGITS[:, 1].sigmoid()  # the lowest loss is that of the width itself
    targets = lowest_cost(LOGITS, agreement, task_type="multi-label", cost=0.0, relative_flops=RELATIVE_FLOPS)
    assert (targets == 1).all()


@pytest.mark.parametrize("cost", [0.0, 0.3, 100.0])
def test_target_is_the_width_of_lowest_cost(cost: float) -> None:
    expected = []
    for logits, label in zip(LOGITS, LABELS, strict=True):
        totals = [
            float(F.cross_entropy(logits[width], label)) + cost * float(RELATIVE_FLOPS[width]) for width in range(3)
        ]
        expected.append(totals.index(min(totals)))
    targets = lowest_cost(LOGITS, LABELS, task_type="classification", cost=cost, relative_flops=RELATIVE_FLOPS)
    assert targets.tolist() == expected
    if cost == 100.0:
        assert {*expected} == {0}


def test_agreement_targets_the_full_models_probabilities() -> None:
    full = LOGITS[:, -1].softmax(dim=-1)
    free = lowest_cost(LOGITS, full, task_type="classification", cost=0.0, relative_flops=RELATIVE_FLOPS)
    assert {*free.tolist()} == {2}  # the full model agrees best with itself
    assert 0 in lowest_cost(LOGITS, full, task_type="classification", cost=0.5, relative_flops=RELATIVE_FLOPS).tolist()


def test_regression_cost_does_not_depend_on_the_unit() -> None:
    logits, labels = LOGITS[..., :1], LABELS.float()
    options = {"task_type": "regression", "cost": 0.2, "relative_flops": RELATIVE_FLOPS}
    scaled = lowest_cost(logits * 1000, labels * 1000, **options)
    assert torch.equal(scaled, lowest_cost(logits, labels, **options))


def test_class_weights_balance_the_occurring_choices() -> None:
    targets = torch.tensor([0] * 90 + [2] * 10)
    weights = balanced_class_weights(targets, 4)
    assert weights.tolist() == pytest.approx([100 / 180, 0.0, 5.0, 0.0])
    assert weights[targets].mean() == pytest.approx(1.0)


def test_loss_without_noise_is_weighted_cross_entropy() -> None:
    logits, targets = torch.randn(7, 3, 4), torch.tensor([0, 1, 2, 3, 0, 1, 0])
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    loss = gate_loss(logits, targets, weights=weights, temperature=0.7, generator=None)
    each = [F.cross_entropy(logits[:, gate] / 0.7, targets, weight=weights) for gate in range(3)]
    torch.testing.assert_close(loss, torch.stack(each).mean())


def test_noise_follows_the_gumbel_distribution() -> None:
    """The largest noisy logit is each choice as often as the softmax says."""
    logits = torch.tensor([1.0, 0.0, -1.0]).expand(20000, 1, 3)
    chosen = torch.zeros(3)
    for choice in range(3):
        # at a low temperature the loss of a target is 0 if its noisy logit is the largest, else large
        options = {"weights": torch.ones(3), "temperature": 1e-3}
        loss = [gate_loss(logits[:1], torch.tensor([choice]), generator=torch.Generator().manual_seed(seed), **options)
                for seed in range(2000)]  # fmt: skip
        chosen[choice] = (torch.stack(loss) < 0.5).float().mean()
    torch.testing.assert_close(chosen, torch.tensor([1.0, 0.0, -1.0]).softmax(dim=0), atol=0.04, rtol=0)


def test_gates_divide_the_layers() -> None:
    assert gate_layer_indices(3, 6) == [0, 2, 4]
    assert gate_layer_indices(1, 6) == [0]
    with pytest.raises(ConfigError, match="1, 2, 3, 6"):
        gate_layer_indices(4, 6)
    for widths in ((1.0,), (0.5, 0.25), (0.5, 0.5)):
        with pytest.raises(ConfigError, match="increasing"):
            WidthGates(num_gates=2, hidden_size=4, widths=widths)
    for settings in ({"count": 0}, {"cost": -1.0}, {"end_temperature": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(settings)).replace("count", "gates")):
            GatesConfig(**settings)
