"""What width gates are trained towards, and with which loss. Pure functions of tensors; they know no model.

Source of the method: Hu, Meinel, Yang, "A flexible BERT model enabling width- and depth-dynamic inference" (Computer
Speech & Language 2024), section on width gates. The cost-weighted targets and the ones for regression are ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from limbert.core.config import TaskKind


def narrowest_right(right: Tensor) -> Tensor:
    """For each example the narrowest width that answers it rightly; the widest where none does.

    Args:
        right: ``(examples, widths)``, boolean, narrowest width first.

    Returns:
        ``(examples,)``, indices of widths.
    """
    first = right.to(torch.uint8).argmax(dim=1)  # the first of equal values
    return torch.where(right.any(dim=1), first, right.shape[1] - 1)


def is_right(answers: Tensor, truth: Tensor, *, kind: TaskKind, tolerance: float) -> Tensor:
    """Which answers count as right, ``(examples, widths)``.

    Args:
        answers: ``(examples, widths, outputs)``.
        truth: ``(examples,)``, class ids or values; multi-label ``(examples, classes)``, 0 or 1, all of which count.
        kind: what the outputs mean.
        tolerance: for regression, the largest distance that still counts as right.
    """
    if kind == "regression":
        return (answers[..., 0] - truth[:, None]).abs() <= tolerance
    if kind == "multi-label":
        return ((answers > 0) == (truth[:, None] > 0.5)).all(dim=-1)
    return answers.argmax(dim=-1) == truth[:, None]


def cheapest(answers: Tensor, truth: Tensor, *, kind: TaskKind, cost: float, shares: Tensor) -> Tensor:
    """For each example the width with the least ``loss + cost * share``.

    Unlike `narrowest_right` this tells apart widths that are all right or all wrong, by how sure they are.

    Args:
        answers: ``(examples, widths, outputs)``.
        truth: ``(examples,)`` class ids or values, or ``(examples, outputs)`` probabilities to agree with.
        kind: classification has the cross-entropy as its loss, multi-label the mean binary one of the classes,
            regression the squared error in units of the variance of ``truth``.
        cost: what a full-width pass costs, in units of the loss; 0 aims at the best answer.
        shares: ``(widths,)``, the cost of each width as a share of the full width's.

    Returns:
        ``(examples,)``, indices of widths; of equal ones the narrowest.
    """
    if kind == "regression":
        loss = (answers[..., 0] - truth[:, None]).square() / truth.var().clamp_min(1e-12)
    elif kind == "multi-label":
        targets = truth[:, None].expand_as(answers)  # (examples, widths, classes)
        loss = F.binary_cross_entropy_with_logits(answers, targets, reduction="none").mean(dim=-1)
    else:
        widths = answers.shape[1]
        targets = truth[:, None].expand(-1, widths, *truth.shape[1:])  # (examples, widths) or with outputs
        loss = F.cross_entropy(answers.flatten(0, 1), targets.flatten(0, 1), reduction="none").unflatten(
            0, (-1, widths)
        )
    return (loss + cost * shares).argmin(dim=1)


def class_weights(targets: Tensor, choices: int) -> Tensor:
    """Weights ``(choices,)`` under which every choice that occurs counts the same in sum; mean weight 1 an example.

    Args:
        targets: ``(examples,)``, indices of choices.
        choices: how many there are.
    """
    counts = torch.bincount(targets, minlength=choices)
    present = (counts > 0).sum()
    return torch.where(counts > 0, len(targets) / (present * counts.clamp_min(1)), 0.0)


def gate_loss(
    logits: Tensor, targets: Tensor, *, weights: Tensor, temperature: float, generator: torch.Generator | None
) -> Tensor:
    """Class-weighted negative log-likelihood of a Gumbel-softmax sample, averaged over gates, a scalar.

    All gates have the same target.

    Args:
        logits: ``(batch, gates, choices)``.
        targets: ``(batch,)``, indices of choices.
        weights: ``(choices,)``, from `class_weights`.
        temperature: of the softmax; falls during training.
        generator: of the Gumbel noise; None leaves the noise out, for validation.
    """
    if generator is not None:
        uniform = torch.rand(logits.shape, generator=generator).clamp(1e-10, 1 - 1e-7).to(logits.device)
        logits = logits - (-uniform.log()).log()
    likelihood = (logits / temperature).log_softmax(dim=-1)
    gates = logits.shape[1]
    return F.nll_loss(likelihood.flatten(0, 1), targets.repeat_interleave(gates), weight=weights)
