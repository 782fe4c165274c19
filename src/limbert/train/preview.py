"""What a run will do, said before it starts: the steps of every phase, and an estimate of the time of all."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from limbert.core.config import GatesConfig
from limbert.model.elastic import ElasticModel
from limbert.model.outputs import logits_of
from limbert.train.arguments import ElasticTrainingArguments
from limbert.train.data import pop_labels
from limbert.train.phases import ConfiguredPhase, describe_steps, encoder_arguments

logger = logging.getLogger(__name__)

_FORWARD = 1 / 3  # of the time of a forward and a backward pass
_TIMED_EXAMPLES = 8


def preview_phases(
    model: ElasticModel,
    phases: Sequence[ConfiguredPhase],
    args: ElasticTrainingArguments,
    *,
    train_dataset: Any,
    metric: str,
    distill_dataset: Any = None,
    **_: Any,
) -> None:
    """Log steps and epochs of every phase, and the time of all, estimated from that of a few examples at full size.

    Args: as of `train_phases`.
    """
    shown, passes, data = [], 0.0, train_dataset  # forward and backward passes of one example through the full network
    for phase, config in phases:
        data = distill_dataset if phase.uses_teacher and distill_dataset is not None else train_dataset
        data = data(phase.name) if callable(data) else data
        subnets = phase.select_subnets(model).values()
        sizes = np.array([sum(subnet.neurons) for subnet in subnets]) / sum(model.full.neurons)
        if isinstance(config, GatesConfig):
            shown.append(f"{phase.name} {config.epochs:g} epochs")
            passes += min(len(data), config.max_rows) * sizes.sum() * _FORWARD
            continue
        settings = encoder_arguments(args, config, num_examples=len(data), metric=metric)
        shown.append(f"{phase.name} {describe_steps(settings, config, num_examples=len(data))}")
        trained = sizes.sum()
        if 0 < settings.sampled_subnets < len(sizes):  # the largest, the smallest, and others at random
            trained = sizes[0] + sizes[-1] + (settings.sampled_subnets - 2) * sizes[1:-1].mean()
        teacher = _FORWARD if phase.uses_teacher else 0.0
        batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        passes += settings.max_steps * batch * (trained + teacher)
    logger.info("phases: %s", ", ".join(shown))
    seconds = passes * _seconds_per_example(model, data, args.device)
    text = f"{seconds / 60:.0f} min" if 90 < seconds < 5400 else f"{seconds / 3600:.1f} h"
    logger.info("estimated time in all: %s", text if seconds > 90 else f"{seconds:.0f} s")


def _seconds_per_example(model: ElasticModel, dataset: Any, device: torch.device) -> float:
    """Seconds of a forward and a backward pass of the full network, for an example of about the mean length."""
    order = np.argsort(np.abs(dataset.lengths - dataset.lengths.mean()), kind="stable")
    batch = dataset.prepare_inputs(dataset.collate(order[:_TIMED_EXAMPLES].tolist()))
    pop_labels(batch)
    network: Any = model.network.to(device)  # type: ignore[arg-type]  # transformers' own `to` hides the types
    network.train()
    inputs, started = {name: tensor.to(device) for name, tensor in batch.items()}, 0.0
    for _ in range(2):  # the first one warms up
        started = time.monotonic()
        logits_of(network(**inputs)).float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
    network.zero_grad(set_to_none=True)
    return (time.monotonic() - started) / len(batch["input_ids"])
