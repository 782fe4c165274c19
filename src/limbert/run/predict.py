"""Answers for texts without labels, by one sub-network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbert.core.config import Precision
from limbert.core.subnet import Subnet
from limbert.data.batches import TokenizedExamples
from limbert.data.tasks import Task
from limbert.model.elastic import ElasticModel
from limbert.run.evaluate import subnet_logits


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Attributes:
        label: the most probable class; None for regression.
        score: its probability, or the predicted value for regression.
    """

    label: str | None
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``label`` and ``score``, or ``score`` alone for regression."""
        return {"score": self.score} if self.label is None else {"label": self.label, "score": self.score}


def predict(
    model: ElasticModel,
    examples: TokenizedExamples,
    *,
    task: Task,
    subnet: Subnet,
    batch_size: int = 64,
    precision: Precision = "fp32",
    after_batch: Callable[[], None] = lambda: None,
) -> list[Prediction]:
    """One prediction an example, in order.

    Args:
        model: runs without dropout.
        examples: tokenised texts.
        task: what the outputs mean.
        subnet: the sub-network that answers.
        batch_size: examples a batch; the answers do not depend on it.
        precision: ``"bf16"`` runs under autocast.
        after_batch: called after each batch.
    """
    logits = subnet_logits(
        model, examples, subnets={"": subnet}, batch_size=batch_size, precision=precision, after_batch=after_batch
    )[""]
    if task.kind == "regression":
        return [Prediction(None, float(value)) for value in logits[:, 0]]
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=-1, keepdims=True)  # (examples, classes)
    best = probabilities.argmax(axis=-1)
    return [Prediction(task.labels[index], float(row[index])) for index, row in zip(best, probabilities, strict=True)]
