"""Measure sub-networks on labelled examples: metric, parameters and floating-point operations of each."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from limbert.core.config import Precision
from limbert.core.space import is_point, parse_point
from limbert.core.subnet import Subnet
from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.data.task_registry import score
from limbert.data.tasks import Task
from limbert.model.flops import CostModel
from limbert.model.elastic import ElasticModel
from limbert.run.gathering import Gathering
from limbert.model.shared_forward import plan_passes, run_pass


@dataclass(frozen=True)
class Result:
    """What one sub-network reaches.

    Attributes:
        subnet: its name, ``WIDTHxDEPTH`` or that of one found by a search.
        params: parameters, embeddings and head included.
        flops: mean floating-point operations an example, at the examples' own lengths.
        metrics: by name; with several development sets, ``SET/METRIC``.
    """

    subnet: str
    params: int
    flops: float
    metrics: dict[str, float]

    def primary(self, metric: str) -> float:
        """One metric, the mean over the development sets where there are several."""
        values = [value for name, value in self.metrics.items() if name.rpartition("/")[2] == metric]
        return sum(values) / len(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``subnet, width, depth, params, flops, metrics``; off the grid width and depth are None."""
        width, depth = parse_point(self.subnet) if is_point(self.subnet) else (None, None)
        return {
            "subnet": self.subnet,
            "width": width,
            "depth": depth,
            "params": self.params,
            "flops": round(self.flops),
            "metrics": self.metrics,
        }


def evaluate(
    model: ElasticModel,
    sets: Mapping[str, TokenizedExamples],
    *,
    task: Task,
    subnets: Mapping[str, Subnet],
    batch_size: int = 64,
    precision: Precision = "fp32",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """Results of the named sub-networks on one or more development sets, in the order of ``subnets``.

    Args:
        model: evaluated without dropout; its mode is restored.
        sets: labelled examples by the name of the set; ``flops`` is the mean over all of them.
        task: how logits become metrics.
        subnets: by name.
        batch_size: examples a batch; the answers do not depend on it.
        precision: ``"bf16"`` runs under autocast.
        progress: called with batches done and in all.
    """
    cost = CostModel(model)
    total = sum(len(evaluation_batches(examples.lengths, batch_size=batch_size)) for examples in sets.values())
    metrics: dict[str, dict[str, float]] = {name: {} for name in subnets}
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    for set_name, examples in sets.items():
        answers = subnet_logits(
            model, examples, subnets=subnets, batch_size=batch_size, precision=precision, after_batch=advance
        )
        prefix = "" if len(sets) == 1 else f"{set_name}/"
        for name, logits in answers.items():
            found = score(task, logits, examples)
            metrics[name] |= {prefix + metric: value for metric, value in found.items()}
    lengths = np.concatenate([examples.lengths for examples in sets.values()])
    return [
        Result(name, count_parameters(model, subnet), cost.mean_flops(subnet, lengths), metrics[name])
        for name, subnet in subnets.items()
    ]


@torch.no_grad()
def subnet_logits(
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
    found = {subnet: Gathering(examples) for subnet in subnets.values()}
    try:
        for indices in evaluation_batches(examples.lengths, batch_size=batch_size):
            inputs = {name: tensor.to(device) for name, tensor in examples.collate(indices).items() if name != "labels"}
            for shared in plan_passes(subnets.values()):
                with model.at(shared.scope), autocast:
                    answers = run_pass(model, shared, inputs)
                for subnet, answer in answers.items():
                    found[subnet].add(indices, answer.logits, inputs["attention_mask"])
            after_batch()
    finally:
        network.train(training)
    return {name: found[subnet].rows.cpu().numpy() for name, subnet in subnets.items()}


def count_parameters(model: ElasticModel, subnet: Subnet) -> int:
    """Parameters of a sub-network, embeddings and head included, tied ones once."""
    return sum(parameter.numel() for parameter in model.view(subnet).parameters())
