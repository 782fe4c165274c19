"""Answers for texts without labels, by a sub-network or a dynamic policy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbert.core.config import Precision
from limbert.data.batches import TokenizedExamples
from limbert.data.tasks import Task
from limbert.model.elastic import ElasticModel
from limbert.run.dynamic import policy_answers
from limbert.run.engine import Engine
from limbert.run.policy import Policy


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Attributes:
        label: the most probable class; None for regression.
        score: its probability, or the predicted value for regression.
        layers: layers that ran.
        flops: floating-point operations that it took.
    """

    label: str | None
    score: float
    layers: int
    flops: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``label`` and ``score``, or ``score`` alone for regression."""
        return {"score": self.score} if self.label is None else {"label": self.label, "score": self.score}

    def spent(self) -> dict[str, Any]:
        """Plain values: ``layers`` and ``flops``."""
        return {"layers": self.layers, "flops": self.flops}


def predict(
    model: ElasticModel,
    examples: TokenizedExamples,
    *,
    task: Task,
    policy: Policy,
    batch_size: int = 64,
    precision: Precision = "fp32",
    after_batch: Callable[[], None] = lambda: None,
) -> list[Prediction]:
    """One prediction an example, in order.

    Args:
        model: runs without dropout.
        examples: tokenised texts.
        task: what the outputs mean.
        policy: the sub-network that answers, or how it is chosen for each example.
        batch_size: examples a batch; the answers do not depend on it.
        precision: ``"bf16"`` runs under autocast.
        after_batch: called after each batch.

    Raises:
        ConfigError: if the policy does not fit the model or the task.
        SubnetError: for a sub-network that the model cannot run.
    """
    engine = Engine(model, policy, kind=task.kind, precision=precision)
    answers = policy_answers(
        engine, examples, batch_size=batch_size, device=model.network.device, after_batch=after_batch
    )
    if task.kind == "regression":
        labels: list[str | None] = [None] * len(examples)
        scores = answers.logits[:, 0]
    else:
        shifted = np.exp(answers.logits - answers.logits.max(axis=-1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=-1, keepdims=True)  # (examples, classes)
        labels = [task.labels[index] for index in probabilities.argmax(axis=-1)]
        scores = probabilities.max(axis=-1)
    return [
        Prediction(label, float(score), int(layers), int(flops))
        for label, score, layers, flops in zip(labels, scores, answers.layers_run, answers.flops, strict=True)
    ]
