"""What a sub-network is asked to match: its teacher's answers and its teacher's states.

Pure functions of tensors; they know no model and no sub-network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from limbert.core.config import TaskType
from limbert.core.task_types import IGNORE_INDEX


@dataclass(frozen=True)
class _TaskLosses:
    """The losses of one kind of task, scalars.

    Attributes:
        label: of (logits, labels, mask).
        logit: of (the student's logits, the teacher's, labels, mask).
    """

    label_loss: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    logit_loss: Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def logit_loss(
    student: Tensor, teacher: Tensor, *, task_type: TaskType, labels: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Distance between answers, a scalar.

    For classification the soft cross-entropy ``-(softmax(teacher) * log_softmax(student)).sum(-1).mean()`` without
    temperature, for regression the mean squared error (DynaBERT, arXiv 2004.04037, equation 3; the released program
    gives 0 for regression). Each class of a multi-label task is a question of its own: the mean of the binary soft
    cross-entropies. Of tokens, the mean over those that have a label. Of questions, the soft cross-entropy over the
    tokens that are no padding, for where the answer starts and for where it ends.

    Args:
        student, teacher: ``(batch, outputs)``; for tasks at tokens ``(batch, tokens, outputs)``.
        kind: what the outputs mean.
        labels: ``(batch, tokens)``, needed for token classification: only where they are is not ignored.
        mask: ``(batch, tokens)``, 1 for tokens and 0 for padding; needed for question answering.
    """
    return _LOSSES[task_type].logit_loss(student, teacher, labels, mask)


def label_loss(logits: Tensor, labels: Tensor, *, task_type: TaskType, mask: Tensor | None = None) -> Tensor:
    """The plain supervised loss, a scalar: cross-entropy, or mean squared error for regression.

    Args:
        logits: ``(batch, outputs)``; for tasks at tokens ``(batch, tokens, outputs)``.
        labels: ``(batch,)``, class ids or values, or ``(batch, classes)``, probabilities; multi-label
            ``(batch, classes)``, from 0 to 1; token classification ``(batch, tokens)``, class ids or ``IGNORED``;
            question answering ``(batch, 2)``, first and last token.
        kind: what the outputs mean.
        mask: ``(batch, tokens)``, 1 for tokens and 0 for padding; needed for question answering.
    """
    return _LOSSES[task_type].label_loss(logits, labels, mask)


def _token_logit_loss(student: Tensor, teacher: Tensor, labels: Tensor | None, _: Tensor | None) -> Tensor:
    assert labels is not None, "token classification counts labelled tokens only"
    weights = (labels != IGNORE_INDEX).to(student.dtype)
    distance = -(teacher.softmax(dim=-1) * student.log_softmax(dim=-1)).sum(dim=-1)  # (batch, tokens)
    return (distance * weights).sum() / weights.sum().clamp_min(1)


def _span_label_loss(logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    return F.cross_entropy(_mask_padding(logits, mask), labels)  # (batch, tokens, 2) to (batch, 2)


def _span_logit_loss(student: Tensor, teacher: Tensor, _: Tensor | None, mask: Tensor | None) -> Tensor:
    return F.cross_entropy(_mask_padding(student, mask), _mask_padding(teacher, mask).softmax(dim=1))


def _mask_padding(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Logits of which padding is never the answer: the lowest number there, whose softmax is 0."""
    assert mask is not None, "question answering needs to know what is padding"
    return logits.masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(logits.dtype).min)


_LOSSES: Mapping[TaskType, _TaskLosses] = {
    "classification": _TaskLosses(
        label_loss=lambda logits, labels, _: F.cross_entropy(logits, labels),
        logit_loss=lambda student, teacher, *_: F.cross_entropy(student, teacher.softmax(dim=-1)),
    ),
    "regression": _TaskLosses(
        label_loss=lambda logits, labels, _: F.mse_loss(logits.squeeze(-1), labels),
        logit_loss=lambda student, teacher, *_: F.mse_loss(student, teacher),
    ),
    "multi-label": _TaskLosses(
        label_loss=lambda logits, labels, _: F.binary_cross_entropy_with_logits(logits, labels),
        logit_loss=lambda student, teacher, *_: F.binary_cross_entropy_with_logits(student, teacher.sigmoid()),
    ),
    "token-classification": _TaskLosses(
        label_loss=lambda logits, labels, _: F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX
        ),
        logit_loss=_token_logit_loss,
    ),
    "question-answering": _TaskLosses(label_loss=_span_label_loss, logit_loss=_span_logit_loss),
}


def hidden_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Mean squared error of states, summed over the states, a scalar.

    Padding counts neither in the sum nor in the mean, so on unpadded input this is the plain MSE of each state
    (DynaBERT, arXiv 2004.04037, equation 4).

    Args:
        student, teacher: as many states each, ``(batch, tokens, hidden)``; `matched_states` pairs them under depth.
        mask: ``(batch, tokens)``, 1 for tokens and 0 for padding.
    """
    weights = mask.unsqueeze(-1).to(student[0].dtype)
    values = weights.sum() * student[0].shape[-1]
    total = sum(((ours - theirs) * weights).square().sum() for ours, theirs in zip(student, teacher, strict=True))
    assert isinstance(total, Tensor)
    return total / values


def matched_states(teacher: Sequence[Tensor], layers: Sequence[int]) -> list[Tensor]:
    """The teacher's states that a student with these layers is compared with.

    The embedding output goes with the embedding output, the state after a kept layer with the teacher's state after
    the same layer, and the student's last state with the teacher's last (METHOD of DynaBERT's depth phase).

    Args:
        teacher: the states of a teacher with all layers, embedding output first.
        layers: the student's kept layers, as indices into the teacher's.
    """
    return [teacher[0], *(teacher[index + 1] for index in layers[:-1]), teacher[-1]]
