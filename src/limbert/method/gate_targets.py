"""What width gates are trained towards, and with which loss. Pure functions of tensors; they know no model.

Source of the method: Hu, Meinel, Yang, "A flexible BERT model enabling width- and depth-dynamic inference" (Computer
Speech & Language 2024), section on width gates. The cost-weighted targets and the ones for regression are ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from limbert.core.config import TaskType


def narrowest_correct(correct: Tensor) -> Tensor:
    """For each example the narrowest width that answers it rightly; the widest where none does.

    Args:
        right: ``(examples, widths)``, boolean, narrowest width first.

    Returns:
        ``(examples,)``, indices of widths.
    """
    first = correct.to(torch.uint8).argmax(dim=1)  # the first of equal values
    return torch.where(correct.any(dim=1), first, correct.shape[1] - 1)


def is_correct(logits: Tensor, labels: Tensor, *, task_type: TaskType, tolerance: float) -> Tensor:
    """Which answers count as right, ``(examples, widths)``.

    Args:
        answers: ``(examples, widths, outputs)``.
        truth: ``(examples,)``, class ids or values; multi-label ``(examples, classes)``, 0 or 1, all of which count.
        kind: what the outputs mean.
        tolerance: for regression, the largest distance that still counts as right.
    """
    if task_type == "regression":
        return (logits[..., 0] - labels[:, None]).abs() <= tolerance
    if task_type == "multi-label":
        return ((logits > 0) == (labels[:, None] > 0.5)).all(dim=-1)
    return logits.argmax(dim=-1) == labels[:, None]


def lowest_cost(logits: Tensor, labels: Tensor, *, task_type: TaskType, cost: float, relative_flops: Tensor) -> Tensor:
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
    if task_type == "regression":
        loss = (logits[..., 0] - labels[:, None]).square() / labels.var().clamp_min(1e-12)
    elif task_type == "multi-label":
        targets = labels[:, None].expand_as(logits)  # (examples, widths, classes)
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=-1)
    else:
        widths = logits.shape[1]
        targets = labels[:, None].expand(-1, widths, *labels.shape[1:])  # (examples, widths) or with outputs
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1), reduction="none").unflatten(0, (-1, widths))
    return (loss + cost * relative_flops).argmin(dim=1)


def balanced_class_weights(targets: Tensor, num_choices: int) -> Tensor:
    """Weights ``(choices,)`` under which every choice that occurs counts the same in sum; mean weight 1 an example.

    Args:
        targets: ``(examples,)``, indices of choices.
        choices: how many there are.
    """
    counts = torch.bincount(targets, minlength=num_choices)
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
