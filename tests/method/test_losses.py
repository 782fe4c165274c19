"""The losses equal their formulas, and padding never counts."""

import torch
import torch.nn.functional as F

from limbert.method.losses import hidden_loss, label_loss, logit_loss, matched_states


def test_logit_loss_is_the_soft_cross_entropy() -> None:
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    expected = -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(logit_loss(student, teacher, kind="classification"), expected)


def test_regression_is_distilled_too() -> None:
    student, teacher = torch.randn(5, 1), torch.randn(5, 1)
    torch.testing.assert_close(logit_loss(student, teacher, kind="regression"), (student - teacher).square().mean())


def test_label_loss() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(label_loss(logits, labels, kind="classification"), F.cross_entropy(logits, labels))
    values = torch.randn(5)
    torch.testing.assert_close(label_loss(values[:, None] + 2, values, kind="regression"), torch.tensor(4.0))


def test_hidden_loss_on_unpadded_input_is_the_plain_mse_of_each_state() -> None:
    student, teacher = torch.randn(3, 2, 5, 4).unbind(), torch.randn(3, 2, 5, 4).unbind()
    expected = sum(F.mse_loss(ours, theirs) for ours, theirs in zip(student, teacher, strict=True))
    torch.testing.assert_close(hidden_loss(student, teacher, torch.ones(2, 5)), expected)


def test_padding_does_not_change_the_hidden_loss() -> None:
    student, teacher = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)
    padded = [torch.cat([states, torch.randn(3, 2, 7, 4)], dim=2) for states in (student, teacher)]
    mask = torch.tensor([[1] * 5 + [0] * 7] * 2)
    torch.testing.assert_close(
        hidden_loss(padded[0].unbind(), padded[1].unbind(), mask),
        hidden_loss(student.unbind(), teacher.unbind(), torch.ones(2, 5)),
    )


def test_states_are_matched_by_layer_and_last_to_last() -> None:
    teacher = [torch.tensor(float(index)) for index in range(7)]  # embeddings, then layers 0..5
    assert [int(state) for state in matched_states(teacher, (0, 2, 4))] == [0, 1, 3, 6]
    assert [int(state) for state in matched_states(teacher, tuple(range(6)))] == [0, 1, 2, 3, 4, 5, 6]
