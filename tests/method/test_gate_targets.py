"""Gate targets and loss, against loops that say the same one example at a time."""

import pytest
import torch
import torch.nn.functional as F

from limbert.core.config import GatesConfig
from limbert.errors import ConfigError
from limbert.method.gate_targets import balanced_class_weights, gate_loss, is_correct, lowest_cost, narrowest_correct
from limbert.model.width_gates import WidthGates, gate_layer_indices

ANSWERS = torch.randn(40, 3, 4, generator=torch.Generator().manual_seed(0))  # examples, widths, outputs
LABELS = torch.randint(4, (40,), generator=torch.Generator().manual_seed(1))
SHARES = torch.tensor([0.25, 0.5, 1.0])


def test_the_narrowest_width_that_is_right() -> None:
    expected = []
    for answers, label in zip(ANSWERS, LABELS, strict=True):
        right = [width for width in range(3) if int(answers[width].argmax()) == int(label)]
        expected.append(right[0] if right else 2)
    assert 2 in expected
    assert 0 in expected
    found = narrowest_correct(is_correct(ANSWERS, LABELS, task_type="classification", tolerance=0.0))
    assert found.tolist() == expected


def test_regression_is_right_within_the_tolerance() -> None:
    answers = torch.tensor([[[1.0], [2.0], [2.4]], [[0.0], [0.1], [5.0]]])
    right = is_correct(answers, torch.tensor([2.5, 2.5]), task_type="regression", tolerance=0.5)
    assert right.tolist() == [[False, True, True], [False, False, False]]
    assert narrowest_correct(right).tolist() == [1, 2]


def test_several_labels_must_all_be_right() -> None:
    truth = (ANSWERS[:, 1] > 0).float()
    right = is_correct(ANSWERS, truth, task_type="multi-label", tolerance=0.0)
    assert right[:, 1].all()
    assert right[:, 0].tolist() == [bool(((one > 0) == (two > 0)).all()) for one, two in ANSWERS[:, :2]]
    sure = ANSWERS[:, 1].sigmoid()  # agreement: nothing is nearer to it than itself
    assert {*lowest_cost(ANSWERS, sure, task_type="multi-label", cost=0.0, relative_flops=SHARES).tolist()} == {1}


@pytest.mark.parametrize("cost", [0.0, 0.3, 100.0])
def test_the_cheapest_width(cost: float) -> None:
    expected = []
    for answers, label in zip(ANSWERS, LABELS, strict=True):
        totals = [float(F.cross_entropy(answers[width], label)) + cost * float(SHARES[width]) for width in range(3)]
        expected.append(totals.index(min(totals)))
    found = lowest_cost(ANSWERS, LABELS, task_type="classification", cost=cost, relative_flops=SHARES)
    assert found.tolist() == expected
    if cost == 100.0:
        assert {*expected} == {0}


def test_agreement_aims_at_the_full_models_probabilities() -> None:
    full = ANSWERS[:, -1].softmax(dim=-1)
    free = lowest_cost(ANSWERS, full, task_type="classification", cost=0.0, relative_flops=SHARES)
    assert {*free.tolist()} == {2}  # nothing agrees with the full model better than itself
    assert 0 in lowest_cost(ANSWERS, full, task_type="classification", cost=0.5, relative_flops=SHARES).tolist()


def test_the_cost_of_regression_does_not_depend_on_the_unit() -> None:
    answers, truth = ANSWERS[..., :1], LABELS.float()
    for scale in (1.0, 1000.0):
        found = lowest_cost(answers * scale, truth * scale, task_type="regression", cost=0.2, relative_flops=SHARES)
        assert torch.equal(found, lowest_cost(answers, truth, task_type="regression", cost=0.2, relative_flops=SHARES))


def test_weights_make_every_choice_that_occurs_count_the_same() -> None:
    targets = torch.tensor([0] * 90 + [2] * 10)
    weights = balanced_class_weights(targets, 4)
    assert weights.tolist() == pytest.approx([100 / 180, 0.0, 5.0, 0.0])
    assert weights[targets].mean() == pytest.approx(1.0)


def test_the_loss_without_noise_is_weighted_cross_entropy_of_every_gate() -> None:
    logits, targets = torch.randn(7, 3, 4), torch.tensor([0, 1, 2, 3, 0, 1, 0])
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    found = gate_loss(logits, targets, weights=weights, temperature=0.7, generator=None)
    each = [F.cross_entropy(logits[:, gate] / 0.7, targets, weight=weights) for gate in range(3)]
    torch.testing.assert_close(found, torch.stack(each).mean())


def test_the_noise_follows_the_gumbel_distribution() -> None:
    """The largest of noisy logits falls on each choice as often as the softmax says."""
    logits = torch.tensor([1.0, 0.0, -1.0]).expand(20000, 1, 3)
    picked = torch.zeros(3)
    for choice in range(3):
        # at a low temperature the loss of a target is 0 where it won and large where it lost
        loss = [
            gate_loss(
                logits[start : start + 1],
                torch.tensor([choice]),
                weights=torch.ones(3),
                temperature=1e-3,
                generator=torch.Generator().manual_seed(start),
            )
            for start in range(2000)
        ]
        picked[choice] = (torch.stack(loss) < 0.5).float().mean()
    torch.testing.assert_close(picked, torch.tensor([1.0, 0.0, -1.0]).softmax(dim=0), atol=0.04, rtol=0)


def test_gates_divide_the_layers() -> None:
    assert gate_layer_indices(3, 6) == [0, 2, 4]
    assert gate_layer_indices(1, 6) == [0]
    with pytest.raises(ConfigError, match="number of gates is 4; it must be a divisor of the 6 layers: 1, 2, 3, 6"):
        gate_layer_indices(4, 6)
    for widths in ((1.0,), (0.5, 0.25), (0.5, 0.5)):
        with pytest.raises(ConfigError, match="two or more, rising"):
            WidthGates(num_gates=2, hidden_size=4, widths=widths)


def test_all_gates_at_once_are_each_gate_alone() -> None:
    gates = WidthGates(num_gates=3, hidden_size=6, widths=(0.5, 1.0))
    first_tokens = torch.randn(5, 3, 6)
    together = gates(first_tokens)
    assert together.shape == (5, 3, 2)
    for index, gate in enumerate(gates.gate):
        textbook = gate.dense_out(F.relu(gate.dense_in(first_tokens[:, index])))
        torch.testing.assert_close(together[:, index], textbook)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", 0, "gates is 0; it must be at least 1"),
        ("target", "luck", "gate target is 'luck'; it must be label or agreement"),
        ("cost", -1.0, "gate cost is -1.0"),
        ("end_temperature", 0.0, "end_temperature is 0.0"),
    ],
)
def test_impossible_settings_are_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GatesConfig(**{name: value})
