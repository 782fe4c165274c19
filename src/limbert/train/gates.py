"""The phase that trains width gates on a frozen encoder.

The encoder is frozen and runs without dropout, so one static pass a width over the training rows is all that it is
needed for; what the gates read and aim at is kept, and the epochs run on that alone, in seconds. Several processes
share the static passes; the main one alone trains.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbert.core.config import GatesConfig, Precision, TaskType
from limbert.core.space import parse_width_depth
from limbert.core.subnet import Subnet
from limbert.core.task_types import TASK_TYPE_SPECS
from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.errors import ConfigError, StorageError, TrainingInterrupted
from limbert.method.gate_targets import balanced_class_weights, gate_loss, is_correct, lowest_cost, narrowest_correct
from limbert.model.elastic import ElasticModel
from limbert.model.shared_forward import SharedForward, run_shared_forward
from limbert.model.width_gates import WidthGates, gate_layer_indices
from limbert.train.context import Phase, TaskPhaseSetup, step_seed
from limbert.train.distributed import SINGLE_PROCESS, DistributedContext
from limbert.train.progress import TrainingProgress

_BATCH_SIZE = 64  # examples a pass
_BATCHES_PER_SHARD = 32  # batches a file


@dataclass(frozen=True)
class CachedFeatures:
    """Answers of several sub-networks without dropout, on the CPU.

    Attributes:
        logits: ``(examples, subnets, outputs)``.
        first_tokens: ``(examples, subnets, places, hidden)``, the first token's state at each place.
    """

    logits: Tensor
    first_tokens: Tensor


@dataclass(frozen=True)
class FeatureCache:
    """Where finished parts are kept, so that an interrupted computation goes on.

    Attributes:
        folder: of the running phase.
        name: of the parts, ``NAME-part-3.safetensors``; the same name must mean the same model and examples.
        should_stop: asked after every batch.
        progress: called with batches done and in all.
        processes: those that compute missing parts together; the main one keeps them.
    """

    cache_dir: Path
    name: str
    should_stop: Callable[[], bool] = lambda: False
    progress: Callable[[int, int], None] = lambda done, total: None
    distributed: DistributedContext = SINGLE_PROCESS


def cached_features(
    model: ElasticModel,
    examples: TokenizedExamples,
    *,
    subnets: Sequence[Subnet],
    layer_indices: Sequence[int],
    precision: Precision,
    cache: FeatureCache,
) -> CachedFeatures | None:
    """Run every example through every sub-network, one pass each.

    Args:
        model: runs without dropout; its mode is restored.
        examples: in any order.
        subnets: each with as many layers as the places ask for.
        places: after how many layers the first token's state is kept; 0 is the embedding output.
        precision: ``"bf16"`` runs under autocast.
        keeping: where parts are kept and looked for.

    Returns:
        The answers in the main process; None in the others.

    Raises:
        TrainingInterrupted: when asked to stop; finished parts are kept.
        StorageError: if a part cannot be written.
    """
    processes = cache.distributed
    batches = evaluation_batches(examples.lengths, batch_size=_BATCH_SIZE)
    parts = []
    for start in range(0, len(batches), _BATCHES_PER_SHARD):
        path = cache.cache_dir / f"{cache.name}-part-{start // _BATCHES_PER_SHARD}.safetensors"
        part = _read_shard(path) if processes.is_main_process else None
        if not processes.all_gather_object(part is not None)[0]:
            numbers = range(start, min(start + _BATCHES_PER_SHARD, len(batches)))
            done = {}
            for number in numbers[processes.rank :: processes.world_size]:
                cache.progress(number, len(batches))
                if cache.should_stop():
                    break
                done[number] = _compute_batch(
                    model, examples, batches[number], subnets=subnets, layer_indices=layer_indices, precision=precision
                )
            found = {
                number: batch for process in processes.all_gather_object(done) for number, batch in process.items()
            }
            if len(found) < len(numbers):
                raise TrainingInterrupted(
                    f"stopped in {cache.name} after {start} of {len(batches)} batches of static passes"
                )
            part = {name: torch.cat([found[number][name] for number in numbers]) for name in found[start]}
            if processes.is_main_process:
                _write_shard(path, part)
        if part is not None and processes.is_main_process:
            parts.append(part)
    if not processes.is_main_process:
        return None
    order = torch.tensor([index for batch in batches for index in batch])
    back = order.argsort()
    return CachedFeatures(**{name: torch.cat([part[name] for part in parts])[back] for name in parts[0]})


@torch.no_grad()
def _compute_batch(
    model: ElasticModel,
    examples: TokenizedExamples,
    indices: Sequence[int],
    *,
    subnets: Sequence[Subnet],
    layer_indices: Sequence[int],
    precision: Precision,
) -> dict[str, Tensor]:
    network, device = model.network, model.network.device
    inputs = {name: tensor.to(device) for name, tensor in examples.collate(indices).items() if name != "labels"}
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    training = network.training
    network.eval()
    logits, first_tokens = [], []
    try:
        for subnet in subnets:
            with model.at(subnet), autocast:
                answer = run_shared_forward(model, SharedForward((subnet,)), inputs, output_hidden_states=True)[subnet]
            logits.append(answer.logits.float())
            first_tokens.append(
                torch.stack([answer.hidden_states[place][:, 0].float() for place in layer_indices], dim=1)
            )
    finally:
        network.train(training)
    return {"logits": torch.stack(logits, dim=1).cpu(), "first_tokens": torch.stack(first_tokens, dim=1).cpu()}


def _read_shard(path: Path) -> dict[str, Tensor] | None:
    """A finished part; None where there is none or it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _write_shard(path: Path, shard: dict[str, Tensor]) -> None:
    """Whole or not at all."""
    fresh = path.with_suffix(".new")
    try:
        save_file(shard, fresh)
        fresh.rename(path)
    except (OSError, SafetensorError) as error:
        fresh.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error}") from error


