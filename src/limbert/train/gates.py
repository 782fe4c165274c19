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

from limbert.core.config import GatesConfig, Precision, TaskKind
from limbert.core.space import parse_point
from limbert.core.subnet import Subnet
from limbert.core.task_types import KINDS
from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.errors import ConfigError, Stopped, StorageError
from limbert.method.gate_targets import cheapest, class_weights, gate_loss, is_right, narrowest_right
from limbert.model.elastic import ElasticModel
from limbert.model.shared_forward import SharedPass, run_pass
from limbert.model.width_gates import WidthGates, gated_layers
from limbert.train.context import Phase, PhaseWork, step_seed
from limbert.train.distributed import ALONE, Processes
from limbert.train.progress import Progress

_BATCH = 64  # examples a pass
_PART = 32  # batches a file


@dataclass(frozen=True)
class StaticAnswers:
    """Answers of several sub-networks without dropout, on the CPU.

    Attributes:
        logits: ``(examples, subnets, outputs)``.
        first_tokens: ``(examples, subnets, places, hidden)``, the first token's state at each place.
    """

    logits: Tensor
    first_tokens: Tensor


@dataclass(frozen=True)
class Keeping:
    """Where finished parts are kept, so that an interrupted computation goes on.

    Attributes:
        folder: of the running phase.
        name: of the parts, ``NAME-part-3.safetensors``; the same name must mean the same model and examples.
        should_stop: asked after every batch.
        progress: called with batches done and in all.
        processes: those that compute missing parts together; the main one keeps them.
    """

    folder: Path
    name: str
    should_stop: Callable[[], bool] = lambda: False
    progress: Callable[[int, int], None] = lambda done, total: None
    processes: Processes = ALONE


def static_answers(
    model: ElasticModel,
    examples: TokenizedExamples,
    *,
    subnets: Sequence[Subnet],
    places: Sequence[int],
    precision: Precision,
    keeping: Keeping,
) -> StaticAnswers | None:
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
        Stopped: when asked to stop; finished parts are kept.
        StorageError: if a part cannot be written.
    """
    processes = keeping.processes
    batches = evaluation_batches(examples.lengths, batch_size=_BATCH)
    parts = []
    for start in range(0, len(batches), _PART):
        path = keeping.folder / f"{keeping.name}-part-{start // _PART}.safetensors"
        part = _read_part(path) if processes.is_main else None
        if not processes.gather(part is not None)[0]:
            numbers = range(start, min(start + _PART, len(batches)))
            done = {}
            for number in numbers[processes.rank :: processes.count]:
                keeping.progress(number, len(batches))
                if keeping.should_stop():
                    break
                done[number] = _answer_batch(
                    model, examples, batches[number], subnets=subnets, places=places, precision=precision
                )
            found = {number: batch for process in processes.gather(done) for number, batch in process.items()}
            if len(found) < len(numbers):
                raise Stopped(f"stopped in {keeping.name} after {start} of {len(batches)} batches of static passes")
            part = {name: torch.cat([found[number][name] for number in numbers]) for name in found[start]}
            if processes.is_main:
                _write_part(path, part)
        if part is not None and processes.is_main:
            parts.append(part)
    if not processes.is_main:
        return None
    order = torch.tensor([index for batch in batches for index in batch])
    back = order.argsort()
    return StaticAnswers(**{name: torch.cat([part[name] for part in parts])[back] for name in parts[0]})


@torch.no_grad()
def _answer_batch(
    model: ElasticModel,
    examples: TokenizedExamples,
    indices: Sequence[int],
    *,
    subnets: Sequence[Subnet],
    places: Sequence[int],
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
                answer = run_pass(model, SharedPass((subnet,)), inputs, keep_states=True)[subnet]
            logits.append(answer.logits.float())
            first_tokens.append(torch.stack([answer.states[place][:, 0].float() for place in places], dim=1))
    finally:
        network.train(training)
    return {"logits": torch.stack(logits, dim=1).cpu(), "first_tokens": torch.stack(first_tokens, dim=1).cpu()}


def _read_part(path: Path) -> dict[str, Tensor] | None:
    """A finished part; None where there is none or it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _write_part(path: Path, part: dict[str, Tensor]) -> None:
    """Whole or not at all."""
    fresh = path.with_suffix(".new")
    try:
        save_file(part, fresh)
        fresh.rename(path)
    except (OSError, SafetensorError) as error:
        fresh.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error}") from error


