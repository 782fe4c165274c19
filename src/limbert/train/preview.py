"""What a run will do, said before it starts: the steps of every phase, and an estimate of the time of all."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from limbert.core.config import GatesConfig
from limbert.core.subnet import Subnet
from limbert.model.elastic import ElasticModel
from limbert.model.outputs import logits_of
from limbert.train.arguments import ElasticTrainingArguments
from limbert.train.data import IndexDataset, pop_labels
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
    eval_dataset: Any,
    metric: str,
    distill_dataset: Any = None,
    **_: Any,
) -> None:
    """Log steps and epochs of every phase, and the time of all, estimated from that of a few examples at full size.

    Args: as of `train_phases`.
    """
    shown, full_passes = [], 0.0  # forward and backward passes of one example through the full network
    for phase, config in phases:
        data = distill_dataset if phase.uses_teacher and distill_dataset is not None else train_dataset
        data = data(phase.name) if callable(data) else data
        subnets = [*phase.select_subnets(model).values()]
        sizes = np.array([_relative_size(model, subnet) for subnet in subnets])
        if isinstance(config, GatesConfig):
            shown.append(f"{phase.name} {config.epochs:g} epochs")
            full_passes += min(len(data), config.max_rows) * sizes.sum() * _FORWARD
            continue
        settings = encoder_arguments(args, config, num_examples=len(data), metric=metric)
        shown.append(f"{phase.name} {describe_steps(settings, config, num_examples=len(data))}")
        count = settings.sampled_subnets or len(sizes)
        trained = sizes.sum()
        if count < len(sizes):  # the largest, the smallest, and others at random
            trained = sizes[0] + sizes[-1] + (count - 2) * sizes[1:-1].mean()
        if phase.uses_teacher:
            trained += _FORWARD if settings.teacher_width == "full" else sizes[sizes > 0].max() * 2 * _FORWARD
        batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        evaluations = max(1.0, settings.max_steps / max(1.0, float(settings.eval_steps or 1)))
        full_passes += settings.max_steps * batch * trained
        full_passes += evaluations * len(eval_dataset) * sizes.sum() * _FORWARD / args.world_size
    logger.info("phases: %s", ", ".join(shown))
    first = train_dataset(phases[0][0].name) if callable(train_dataset) else train_dataset
    seconds = full_passes * _seconds_per_example(model, first, args.device)
    logger.info("estimated time in all: %s", _duration(seconds))


def _relative_size(model: ElasticModel, subnet: Subnet) -> float:
    return sum(subnet.neurons) / (model.shape.neurons * model.shape.layers)


def _seconds_per_example(model: ElasticModel, dataset: Any, device: torch.device) -> float:
    """Seconds of a forward and a backward pass of the full network, for an example of about the mean length."""
    index = dataset if isinstance(dataset, IndexDataset) else IndexDataset(dataset)
    distance = np.abs(index.lengths - index.lengths.mean())
    batch = index.prepare_inputs(index.collate(np.argsort(distance, kind="stable")[:_TIMED_EXAMPLES].tolist()))
    pop_labels(batch)
    network: Any = model.network.to(device)  # type: ignore[arg-type]  # transformers' own `to` hides the types
    network.train()
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    started = 0.0
    for _ in range(2):  # the first one warms up
        started = time.monotonic()
        logits_of(network(**inputs)).float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
    network.zero_grad(set_to_none=True)
    return (time.monotonic() - started) / len(batch["input_ids"])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
