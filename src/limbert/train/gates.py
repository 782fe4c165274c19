"""Training of width gates on a frozen encoder, whose outputs are computed once and cached.

The encoder runs without dropout, so one pass of each width over the training examples is all that is needed of it. The
cache is written in shards: a killed run loses one. Several processes share the passes, and all train the same gates.
"""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from limbert.core.config import GatesConfig, TaskType
from limbert.core.subnet import Subnet
from limbert.core.task_types import TASK_TYPE_SPECS
from limbert.data.tokenize import evaluation_batches
from limbert.errors import ConfigError, StorageError
from limbert.evaluation.evaluate import Progress, no_progress
from limbert.method.gate_targets import balanced_class_weights, gate_loss, is_correct, lowest_cost, narrowest_correct
from limbert.model.elastic import ElasticModel
from limbert.model.inference_mode import evaluation_mode
from limbert.model.shared_forward import SharedForward, run_shared_forward
from limbert.model.width_gates import WidthGates, gate_layer_indices
from limbert.train.data import Batch, pop_labels
from limbert.train.distributed import all_gather_object, rank, world_size
from limbert.train.subnet_trainer import step_seed
from limbert.train.trainer import ElasticTrainer

logger = logging.getLogger(__name__)

_BATCH_SIZE = 64  # examples per pass
_BATCHES_PER_SHARD = 32
_MAX_GATES = 4  # default number, if it divides the layers
_LOGS_PER_PHASE = 20


class GateFeatures(NamedTuple):
    """Outputs of several sub-networks without dropout, on the CPU."""

    logits: Tensor  # (examples, subnets, outputs)
    first_tokens: Tensor  # (examples, subnets, gates, hidden): the first token's state that each gate reads
    labels: Tensor  # (examples,) or (examples, classes)


_KEYS = GateFeatures._fields


class GateExamples(NamedTuple):
    """What gates read, and the choice that each should make."""

    first_tokens: Tensor  # (examples, widths, gates, hidden), where the layers below ran at each width
    targets: Tensor  # (examples,), the index of the width that each example should run at


def cached_features(
    trainer: ElasticTrainer,
    dataset: Any,
    *,
    subnets: Sequence[Subnet],
    layer_indices: Sequence[int],
    name: str,
    progress: Progress = no_progress,
) -> GateFeatures:
    """Collective: run every example through every sub-network, or read the shards that an earlier call wrote.

    First tokens' states are kept after ``layer_indices`` layers; 0 is the embedding output. The shards are in the
    trainer's output folder, where their name must mean one model and dataset.
    """
    batches = evaluation_batches(dataset.lengths, batch_size=_BATCH_SIZE)
    starts = range(0, len(batches), _BATCHES_PER_SHARD)
    paths = [trainer.args.path / f"{name}-shard-{number}.safetensors" for number in range(len(starts))]

    def compute(start: int) -> dict[str, Tensor]:
        parts = []
        for number in range(start, min(start + _BATCHES_PER_SHARD, len(batches))):
            progress(f"frozen features, {name}", number, len(batches))
            batch = dataset.prepare_inputs(dataset.collate(batches[number]))
            parts.append(_features_of_batch(trainer, batch, subnets, layer_indices))
        return {key: torch.cat(tensors) for key, tensors in zip(_KEYS, zip(*parts, strict=True), strict=True)}

    trainer.args.path.mkdir(parents=True, exist_ok=True)
    for start, path in [*zip(starts, paths, strict=True)][rank() :: world_size()]:
        if _read_shard(path) is None:
            _write_shard(path, compute(start))
    all_gather_object(None)  # all shards are written; one that is not here is on another machine's disk
    shards = [_read_shard(path) or compute(start) for start, path in zip(starts, paths, strict=True)]
    back = torch.tensor([index for batch in batches for index in batch]).argsort()
    return GateFeatures(*(torch.cat([shard[key] for shard in shards])[back] for key in _KEYS))


