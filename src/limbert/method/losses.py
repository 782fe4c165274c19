"""Training losses: on labels, and distillation from the teacher's logits and hidden states.

Pure functions of tensors.
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
    """The losses of one task type, scalars.

    Attributes:
        label_loss: of (logits, labels, mask).
        logit_loss: of (student logits, teacher logits, labels, mask).
    """

    label_loss: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    logit_loss: Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def logit_loss(
    student: Tensor, teacher: Tensor, *, task_type: TaskType, labels: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Distillation loss between the logits of student and teacher, a scalar.

    Classification: soft cross-entropy ``-(softmax(teacher) * log_softmax(student)).sum(-1).mean()`` without
    temperature. Regression: mean squared error (DynaBERT, arXiv 2004.04037, equation 3; the released program gives 0
    for regression). Multi-label: mean binary soft cross-entropy over the classes. Token classification: soft
    cross-entropy, averaged over tokens with a label. Question answering: soft cross-entropy over the tokens that are
    not padding, averaged over start and end.

    Args:
        student, teacher: ``(batch, outputs)``; for token-level tasks ``(batch, tokens, outputs)``.
        task_type: meaning of the outputs.
        labels: ``(batch, tokens)``, required for token classification: tokens with ``IGNORE_INDEX`` do not count.
        mask: ``(batch, tokens)``, 1 for tokens and 0 for padding; required for question answering.
    """
    return _LOSSES[task_type].logit_loss(student, teacher, labels, mask)


def label_loss(logits: Tensor, labels: Tensor, *, task_type: TaskType, mask: Tensor | None = None) -> Tensor:
    """Supervised loss, a scalar: cross-entropy, or mean squared error for regression.

    Args:
        logits: ``(batch, outputs)``; for token-level tasks ``(batch, tokens, outputs)``.
        labels: ``(batch,)``, class ids or values, or ``(batch, classes)``, probabilities; multi-label
            ``(batch, classes)``, from 0 to 1; token classification ``(batch, tokens)``, class ids or ``IGNORE_INDEX``;
            question answering ``(batch, 2)``, first and last token.
        task_type: meaning of the outputs.
        mask: ``(batch, tokens)``, 1 for tokens and 0 for padding; required for question answering.
    """
    return _LOSSES[task_type].label_loss(logits, labels, mask)


def _token_logit_loss(student: Tensor, teacher: Tensor, labels: Tensor | None, _: Tensor | None) -> Tensor:
    assert labels is not None, "token classification needs labels"
    weights = (labels != IGNORE_INDEX).to(student.dtype)
    distance = -(teacher.softmax(dim=-1) * student.log_softmax(dim=-1)).sum(dim=-1)  # (batch, tokens)
    return (distance * weights).sum() / weights.sum().clamp_min(1)


def _span_label_loss(logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    return F.cross_entropy(_mask_padding(logits, mask), labels)  # (batch, tokens, 2) to (batch, 2)


def _span_logit_loss(student: Tensor, teacher: Tensor, _: Tensor | None, mask: Tensor | None) -> Tensor:
    return F.cross_entropy(_mask_padding(student, mask), _mask_padding(teacher, mask).softmax(dim=1))


def _mask_padding(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Set the logits of padding to the lowest number, so that their softmax is 0."""
    assert mask is not None, "question answering needs an attention mask"
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
    """Mean squared error of the hidden states, summed over the states, a scalar.

    Padding is excluded, so without padding this is the plain MSE of each state (DynaBERT, arXiv 2004.04037,
    equation 4).

    Args:
        student, teacher: equally many states, ``(batch, tokens, hidden)``; see `matched_states` for shallower students.
        mask: ``(batch, tokens)``, 1 for tokens and 0 for padding.
    """
    weights = mask.unsqueeze(-1).to(student[0].dtype)
    values = weights.sum() * student[0].shape[-1]
    total = sum(((state - target) * weights).square().sum() for state, target in zip(student, teacher, strict=True))
    assert isinstance(total, Tensor)
    return total / values


def matched_states(teacher: Sequence[Tensor], layers: Sequence[int]) -> list[Tensor]:
    """The teacher's hidden states that correspond to those of a student with these layers.

    The embedding output corresponds to the embedding output, the output of a kept layer to the teacher's output of the
    same layer, and the student's last state to the teacher's last (depth phase of DynaBERT).

    Args:
        teacher: hidden states of a teacher with all layers, embedding output first.
        layers: the student's layers, as indices into the teacher's.
    """
    return [teacher[0], *(teacher[index + 1] for index in layers[:-1]), teacher[-1]]
