"""Early exit: rules that decide, per example, whether the logits after some layer are final. Vectorised over a batch.

An exit (off-ramp) is a trained depth; it uses the pooler and the head of the full model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from limbert.core.config import TaskType, require
from limbert.deprecation import RenamedAttribute
from limbert.errors import ConfigError

ExitRuleName = Literal["entropy", "confidence", "patience"]
EXIT_RULES: tuple[ExitRuleName, ...] = get_args(ExitRuleName)


@dataclass(frozen=True)
class ExitRule:
    """The condition under which an example exits.

    Attributes:
        name: ``entropy``: the entropy of the softmax, in nats, is below the threshold (Flexible BERT; DeeBERT, arXiv
            2004.12993). ``confidence``: the largest probability is at least the threshold. ``patience`` (PABEE, arXiv
            2006.04152): for classification the label has been the same at the last ``threshold`` exits before, for
            regression the value differs by less than the threshold from that at the previous exit. For multi-label
            tasks the least certain class counts: the largest of the binary entropies, the smallest of
            ``max(p, 1 - p)``; patience compares the whole set of labels.
        threshold: of the rule.

    Raises:
        ConfigError: for an unknown rule or a threshold outside its range.
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
        """Raise ConfigError if the rule does not apply to the task type."""
        if task_type == "regression" and self.name != "patience":
            raise ConfigError(f"exit rule {self.name!r} needs classes; for regression it must be patience")
        if task_type != "regression" and self.name == "patience" and self.threshold != int(self.threshold):
            raise ConfigError(f"exit threshold is {self.threshold}; for patience it must be a whole number of exits")

    def should_exit(self, logits: Sequence[Tensor], *, task_type: TaskType) -> Tensor:
        """Which examples exit, ``(examples,)``, boolean.

        Args:
            logits: ``(examples, outputs)`` at every exit so far, the current one last.
            task_type: meaning of the outputs.
        """
        if self.name == "patience":
            return _patience_reached(logits, self.threshold, task_type=task_type)
        scores = exit_score(logits[-1].float(), self.name, task_type=task_type)
        return scores < self.threshold if self.name == "entropy" else scores >= self.threshold

    leaving = RenamedAttribute("should_exit", answers="logits", kind="task_type")


def exit_score(logits: Tensor, rule: ExitRuleName, *, task_type: TaskType) -> Tensor:
    """Entropy or confidence of each prediction: logits ``(..., outputs)`` to scores ``(...)``."""
    if task_type == "multi-label":
        positive = logits.sigmoid()
        if rule == "entropy":
            return (torch.special.entr(positive) + torch.special.entr(1 - positive)).amax(dim=-1)
        return torch.maximum(positive, 1 - positive).amin(dim=-1)
    probabilities = logits.softmax(dim=-1)
    if rule == "entropy":
        return torch.special.entr(probabilities).sum(dim=-1)
    return probabilities.amax(dim=-1)


def _patience_reached(logits: Sequence[Tensor], threshold: float, *, task_type: TaskType) -> Tensor:
    current = logits[-1]
    if task_type == "regression":
        if len(logits) < 2:
            return torch.zeros(len(current), dtype=torch.bool, device=current.device)
        return (current[:, 0] - logits[-2][:, 0]).abs() < threshold
    if task_type == "multi-label":
        label_sets = torch.stack([at_exit > 0 for at_exit in logits])  # (exits, examples, classes)
        same = (label_sets[:-1].flip(0) == label_sets[-1]).all(dim=-1)
    else:
        labels = torch.stack([at_exit.argmax(dim=-1) for at_exit in logits])  # (exits, examples)
        same = labels[:-1].flip(0) == labels[-1]
    return same.long().cumprod(dim=0).sum(dim=0) >= threshold
