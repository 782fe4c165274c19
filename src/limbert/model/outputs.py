"""One shape of answers and one name of labels for the stock heads, which differ in both."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbert.core.config import TaskType


def logits_of(output: Mapping[str, Any]) -> Tensor:
    """The answers in what a stock network returns, or its exported graph.

    Returns:
        ``(batch, outputs)``, or ``(batch, tokens, outputs)`` where the head answers at tokens; a head for question
        answering has two outputs there: how much a token starts the answer, and how much it ends it.
    """
    if "start_logits" in output:
        return torch.stack([output["start_logits"], output["end_logits"]], dim=-1)
    logits: Tensor = output["logits"]
    return logits


def label_inputs(labels: Tensor, *, task_type: TaskType) -> dict[str, Tensor]:
    """Labels by the names that a stock network computes its own loss from."""
    if task_type == "question-answering":
        return {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
    return {"labels": labels}