DEFAULT_MAX_GATES = 4
LOGS_PER_PHASE = 20  # in the whole phase


@dataclass(frozen=True)
class GateDataset:
    """What gates learn from: what they read, and where they should point.

    Attributes:
        first_tokens: ``(examples, widths, gates, hidden)``: what each gate reads where the layers below it ran at
            each width.
        targets: ``(examples,)``, the index of the width that each example should get.
    """

    first_tokens: Tensor
    targets: Tensor


@dataclass(frozen=True)
class GatePhase(Phase):
    """Trains ``model.gates``; the encoder stays as it is."""

    @property
    def config_class(self) -> type[GatesConfig]:
        return GatesConfig

    def check(self, model: ElasticModel, config: GatesConfig) -> None:
        network = type(model.network).__name__
        if not network.endswith(TASK_TYPE_SPECS["classification"].class_suffix):
            raise ConfigError(
                f"phase gates trains gates that give each text a width for its one answer; {network} "
                "answers at every token: leave the phase out (--phases finetune,width,depth)"
            )
        gate_layer_indices(_gate_count(config, model), model.shape.layers)
        _subnets_by_width(model)

    def train(self, setup: TaskPhaseSetup, config: GatesConfig) -> None:
        model = setup.model
        count = _gate_count(config, model)
        places = gate_layer_indices(count, model.shape.layers)
        subnets = _subnets_by_width(model)
        train = _subsample(setup.train_dataset, config.max_rows, seed=setup.context.seed)
        lessons, held_out = (
            _gate_dataset(setup, config, examples, subnets=subnets, layer_indices=places, split=part)
            for examples, part in ((train, "train"), (setup.eval_dataset, "validation"))
        )

        def learn() -> WidthGates:
            assert lessons is not None
            assert held_out is not None
            _report_target_counts(setup, lessons, [*subnets])
            torch.manual_seed(step_seed(setup.context.seed, setup.name, 0))
            gates = WidthGates(num_gates=count, hidden_size=lessons.first_tokens.shape[-1], widths=tuple(subnets))
            return _train_gates(gates.to(model.network.device), lessons, held_out, setup=setup, config=config).cpu()

        model.gates = _distributed_context(setup).run_on_main(learn).to(model.network.device)


