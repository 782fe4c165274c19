"""What a sub-network is asked to match: its teacher's answers and its teacher's states.

Pure functions of tensors; they know no model and no sub-network.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from limbert.core.config import TaskKind


def logit_loss(student: Tensor, teacher: Tensor, *, kind: TaskKind) -> Tensor:
    """Distance between answers, a scalar.

    For classification the soft cross-entropy ``-(softmax(teacher) * log_softmax(student)).sum(-1).mean()`` without
    temperature, for regression the mean squared error (DynaBERT, arXiv 2004.04037, equation 3; the released program
    gives 0 for regression).

    Args:
        student, teacher: ``(batch, outputs)``.
        kind: what the outputs mean.
    """
    if kind == "regression":
        return F.mse_loss(student, teacher)
    return F.cross_entropy(student, teacher.softmax(dim=-1))


def label_loss(logits: Tensor, labels: Tensor, *, kind: TaskKind) -> Tensor:
    """The plain supervised loss, a scalar: cross-entropy, or mean squared error for regression.

    Args:
        logits: ``(batch, outputs)``.
        labels: ``(batch,)``, class ids or values; or ``(batch, outputs)``, probabilities.
        kind: what the outputs mean.
    """
    if kind == "regression":
        return F.mse_loss(logits.squeeze(-1), labels)
    return F.cross_entropy(logits, labels)


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
