"""Measure a policy on labelled examples: what it reaches, computes and takes, and how it spends it."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from limbert.core.config import Precision
from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.data.task_registry import score
from limbert.data.tasks import Task
from limbert.model.flops import CostModel
from limbert.model.elastic import ElasticModel
from limbert.inference.engine import Engine
from limbert.inference.policy import Policy


@dataclass(frozen=True)
class PolicyResult:
    """What a policy reaches.

    Attributes:
        policy: what ran.
        metrics: by name; with several development sets, ``SET/METRIC``.
        flops_mean: mean floating-point operations an example, gates and off-ramps included.
        flops_full: those of the full model on the same examples.
        time_per_example: seconds of the engine, on this machine at this batch size; texts were tokenised before.
        widths: for each layer of the full model, the share of the examples by the width it ran at; width 0 is not run.
        exits: the share of the examples by the number of layers that ran.
    """

    policy: Policy
    metrics: dict[str, float]
    flops_mean: float
    flops_full: float
    time_per_example: float
    widths: list[dict[float, float]]
    exits: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "policy": self.policy.name,
            "settings": self.policy.to_dict(),
            "metrics": self.metrics,
            "flops_mean": round(self.flops_mean),
            "flops_full": round(self.flops_full),
            "time_per_example": self.time_per_example,
            "widths": [{f"{width:g}": share for width, share in layer.items()} for layer in self.widths],
            "exits": {str(layers): share for layers, share in self.exits.items()},
        }


@dataclass(frozen=True)
class PolicyAnswers:
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


def policy_answers(
    engine: Engine,
    examples: TokenizedExamples,
    *,
    batch_size: int,
    device: torch.device,
    after_batch: Callable[[], None] = lambda: None,
) -> PolicyAnswers:
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
    return PolicyAnswers(**{name: np.concatenate(parts)[back] for name, parts in columns.items()}, seconds=seconds)


def evaluate_policy(
    model: ElasticModel,
    sets: Mapping[str, TokenizedExamples],
    *,
    task: Task,
    policy: Policy,
    batch_size: int = 32,
    precision: Precision = "fp32",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PolicyResult:
    """Measure one policy on one or more development sets; the first batch runs once more, before the clock.

    Args:
        model: evaluated without dropout.
        sets: labelled examples by the name of the set.
        task: how logits become metrics.
        policy: how sizes are chosen.
        batch_size: examples a batch; only the time depends on it.
        precision: ``"bf16"`` runs under autocast.
        progress: called with batches done and in all.

    Raises:
        ConfigError: if the policy does not fit the model or the task.
    """
    engine = Engine(model, policy, kind=task.kind, precision=precision)
    device = model.network.device
    total = sum(len(evaluation_batches(examples.lengths, batch_size=batch_size)) for examples in sets.values())
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    engine.run(next(_batches(next(iter(sets.values())), batch_size=batch_size, device=device))[1])
    metrics: dict[str, float] = {}
    found = []
    for name, examples in sets.items():
        answers = policy_answers(engine, examples, batch_size=batch_size, device=device, after_batch=advance)
        prefix = "" if len(sets) == 1 else f"{name}/"
        measured = score(task, answers.logits, examples)
        metrics |= {prefix + metric: value for metric, value in measured.items()}
        found.append(answers)
    cost = CostModel(model)
    lengths = np.concatenate([examples.lengths for examples in sets.values()])
    widths = np.concatenate([answers.widths for answers in found])
    return PolicyResult(
        policy=policy,
        metrics=metrics,
        flops_mean=float(np.concatenate([answers.flops for answers in found]).mean()),
        flops_full=cost.mean_flops(model.full, lengths),
        time_per_example=sum(answers.seconds for answers in found) / len(lengths),
        widths=[_shares(layer) for layer in widths.T],
        exits={int(layers): share for layers, share in _shares(np.concatenate([a.layers_run for a in found])).items()},
    )


def _batches(
    examples: TokenizedExamples, *, batch_size: int, device: torch.device
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    for indices in evaluation_batches(examples.lengths, batch_size=batch_size):
        batch = examples.collate(indices)
        yield indices, {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}


def _shares(values: np.ndarray) -> dict[float, float]:
    """How often each value occurs, as shares, by rising value."""
    counts = Counter(values.tolist())
    return {value: counts[value] / len(values) for value in sorted(counts)}