def _distributed_context(setup: TaskPhaseSetup) -> DistributedContext:
    return DistributedContext.from_accelerator(setup.context.accelerator)


def _gate_count(config: GatesConfig, model: ElasticModel) -> int:
    layers = model.shape.layers
    return config.count or max(n for n in range(1, DEFAULT_MAX_GATES + 1) if layers % n == 0)


def _subnets_by_width(model: ElasticModel) -> dict[float, Subnet]:
    """The full-depth sub-networks of the model's space by width, narrowest first."""
    found = {parse_width_depth(name)[0]: subnet for name, subnet in model.subnets().items()}
    deep = {width: Subnet.uniform(model.shape, width=width) for width in sorted(found)}
    if len(deep) < 2:
        raise ConfigError(f"gates choose among widths, and this model has {len(deep)}; train it with two or more")
    return deep


def _subsample(examples: TokenizedExamples, max_examples: int, *, seed: int) -> TokenizedExamples:
    if len(examples) <= max_examples:
        return examples
    chosen = np.random.default_rng(seed).choice(len(examples), size=max_examples, replace=False)
    return examples.select(np.sort(chosen))


def _gate_dataset(
    setup: TaskPhaseSetup,
    config: GatesConfig,
    examples: TokenizedExamples,
    *,
    subnets: dict[float, Subnet],
    layer_indices: list[int],
    split: str,
) -> GateDataset | None:
    """What gates learn from one part of the data, in the main process, where they learn; None in the others."""
    around = setup.context
    answers = cached_features(
        setup.model,
        examples,
        subnets=list(subnets.values()),
        layer_indices=layer_indices,
        precision=setup.precision,
        cache=FeatureCache(
            cache_dir=around.run_dir.path,
            name=f"{setup.name}-{split}",
            should_stop=around.should_stop,
            progress=lambda done, total: around.callback.on_prepare(setup.name, f"static passes, {split}", done, total),
            distributed=_distributed_context(setup),
        ),
    )
    if answers is None:
        return None
    assert examples.labels is not None
    targets = _gate_targets(answers, examples.labels, setup=setup, config=config, widths=[*subnets])
    return GateDataset(answers.first_tokens, targets)


def _gate_targets(
    features: CachedFeatures, labels: Tensor, *, setup: TaskPhaseSetup, config: GatesConfig, widths: list[float]
) -> Tensor:
    """The index of the width that each example should get."""
    kind, logits = setup.task.task_type, features.logits
    full = logits[:, -1]  # the answers at full width
    truth = labels if config.target == "label" else _predicted_labels(full, kind)
    if config.cost is None:
        tolerance = config.tolerance * float(labels.float().std()) if kind == "regression" else 0.0
        return narrowest_correct(is_correct(logits, truth, task_type=kind, tolerance=tolerance))
    if config.target == "agreement" and kind != "regression":
        truth = full.softmax(dim=-1) if kind == "classification" else full.sigmoid()
    return lowest_cost(logits, truth, task_type=kind, cost=config.cost, relative_flops=torch.tensor(widths))


def _predicted_labels(logits: Tensor, task_type: TaskType) -> Tensor:
    """What answers ``(examples, outputs)`` say, as labels say it."""
    if task_type == "regression":
        return logits[:, 0]
    return (logits > 0).float() if task_type == "multi-label" else logits.argmax(dim=-1)


def _report_target_counts(setup: TaskPhaseSetup, dataset: GateDataset, widths: list[float]) -> None:
    """Say how the targets fall, since gates cannot learn a choice that hardly occurs."""
    counts = torch.bincount(dataset.targets, minlength=len(widths)).tolist()
    shares = {width: count / sum(counts) for width, count in zip(widths, counts, strict=True)}
    setup.context.callback.on_message(
        "widths aimed at: " + ", ".join(f"{width:g} for {100 * share:.1f} %" for width, share in shares.items())
    )
    if max(shares.values()) > 0.98:
        setup.context.callback.on_message(
            "nearly all rows aim at one width: a gate cost tells them apart (--gate-cost)"
        )


