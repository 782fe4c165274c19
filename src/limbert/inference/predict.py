"""Answers for texts without labels, by a sub-network or a dynamic policy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbert.core.config import Precision
from limbert.core.task_types import KINDS
from limbert.core.subnet import Subnet
from limbert.data.tokenize import TokenizedExamples
from limbert.data.task_registry import answers
from limbert.data.tasks import Task
from limbert.model.flops import CostModel
from limbert.model.elastic import ElasticModel
from limbert.evaluation.policies import policy_answers
from limbert.inference.engine import Engine
from limbert.evaluation.subnets import subnet_logits
from limbert.inference.policy import Policy, resolve


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Attributes:
        answer: plain values; ``label`` and ``score`` of a classification, ``score`` of a regression, ``labels`` of a
            multi-label task, ``entities`` of token classification, ``answer``, ``score``, ``start`` and ``end`` of a
            question.
        layers: layers that ran.
        flops: floating-point operations that it took.
    """

    answer: Mapping[str, Any]
    layers: int
    flops: int

    @property
    def label(self) -> str | None:
        """The most probable class of a classification; None for other kinds of tasks."""
        label: str | None = self.answer.get("label")
        return label

    @property
    def score(self) -> float | None:
        """The label's probability, the value of a regression, or how sure an answer is; None where it has parts."""
        score: float | None = self.answer.get("score")
        return score

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the answer."""
        return dict(self.answer)

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
    if KINDS[task.kind].at_tokens:
        resolve(policy, model, kind=task.kind)
        assert policy.subnet is not None
        subnet = model.subnet(policy.subnet)
        logits, layers, flops = _static(
            model, examples, subnet, batch_size=batch_size, precision=precision, after_batch=after_batch
        )
    else:
        engine = Engine(model, policy, kind=task.kind, precision=precision)
        found = policy_answers(
            engine, examples, batch_size=batch_size, device=model.network.device, after_batch=after_batch
        )
        logits, layers, flops = found.logits, found.layers_run, found.flops
    return [
        Prediction(answer, int(ran), int(spent))
        for answer, ran, spent in zip(answers(task, logits, examples), layers, flops, strict=True)
    ]


def _static(
    model: ElasticModel,
    examples: TokenizedExamples,
    subnet: Subnet,
    *,
    batch_size: int,
    precision: Precision,
    after_batch: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits ``(all tokens, outputs)``, and layers and FLOPs of each text, all its rows together, ``(texts,)``."""
    found = subnet_logits(
        model,
        examples,
        subnets={"": subnet},
        batch_size=batch_size,
        precision=precision,
        after_batch=after_batch,
    )
    assert examples.places is not None
    cost, texts = CostModel(model), len(examples.places.examples)
    of_row = [cost.flops(subnet, int(tokens)) for tokens in examples.lengths]
    flops = np.bincount(examples.places.example_of, weights=of_row, minlength=texts)
    return found[""], np.full(texts, len(subnet.layers)), flops