DEFAULT_MOST_GATES = 4
REPORTS = 20  # in the whole phase


@dataclass(frozen=True)
class Lessons:
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
        if not network.endswith(KINDS["classification"].network):
            raise ConfigError(
                f"phase gates trains gates that give each text a width for its one answer; {network} "
                "answers at every token: leave the phase out (--phases finetune,width,depth)"
            )
        gated_layers(_count(config, model), model.shape.layers)
        _widths(model)

    def train(self, work: PhaseWork, config: GatesConfig) -> None:
        model = work.model
        count = _count(config, model)
        places = gated_layers(count, model.shape.layers)
        subnets = _widths(model)
        train = _some_of(work.train, config.max_rows, seed=work.surroundings.seed)
        lessons, held_out = (
            _lessons(work, config, examples, subnets=subnets, places=places, part=part)
            for examples, part in ((train, "train"), (work.validation, "validation"))
        )

        def learn() -> WidthGates:
            assert lessons is not None
            assert held_out is not None
            _tell_targets(work, lessons, [*subnets])
            torch.manual_seed(step_seed(work.surroundings.seed, work.name, 0))
            gates = WidthGates(count=count, hidden=lessons.first_tokens.shape[-1], widths=tuple(subnets))
            return _fit(gates.to(model.network.device), lessons, held_out, work=work, config=config).cpu()

        model.gates = _processes(work).from_main(learn).to(model.network.device)


def _processes(work: PhaseWork) -> Processes:
    return Processes.of(work.surroundings.accelerator)


def _count(config: GatesConfig, model: ElasticModel) -> int:
    layers = model.shape.layers
    return config.count or max(n for n in range(1, DEFAULT_MOST_GATES + 1) if layers % n == 0)


def _widths(model: ElasticModel) -> dict[float, Subnet]:
    """The full-depth sub-networks of the model's space by width, narrowest first."""
    found = {parse_point(name)[0]: subnet for name, subnet in model.subnets().items()}
    deep = {width: Subnet.uniform(model.shape, width=width) for width in sorted(found)}
    if len(deep) < 2:
        raise ConfigError(f"gates choose among widths, and this model has {len(deep)}; train it with two or more")
    return deep


def _some_of(examples: TokenizedExamples, most: int, *, seed: int) -> TokenizedExamples:
    if len(examples) <= most:
        return examples
    chosen = np.random.default_rng(seed).choice(len(examples), size=most, replace=False)
    return examples.select(np.sort(chosen))


def _lessons(
    work: PhaseWork,
    config: GatesConfig,
    examples: TokenizedExamples,
    *,
    subnets: dict[float, Subnet],
    places: list[int],
    part: str,
) -> Lessons | None:
    """What gates learn from one part of the data, in the main process, where they learn; None in the others."""
    around = work.surroundings
    answers = static_answers(
        work.model,
        examples,
        subnets=list(subnets.values()),
        places=places,
        precision=work.precision,
        keeping=Keeping(
            folder=around.workspace.folder,
            name=f"{work.name}-{part}",
            should_stop=around.should_stop,
            progress=lambda done, total: around.monitor.preparing(work.name, f"static passes, {part}", done, total),
            processes=_processes(work),
        ),
    )
    if answers is None:
        return None
    assert examples.labels is not None
    targets = _targets(answers, examples.labels, work=work, config=config, widths=[*subnets])
    return Lessons(answers.first_tokens, targets)


def _targets(
    answers: StaticAnswers, labels: Tensor, *, work: PhaseWork, config: GatesConfig, widths: list[float]
) -> Tensor:
    """The index of the width that each example should get."""
    kind, logits = work.task.kind, answers.logits
    full = logits[:, -1]  # the answers at full width
    truth = labels if config.target == "label" else _as_labels(full, kind)
    if config.cost is None:
        tolerance = config.tolerance * float(labels.float().std()) if kind == "regression" else 0.0
        return narrowest_right(is_right(logits, truth, kind=kind, tolerance=tolerance))
    if config.target == "agreement" and kind != "regression":
        truth = full.softmax(dim=-1) if kind == "classification" else full.sigmoid()
    return cheapest(logits, truth, kind=kind, cost=config.cost, shares=torch.tensor(widths))


