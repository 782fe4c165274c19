"""Logits and labels in one form for all stock heads."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbert.core.config import TaskType


def logits_of(output: Mapping[str, Any]) -> Tensor:
    """The logits in the outputs of a stock network, or of its exported graph.

    Returns:
        ``(batch, outputs)``, or ``(batch, tokens, outputs)`` for token-level heads. Question answering has two outputs
        per token: start and end.
    """
    if "start_logits" in output:
        return torch.stack([output["start_logits"], output["end_logits"]], dim=-1)
    logits: Tensor = output["logits"]
    return logits


def label_inputs(labels: Tensor, *, task_type: TaskType) -> dict[str, Tensor]:
    """Labels under the argument names of stock networks, which then return a loss."""
    if task_type == "question-answering":
        return {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
    return {"labels": labels}
