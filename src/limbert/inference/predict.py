"""Answers for texts without labels, by a sub-network or a dynamic policy."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbert.core.config import Precision
from limbert.core.subnet import Subnet
from limbert.core.task_types import TASK_TYPE_SPECS
from limbert.data.task_registry import decode_predictions
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.inference.engine import Engine
from limbert.inference.policy import Policy, resolve_policy
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel
from limbert.model.shared_forward import plan_shared_forwards, run_shared_forward


class LogitsCollector:
    """Collects what one network says about all examples.

    Args:
        examples: what the batches are made of.
    """

    def __init__(self, examples: TokenizedExamples) -> None:
        self._examples = examples
        self._logits: Tensor | None = None

    def add(self, indices: Sequence[int], logits: Tensor, attention_mask: Tensor) -> None:
        """Note the answers to a batch.

        Args:
            indices: of its examples.
            logits: ``(batch, outputs)``, or ``(batch, tokens, outputs)`` where answers stand at tokens.
            mask: ``(batch, tokens)``, 1 for tokens and 0 for padding; padding is no answer.
        """
        at_tokens = logits.ndim == 3
        values = (logits[attention_mask.bool()] if at_tokens else logits).float()
        if self._logits is None:
            count = len(self._examples.tokens.ids) if at_tokens else len(self._examples)
            self._logits = torch.empty(count, values.shape[-1], device=values.device)
        self._logits[torch.from_numpy(self._examples.token_indices(indices)) if at_tokens else list(indices)] = values

    @property
    def logits(self) -> Tensor:
        """``(examples, outputs)``, or ``(all tokens, outputs)``; all batches must have been added."""
        assert self._logits is not None
        return self._logits


@dataclass(frozen=True)
class PolicyOutputs:
    """A policy's answers to all examples, in their order.

    Attributes:
        logits: ``(examples, outputs)``.
        widths: ``(examples, layers)``, 0 where a layer did not run.
        layers_run: ``(examples,)``.
        flops: ``(examples,)``.
        seconds: that the engine took for all of them.
    """

    logits: np.ndarray
    widths: np.ndarray
    layers_run: np.ndarray
    flops: np.ndarray
    seconds: float


def run_policy(
    engine: Engine,
    examples: TokenizedExamples,
    *,
    batch_size: int,
    device: torch.device,
    after_batch: Callable[[], None] = lambda: None,
) -> PolicyOutputs:
    """Run a policy over examples, similar lengths together.

    Args:
        engine: with the policy.
        examples: in any order; labels are not looked at.
        batch_size: examples a batch; the answers do not depend on it.
        device: the model's.
        after_batch: called after each batch.
    """
    order: list[int] = []
    columns: dict[str, list[np.ndarray]] = {"logits": [], "widths": [], "layers_run": [], "flops": []}
    seconds = 0.0
    for indices, inputs in _batches(examples, batch_size=batch_size, device=device):
        start = time.perf_counter()
        answer = engine.run(inputs)
        logits = answer.logits.cpu().numpy()  # waits for the device
        seconds += time.perf_counter() - start
        trace = answer.trace
        order += indices
        for name, values in (("logits", logits), ("widths", trace.widths.numpy())):
            columns[name].append(values)
        columns["layers_run"].append(trace.layers_run.numpy())
        columns["flops"].append(trace.flops.numpy())
        after_batch()
    back = np.argsort(order)
    return PolicyOutputs(**{name: np.concatenate(parts)[back] for name, parts in columns.items()}, seconds=seconds)


def _batches(
    examples: TokenizedExamples, *, batch_size: int, device: torch.device
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    for indices in evaluation_batches(examples.lengths, batch_size=batch_size):
        batch = examples.collate(indices)
        yield indices, {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}


@torch.no_grad()
def predict_subnet_logits(
    model: ElasticModel,
    examples: TokenizedExamples,
    *,
    subnets: Mapping[str, Subnet],
    batch_size: int,
    precision: Precision = "fp32",
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
    """Every sub-network's logits in the order of the examples.

    Returns:
        ``(examples, outputs)``, or ``(all tokens, outputs)`` where answers stand at tokens, by the sub-networks' names.
    """
    network, device = model.network, model.network.device
    training = network.training
    network.eval()
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    found = {subnet: LogitsCollector(examples) for subnet in subnets.values()}
    try:
        for indices in evaluation_batches(examples.lengths, batch_size=batch_size):
            inputs = {name: tensor.to(device) for name, tensor in examples.collate(indices).items() if name != "labels"}
            for shared in plan_shared_forwards(subnets.values()):
                with model.at(shared.merged_subnet), autocast:
                    answers = run_shared_forward(model, shared, inputs)
                for subnet, answer in answers.items():
                    found[subnet].add(indices, answer.logits, inputs["attention_mask"])
            after_batch()
    finally:
        network.train(training)
    return {name: found[subnet].logits.cpu().numpy() for name, subnet in subnets.items()}


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

    values: Mapping[str, Any]
    layers_run: int
    flops: int

    @property
    def label(self) -> str | None:
        """The most probable class of a classification; None for other kinds of tasks."""
        label: str | None = self.values.get("label")
        return label

    @property
    def score(self) -> float | None:
        """The label's probability, the value of a regression, or how sure an answer is; None where it has parts."""
        score: float | None = self.values.get("score")
        return score

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the answer."""
        return dict(self.values)

    def cost_to_dict(self) -> dict[str, Any]:
        """Plain values: ``layers`` and ``flops``."""
        return {"layers": self.layers_run, "flops": self.flops}


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
    if TASK_TYPE_SPECS[task.task_type].token_level:
        resolve_policy(policy, model, task_type=task.task_type)
        assert policy.subnet is not None
        subnet = model.subnet(policy.subnet)
        logits, layers, flops = _predict_token_level(
            model, examples, subnet, batch_size=batch_size, precision=precision, after_batch=after_batch
        )
    else:
        engine = Engine(model, policy, task_type=task.task_type, precision=precision)
        found = run_policy(
            engine, examples, batch_size=batch_size, device=model.network.device, after_batch=after_batch
        )
        logits, layers, flops = found.logits, found.layers_run, found.flops
    return [
        Prediction(answer, int(ran), int(spent))
        for answer, ran, spent in zip(decode_predictions(task, logits, examples), layers, flops, strict=True)
    ]


def _predict_token_level(
    model: ElasticModel,
    examples: TokenizedExamples,
    subnet: Subnet,
    *,
    batch_size: int,
    precision: Precision,
    after_batch: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits ``(all tokens, outputs)``, and layers and FLOPs of each text, all its rows together, ``(texts,)``."""
    found = predict_subnet_logits(
        model,
        examples,
        subnets={"": subnet},
        batch_size=batch_size,
        precision=precision,
        after_batch=after_batch,
    )
    assert examples.alignment is not None
    cost, texts = CostModel(model), len(examples.alignment.examples)
    of_row = [cost.flops(subnet, int(tokens)) for tokens in examples.lengths]
    flops = np.bincount(examples.alignment.example_index, weights=of_row, minlength=texts)
    return found[""], np.full(texts, len(subnet.layers)), flops