def _features_of_batch(
    trainer: ElasticTrainer, batch: Batch, subnets: Sequence[Subnet], layer_indices: Sequence[int]
) -> GateFeatures:
    model, labels = trainer.elastic, pop_labels(batch)
    inputs = {key: tensor.to(model.network.device) for key, tensor in batch.items()}
    logits, first_tokens = [], []
    with evaluation_mode(model.network), trainer.accelerator.autocast():
        for subnet in subnets:
            with model.at(subnet):
                shared = SharedForward((subnet,))
                outputs = run_shared_forward(model, shared, inputs, output_hidden_states=True)[subnet]
            logits.append(outputs.logits.float().cpu())
            states = [outputs.hidden_states[index][:, 0].float() for index in layer_indices]  # (batch, hidden)
            first_tokens.append(torch.stack(states, dim=1).cpu())
    assert labels is not None
    return GateFeatures(torch.stack(logits, dim=1), torch.stack(first_tokens, dim=1), labels)


def _read_shard(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _write_shard(path: Path, shard: dict[str, Tensor]) -> None:
    fresh = path.with_suffix(".new")
    try:
        save_file(shard, fresh)
        fresh.rename(path)
    except (OSError, SafetensorError) as error:
        fresh.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error}") from error


def check_gates(model: ElasticModel, config: GatesConfig) -> None:
    """ConfigError for a head with one output per token, gates that do not divide the layers, or a single width."""
    network = type(model.network).__name__
    if not network.endswith(TASK_TYPE_SPECS["classification"].class_suffix):
        raise ConfigError(
            f"phase gates trains gates that choose widths for a text with one output; {network} has an output for "
            "every token: leave the phase out (--phases finetune,width,depth)"
        )
    gate_layer_indices(_gate_count(config, model), model.shape.layers)
    _subnets_by_width(model)


def train_gates(trainer: ElasticTrainer, config: GatesConfig, *, progress: Progress = no_progress) -> None:
    """Train the gates of a trainer's model on its data; its callbacks get the logs. The encoder stays as it is."""
    model, args = trainer.elastic, trainer.args
    subnets, count = _subnets_by_width(model), _gate_count(config, model)

    def make(dataset: Any, name: str) -> GateExamples:
        options: dict[str, Any] = {"subnets": [*subnets.values()], "progress": progress}
        layer_indices = gate_layer_indices(count, model.shape.layers)
        name = f"{args.phase}-{name}"
        features = cached_features(trainer, dataset, layer_indices=layer_indices, name=name, **options)
        targets = gate_targets(features, config, task_type=trainer.task_type, widths=[*subnets])
        return GateExamples(features.first_tokens, targets)

    train = make(_subsample(trainer.train_dataset, config.max_rows, seed=args.seed), "train")
    validation = make(trainer.validation_dataset(), "validation")
    _log_targets(train, [*subnets])
    torch.manual_seed(step_seed(args.seed, args.phase, 0))
    gates = WidthGates(num_gates=count, hidden_size=train.first_tokens.shape[-1], widths=tuple(subnets))
    fit_gates(trainer, gates.to(model.network.device), config, train, validation, progress=progress)
    model.gates = gates


