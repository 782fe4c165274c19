"""Early exit: when an example's answer at an off-ramp is sure enough to stop there. Vectorised over the batch.

An off-ramp is a depth that was trained; it shares the pooler and the head of the full model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from limbert.core.config import TaskType, require
from limbert.errors import ConfigError

ExitRuleName = Literal["entropy", "confidence", "patience"]
EXIT_RULES: tuple[ExitRuleName, ...] = get_args(ExitRuleName)


@dataclass(frozen=True)
class ExitRule:
    """When an example leaves at an off-ramp.

    Attributes:
        name: ``entropy`` of the softmax below the threshold, in nats (Flexible BERT; DeeBERT, arXiv 2004.12993);
            ``confidence``, the largest probability, at least the threshold; ``patience``: for classification the label
            has stayed the same over so many further off-ramps, for regression the value has moved by less than the
            threshold since the off-ramp before (PABEE, arXiv 2006.04152). A multi-label answer is as sure as its least
            sure class: the largest of the binary entropies, the smallest of the probabilities of yes or no; patience
            counts the whole set of labels.
        threshold: as the rule reads it.

    Raises:
        ConfigError: for an unknown rule or a threshold that it cannot have.
    """

    name: ExitRuleName
    threshold: float

    def __post_init__(self) -> None:
        require(self.name in EXIT_RULES, "exit rule", self.name, "one of " + ", ".join(EXIT_RULES))
        if self.name == "confidence":
            require(0 <= self.threshold <= 1, "exit threshold", self.threshold, "a probability, from 0 to 1")
        else:
            require(self.threshold >= 0, "exit threshold", self.threshold, "0 or more")

    def check(self, task_type: TaskType) -> None:
        """Raise ConfigError where the rule has no meaning for the kind of task."""
        if task_type == "regression" and self.name != "patience":
            raise ConfigError(f"exit rule {self.name!r} needs classes; for regression it must be patience")
        if task_type != "regression" and self.name == "patience" and self.threshold != int(self.threshold):
            raise ConfigError(
                f"exit threshold is {self.threshold}; for patience it must be a whole number of off-ramps"
            )

    def should_exit(self, logits: Sequence[Tensor], *, task_type: TaskType) -> Tensor:
        """Which examples leave, ``(examples,)``, boolean.

        Args:
            answers: the logits ``(examples, outputs)`` at every off-ramp so far, the present one last.
            kind: what the outputs mean.
        """
        now = logits[-1]
        if self.name == "patience":
            return _patience_reached(logits, self.threshold, task_type=task_type)
        scores = exit_score(now.float(), self.name, task_type=task_type)
        return scores < self.threshold if self.name == "entropy" else scores >= self.threshold


def exit_score(logits: Tensor, rule: ExitRuleName, *, task_type: TaskType) -> Tensor:
    """What the rules ``entropy`` and ``confidence`` compare with their threshold, ``(...)`` from ``(..., outputs)``."""
    if task_type == "multi-label":
        yes = logits.sigmoid()
        if rule == "entropy":
            return (torch.special.entr(yes) + torch.special.entr(1 - yes)).amax(dim=-1)
        return torch.maximum(yes, 1 - yes).amin(dim=-1)
    probabilities = logits.softmax(dim=-1)
    if rule == "entropy":
        return torch.special.entr(probabilities).sum(dim=-1)
    return probabilities.amax(dim=-1)


def _patience_reached(logits: Sequence[Tensor], threshold: float, *, task_type: TaskType) -> Tensor:
    now = logits[-1]
    if task_type == "regression":
        if len(logits) < 2:
            return torch.zeros(len(now), dtype=torch.bool, device=now.device)
        return (now[:, 0] - logits[-2][:, 0]).abs() < threshold
    if task_type == "multi-label":
        sets = torch.stack([answer > 0 for answer in logits])  # (off-ramps, examples, classes)
        same = (sets[:-1].flip(0) == sets[-1]).all(dim=-1)
    else:
        labels = torch.stack([answer.argmax(dim=-1) for answer in logits])  # (off-ramps, examples)
        same = labels[:-1].flip(0) == labels[-1]
    return same.long().cumprod(dim=0).sum(dim=0) >= threshold
