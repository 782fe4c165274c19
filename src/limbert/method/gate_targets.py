"""Targets and loss of width gates, as pure functions of tensors.

Source: Hu, Meinel, Yang, "A flexible BERT model enabling width- and depth-dynamic inference" (Computer Speech &
Language 2024), section on width gates. The cost-weighted targets and those for regression are additions of Limbert.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from limbert.core.config import TaskType


def narrowest_correct(correct: Tensor) -> Tensor:
    """For each example the narrowest width with a correct prediction; the widest if none is correct.

    Args:
        correct: ``(examples, widths)``, boolean, narrowest width first.

    Returns:
        ``(examples,)``, indices of widths.
    """
    first = correct.to(torch.uint8).argmax(dim=1)  # the first of equal values
    return torch.where(correct.any(dim=1), first, correct.shape[1] - 1)


def is_correct(logits: Tensor, labels: Tensor, *, task_type: TaskType, tolerance: float) -> Tensor:
    """Which predictions are correct, ``(examples, widths)``, boolean.

    Args:
        logits: ``(examples, widths, outputs)``.
        labels: ``(examples,)``, class ids or values; multi-label ``(examples, classes)``, 0 or 1, and all classes must
            be correct.
        task_type: meaning of the outputs.
        tolerance: for regression, the largest error that counts as correct.
    """
    if task_type == "regression":
        return (logits[..., 0] - labels[:, None]).abs() <= tolerance
    if task_type == "multi-label":
        return ((logits > 0) == (labels[:, None] > 0.5)).all(dim=-1)
    return logits.argmax(dim=-1) == labels[:, None]


def lowest_cost(logits: Tensor, labels: Tensor, *, task_type: TaskType, cost: float, relative_flops: Tensor) -> Tensor:
    """For each example the width with the lowest ``loss + cost * relative_flops``.

    Unlike `narrowest_correct`, this also ranks widths that are all correct or all wrong, by their loss.

    Args:
        logits: ``(examples, widths, outputs)``.
        labels: ``(examples,)`` class ids or values, or ``(examples, outputs)`` probabilities.
        task_type: selects the loss: cross-entropy for classification, mean binary cross-entropy over the classes for
            multi-label, squared error divided by the variance of ``labels`` for regression.
        cost: of a full-width pass, in units of the loss; 0 selects the lowest loss.
        relative_flops: ``(widths,)``, FLOPs of each width divided by those of the full width.

    Returns:
        ``(examples,)``, indices of widths; the narrowest of equal ones.
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
    """Class weights ``(num_choices,)`` that give every choice in the data the same total; mean 1 over the examples.

    Args:
        targets: ``(examples,)``, indices of choices.
        num_choices: number of choices.
    """
    counts = torch.bincount(targets, minlength=num_choices)
    present = (counts > 0).sum()
    return torch.where(counts > 0, len(targets) / (present * counts.clamp_min(1)), 0.0)


def gate_loss(
    logits: Tensor, targets: Tensor, *, weights: Tensor, temperature: float, generator: torch.Generator | None
) -> Tensor:
    """Class-weighted negative log-likelihood of a Gumbel-softmax sample, averaged over the gates, a scalar.

    All gates have the same target.

    Args:
        logits: ``(batch, gates, choices)``.
        targets: ``(batch,)``, indices of choices.
        weights: ``(choices,)``, from `balanced_class_weights`.
        temperature: of the softmax; lowered during training.
        generator: of the Gumbel noise; None for no noise, in validation.
    """
    if generator is not None:
        uniform = torch.rand(logits.shape, generator=generator).clamp(1e-10, 1 - 1e-7).to(logits.device)
        logits = logits - (-uniform.log()).log()
    log_likelihood = (logits / temperature).log_softmax(dim=-1)
    gates = logits.shape[1]
    return F.nll_loss(log_likelihood.flatten(0, 1), targets.repeat_interleave(gates), weight=weights)
