"""Measure sub-networks on labelled examples: metric, parameters and floating-point operations of each."""

from collections.abc import Callable, Mapping

import numpy as np

from limbert.core.config import Precision
from limbert.core.subnet import Subnet
from limbert.data.task_registry import compute_task_metrics
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.evaluation.results import SubnetResult
from limbert.inference.predict import predict_subnet_logits
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel


def evaluate(
    model: ElasticModel,
    eval_datasets: Mapping[str, TokenizedExamples],
    *,
    task: Task,
    subnets: Mapping[str, Subnet],
    batch_size: int = 64,
    precision: Precision = "fp32",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[SubnetResult]:
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
    total = sum(len(evaluation_batches(examples.lengths, batch_size=batch_size)) for examples in eval_datasets.values())
    metrics: dict[str, dict[str, float]] = {name: {} for name in subnets}
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    for set_name, examples in eval_datasets.items():
        answers = predict_subnet_logits(
            model, examples, subnets=subnets, batch_size=batch_size, precision=precision, after_batch=advance
        )
        prefix = "" if len(eval_datasets) == 1 else f"{set_name}/"
        for name, logits in answers.items():
            found = compute_task_metrics(task, logits, examples)
            metrics[name] |= {prefix + metric: value for metric, value in found.items()}
    lengths = np.concatenate([examples.lengths for examples in eval_datasets.values()])
    return [
        SubnetResult(name, count_parameters(model, subnet), cost.mean_flops(subnet, lengths), metrics[name])
        for name, subnet in subnets.items()
    ]


def count_parameters(model: ElasticModel, subnet: Subnet) -> int:
    """Parameters of a sub-network, embeddings and head included, tied ones once."""
    return sum(parameter.numel() for parameter in model.view(subnet).parameters())