def _train_gates(
    gates: WidthGates,
    train_dataset: GateDataset,
    eval_dataset: GateDataset,
    *,
    setup: TaskPhaseSetup,
    config: GatesConfig,
) -> WidthGates:
    """Train the gates; those with the least loss on the held-out lessons are returned."""
    around, device = setup.context, setup.model.network.device
    per_epoch = math.ceil(len(train_dataset.targets) / config.batch_size)
    steps = math.ceil(config.epochs * per_epoch)
    choices = len(gates.widths)
    weights = balanced_class_weights(train_dataset.targets, choices).to(device)
    optimizer = torch.optim.AdamW(gates.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True)
    around.run_dir.truncate_log(setup.name, -1)
    around.callback.on_phase_begin(setup.name, step=0, steps=steps)
    best_loss, best = math.inf, gates.state_dict()
    report_every, reported = max(1, steps // LOGS_PER_PHASE), time.monotonic()
    for step, indices in enumerate(_batch_indices(len(train_dataset.targets), config, seed=around.seed, steps=steps)):
        generator = torch.Generator().manual_seed(step_seed(around.seed, setup.name + " step", step))
        done = step / max(1, steps - 1)
        temperature = config.start_temperature + done * (config.end_temperature - config.start_temperature)
        rate = config.learning_rate * (1 - step / steps)
        paths = torch.randint(train_dataset.first_tokens.shape[1], (len(indices),), generator=generator)
        logits = gates(train_dataset.first_tokens[indices, paths].to(device))
        targets = train_dataset.targets[indices].to(device)
        loss = gate_loss(logits, targets, weights=weights, temperature=temperature, generator=generator)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % report_every == 0 or step + 1 == steps:
            now = time.monotonic()
            speed = report_every * config.batch_size / max(now - reported, 1e-9)
            reported = now
            values = {"loss": loss.item(), "learning_rate": rate, "examples_per_second": speed}
            around.run_dir.append_log({"phase": setup.name, "step": step + 1, **values})
            around.callback.on_log(TrainingProgress(setup.name, step + 1, steps, **values))
        if (step + 1) % per_epoch == 0 or step + 1 == steps:
            held_loss = _validation_loss(gates, eval_dataset, choices)
            around.run_dir.append_log({"phase": setup.name, "step": step + 1, "validation": -held_loss})
            if held_loss < best_loss:
                best_loss, best = held_loss, {name: tensor.clone() for name, tensor in gates.state_dict().items()}
            if around.should_stop() and step + 1 < steps:
                raise TrainingInterrupted(f"stopped in phase {setup.name}; its static passes are kept")
    gates.load_state_dict(best)
    around.callback.on_message(
        f"gates: loss on the validation slice {best_loss:.3f} (guessing: {math.log(choices):.3f})"
    )
    return gates.requires_grad_(False).eval()


def _batch_indices(num_examples: int, config: GatesConfig, *, seed: int, steps: int) -> Iterator[Tensor]:
    """Indices of each step's rows, epoch after epoch."""
    number, epoch = 0, 0
    while number < steps:
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(num_examples))
        for indices in order.split(config.batch_size)[: steps - number]:
            yield indices
            number += 1
        epoch += 1


@torch.no_grad()
def _validation_loss(gates: WidthGates, dataset: GateDataset, num_widths: int) -> float:
    """Class-balanced negative log-likelihood, without noise, over all widths that the layers below may have run at."""
    device = next(gates.parameters()).device
    weights = balanced_class_weights(dataset.targets, num_widths).to(device)
    losses = [
        gate_loss(
            gates(first_tokens.to(device)), dataset.targets.to(device), weights=weights, temperature=1.0, generator=None
        )
        for first_tokens in dataset.first_tokens.unbind(dim=1)
    ]
    return torch.stack(losses).mean().item()
