"""The losses equal their formulas, and padding does not count."""

import torch
import torch.nn.functional as F

from limbert.core.task_types import IGNORE_INDEX
from limbert.method.losses import hidden_loss, label_loss, logit_loss, matched_states


def test_logit_loss_is_the_soft_cross_entropy() -> None:
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    expected = -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(logit_loss(student, teacher, task_type="classification"), expected)


def test_regression_is_distilled() -> None:
    student, teacher = torch.randn(5, 1), torch.randn(5, 1)
    torch.testing.assert_close(
        logit_loss(student, teacher, task_type="regression"), (student - teacher).square().mean()
    )


def test_label_loss_is_cross_entropy_or_mse() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(label_loss(logits, labels, task_type="classification"), F.cross_entropy(logits, labels))
    values = torch.randn(5)
    torch.testing.assert_close(label_loss(values[:, None] + 2, values, task_type="regression"), torch.tensor(4.0))


def test_hidden_loss_without_padding_is_the_mse() -> None:
    student, teacher = torch.randn(3, 2, 5, 4).unbind(), torch.randn(3, 2, 5, 4).unbind()
    expected = sum(F.mse_loss(state, target) for state, target in zip(student, teacher, strict=True))
    torch.testing.assert_close(hidden_loss(student, teacher, torch.ones(2, 5)), expected)


def test_padding_does_not_change_the_hidden_loss() -> None:
    student, teacher = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)
    padded = [torch.cat([states, torch.randn(3, 2, 7, 4)], dim=2) for states in (student, teacher)]
    mask = torch.tensor([[1] * 5 + [0] * 7] * 2)
    torch.testing.assert_close(
        hidden_loss(padded[0].unbind(), padded[1].unbind(), mask),
        hidden_loss(student.unbind(), teacher.unbind(), torch.ones(2, 5)),
    )


def test_states_match_by_layer_and_last() -> None:
    teacher = [torch.tensor(float(index)) for index in range(7)]  # embeddings, then layers 0..5
    assert [int(state) for state in matched_states(teacher, (0, 2, 4))] == [0, 1, 3, 6]
    assert [int(state) for state in matched_states(teacher, tuple(range(6)))] == [0, 1, 2, 3, 4, 5, 6]


def test_multi_label_loss_is_binary_cross_entropy() -> None:
    student, teacher, labels = torch.randn(5, 3), torch.randn(5, 3), torch.randint(0, 2, (5, 3)).float()
    predicted, target = student.sigmoid(), teacher.sigmoid()
    expected = -(labels * predicted.log() + (1 - labels) * (1 - predicted).log()).mean()
    torch.testing.assert_close(label_loss(student, labels, task_type="multi-label"), expected)
    expected = -(target * predicted.log() + (1 - target) * (1 - predicted).log()).mean()
    torch.testing.assert_close(logit_loss(student, teacher, task_type="multi-label"), expected)


def test_only_labelled_tokens_count() -> None:
    student, teacher = torch.randn(4, 5, 3), torch.randn(4, 5, 3)  # (batch, tokens, classes)
    labels = torch.randint(0, 3, (4, 5))
    labels[:, [0, 3]] = IGNORE_INDEX
    chosen = labels != IGNORE_INDEX
    labelled = student[chosen], teacher[chosen]
    loss = label_loss(student, labels, task_type="token-classification")
    torch.testing.assert_close(loss, F.cross_entropy(labelled[0], labels[chosen]))
    loss = logit_loss(student, teacher, task_type="token-classification", labels=labels)
    torch.testing.assert_close(loss, logit_loss(*labelled, task_type="classification"))
    unlabelled = torch.full_like(labels, IGNORE_INDEX)
    assert logit_loss(student, teacher, task_type="token-classification", labels=unlabelled) == 0


def test_padding_is_never_part_of_an_answer() -> None:
    student, teacher, labels = torch.randn(3, 6, 2), torch.randn(3, 6, 2), torch.tensor([[1, 2], [0, 0], [5, 5]])
    mask = torch.ones(3, 6)
    by_label = label_loss(student, labels, task_type="question-answering", mask=mask)
    by_teacher = logit_loss(student, teacher, task_type="question-answering", mask=mask)
    expected = sum(F.cross_entropy(student[..., side], labels[:, side]) for side in (0, 1)) / 2
    torch.testing.assert_close(by_label, expected)
    expected = (
        sum(logit_loss(student[..., side], teacher[..., side], task_type="classification") for side in (0, 1)) / 2
    )
    torch.testing.assert_close(by_teacher, expected)
    padded = [torch.cat([logits, torch.randn(3, 4, 2) + 9], dim=1).requires_grad_() for logits in (student, teacher)]
    longer = torch.cat([mask, torch.zeros(3, 4)], dim=1)
    torch.testing.assert_close(label_loss(padded[0], labels, task_type="question-answering", mask=longer), by_label)
    loss = logit_loss(padded[0], padded[1], task_type="question-answering", mask=longer)
    torch.testing.assert_close(loss, by_teacher)
    loss.backward()
    assert padded[0].grad is not None
    assert not padded[0].grad[:, 6:].any()
    assert padded[0].grad[:, :6].all()