def fit_gates(
    trainer: ElasticTrainer,
    gates: WidthGates,
    config: GatesConfig,
    train: GateExamples,
    validation: GateExamples,
    *,
    progress: Progress = no_progress,
) -> None:
    """Train gates in place; they end with the weights of the lowest validation loss. The trainer logs the losses."""
    examples, num_widths, device = len(train.targets), len(gates.widths), next(gates.parameters()).device
    state, seed, phase = trainer.state, trainer.args.seed, trainer.args.phase
    steps_per_epoch = math.ceil(examples / config.batch_size)
    state.max_steps = math.ceil(config.epochs * steps_per_epoch)
    optimizer = torch.optim.AdamW(gates.parameters(), lr=config.learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, state.max_steps)
    weights = balanced_class_weights(train.targets, num_widths).to(device)
    callbacks, control = trainer.callback_handler, trainer.control
    callbacks.on_train_begin(trainer.args, state, control)
    trainer.speed_since = time.monotonic()
    lowest, best, losses = math.inf, {}, list[Tensor]()
    for step in range(state.max_steps):
        epoch, number = divmod(step, steps_per_epoch)
        if number == 0:
            progress(phase, step, state.max_steps)
            order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(examples))
        indices = order[number * config.batch_size : (number + 1) * config.batch_size]
        generator = torch.Generator().manual_seed(step_seed(seed, f"{phase} step", step))
        low, high = config.end_temperature, config.start_temperature
        temperature = high + step / max(1, state.max_steps - 1) * (low - high)
        below = torch.randint(num_widths, (len(indices),), generator=generator)  # the width of the layers below
        logits = gates(train.first_tokens[indices, below].to(device))
        targets = train.targets[indices].to(device)
        loss = gate_loss(logits, targets, weights=weights, temperature=temperature, generator=generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        state.global_step, state.epoch = step + 1, (step + 1) / steps_per_epoch
        trainer.examples_seen += len(indices)
        if step + 1 == state.max_steps or (step + 1) % max(1, state.max_steps // _LOGS_PER_PHASE) == 0:
            trainer.log({"loss": torch.stack(losses).mean().item(), "learning_rate": rate})
            losses.clear()
        if step + 1 == state.max_steps or number + 1 == steps_per_epoch:
            trainer.log({"eval_loss": (held_out := validation_loss(gates, validation))})
            if held_out < lowest:
                lowest, best = held_out, {name: tensor.clone() for name, tensor in gates.state_dict().items()}
    callbacks.on_train_end(trainer.args, state, control)
    gates.load_state_dict(best)
    gates.requires_grad_(False).eval()
    logger.info("gates: validation loss %.3f (chance: %.3f)", lowest, math.log(num_widths))


@torch.no_grad()
def validation_loss(gates: WidthGates, examples: GateExamples) -> float:
    """Class-balanced negative log-likelihood without noise, mean over all widths that the layers below may have."""
    device = next(gates.parameters()).device
    weights, targets = balanced_class_weights(examples.targets, len(gates.widths)).to(device), examples.targets
    losses = [
        gate_loss(gates(states.to(device)), targets.to(device), weights=weights, temperature=1.0, generator=None)
        for states in examples.first_tokens.unbind(dim=1)
    ]
    return torch.stack(losses).mean().item()


def _gate_count(config: GatesConfig, model: ElasticModel) -> int:
    layers = model.shape.layers
    return config.count or max(number for number in range(1, _MAX_GATES + 1) if layers % number == 0)


def _subnets_by_width(model: ElasticModel) -> dict[float, Subnet]:
    """The full-depth sub-networks of the model's space by width, narrowest first."""
    widths = sorted({item.width for item in model.space.named_subnets(model.shape)})
    if len(widths) < 2:
        raise ConfigError(f"gates choose among widths, and this model has {len(widths)}; train it with two or more")
    return {width: Subnet.uniform(model.shape, width=width) for width in widths}


def _subsample(dataset: Any, max_examples: int, *, seed: int) -> Any:
    if len(dataset) <= max_examples:
        return dataset
    return dataset.select(np.sort(np.random.default_rng(seed).choice(len(dataset), size=max_examples, replace=False)))


def gate_targets(
    features: GateFeatures, config: GatesConfig, *, task_type: TaskType, widths: Sequence[float]
) -> Tensor:
    """The index of the width that each example should run at, ``(examples,)``."""
    logits, labels = features.logits, features.labels
    full = logits[:, -1]
    truth = labels
    if config.target == "agreement":
        of_several = (full > 0).float() if task_type == "multi-label" else full.argmax(dim=-1)
        truth = full[:, 0] if task_type == "regression" else of_several
    if config.cost is None:
        tolerance = config.tolerance * float(labels.float().std()) if task_type == "regression" else 0.0
        return narrowest_correct(is_correct(logits, truth, task_type=task_type, tolerance=tolerance))
    if config.target == "agreement" and task_type != "regression":
        truth = full.softmax(dim=-1) if task_type == "classification" else full.sigmoid()
    return lowest_cost(logits, truth, task_type=task_type, cost=config.cost, relative_flops=torch.tensor(widths))


def _log_targets(examples: GateExamples, widths: Sequence[float]) -> None:
    """Log how often each width is the target: gates cannot learn a choice that hardly occurs."""
    counts = torch.bincount(examples.targets, minlength=len(widths)).tolist()
    fractions = [count / sum(counts) for count in counts]
    parts = (f"{width:g} for {100 * part:.1f} %" for width, part in zip(widths, fractions, strict=True))
    logger.info("target widths: %s", ", ".join(parts))
    if max(fractions) > 0.98:
        logger.warning("nearly all examples have the same target width; set --gate-cost to get more varied targets")