def _as_labels(logits: Tensor, kind: TaskKind) -> Tensor:
    """What answers ``(examples, outputs)`` say, as labels say it."""
    if kind == "regression":
        return logits[:, 0]
    return (logits > 0).float() if kind == "multi-label" else logits.argmax(dim=-1)


def _tell_targets(work: PhaseWork, lessons: Lessons, widths: list[float]) -> None:
    """Say how the targets fall, since gates cannot learn a choice that hardly occurs."""
    counts = torch.bincount(lessons.targets, minlength=len(widths)).tolist()
    shares = {width: count / sum(counts) for width, count in zip(widths, counts, strict=True)}
    work.surroundings.monitor.note(
        "widths aimed at: " + ", ".join(f"{width:g} for {100 * share:.1f} %" for width, share in shares.items())
    )
    if max(shares.values()) > 0.98:
        work.surroundings.monitor.note("nearly all rows aim at one width: a gate cost tells them apart (--gate-cost)")


def _fit(gates: WidthGates, lessons: Lessons, held_out: Lessons, *, work: PhaseWork, config: GatesConfig) -> WidthGates:
    """Train the gates; those with the least loss on the held-out lessons are returned."""
    around, device = work.surroundings, work.model.network.device
    per_epoch = math.ceil(len(lessons.targets) / config.batch_size)
    steps = math.ceil(config.epochs * per_epoch)
    choices = len(gates.widths)
    weights = class_weights(lessons.targets, choices).to(device)
    optimizer = torch.optim.AdamW(gates.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True)
    around.workspace.rewind_log(work.name, -1)
    around.monitor.phase_starts(work.name, step=0, steps=steps)
    best_loss, best = math.inf, gates.state_dict()
    report_every, reported = max(1, steps // REPORTS), time.monotonic()
    for step, indices in enumerate(_batches(len(lessons.targets), config, seed=around.seed, steps=steps)):
        generator = torch.Generator().manual_seed(step_seed(around.seed, work.name + " step", step))
        done = step / max(1, steps - 1)
        temperature = config.start_temperature + done * (config.end_temperature - config.start_temperature)
        rate = config.learning_rate * (1 - step / steps)
        paths = torch.randint(lessons.first_tokens.shape[1], (len(indices),), generator=generator)
        logits = gates(lessons.first_tokens[indices, paths].to(device))
        targets = lessons.targets[indices].to(device)
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
            around.workspace.log({"phase": work.name, "step": step + 1, **values})
            around.monitor.progress(Progress(work.name, step + 1, steps, **values))
        if (step + 1) % per_epoch == 0 or step + 1 == steps:
            held_loss = _held_out_loss(gates, held_out, choices)
            around.workspace.log({"phase": work.name, "step": step + 1, "validation": -held_loss})
            if held_loss < best_loss:
                best_loss, best = held_loss, {name: tensor.clone() for name, tensor in gates.state_dict().items()}
            if around.should_stop() and step + 1 < steps:
                raise Stopped(f"stopped in phase {work.name}; its static passes are kept")
    gates.load_state_dict(best)
    around.monitor.note(f"gates: loss on the validation slice {best_loss:.3f} (guessing: {math.log(choices):.3f})")
    return gates.requires_grad_(False).eval()


def _batches(count: int, config: GatesConfig, *, seed: int, steps: int) -> Iterator[Tensor]:
    """Indices of each step's rows, epoch after epoch."""
    number, epoch = 0, 0
    while number < steps:
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))
        for indices in order.split(config.batch_size)[: steps - number]:
            yield indices
            number += 1
        epoch += 1


@torch.no_grad()
def _held_out_loss(gates: WidthGates, lessons: Lessons, choices: int) -> float:
    """Class-balanced negative log-likelihood, without noise, over all widths that the layers below may have run at."""
    device = next(gates.parameters()).device
    weights = class_weights(lessons.targets, choices).to(device)
    losses = [
        gate_loss(
            gates(first_tokens.to(device)), lessons.targets.to(device), weights=weights, temperature=1.0, generator=None
        )
        for first_tokens in lessons.first_tokens.unbind(dim=1)
    ]
    return torch.stack(losses).mean().item()
