"""The phase that trains width gates on a frozen encoder.

The encoder is frozen and runs without dropout, so one static pass a width over the training rows is all that it is
needed for; what the gates read and aim at is kept, and the epochs run on that alone, in seconds. Several processes
share the static passes; the main one alone trains.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbert.core.config import GatesConfig, TaskKind
from limbert.core.task_types import KINDS
from limbert.core.space import parse_point
from limbert.core.subnet import Subnet
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError
from limbert.method.gate_targets import cheapest, class_weights, gate_loss, is_right, narrowest_right
from limbert.model.elastic import ElasticModel
from limbert.model.width_gates import WidthGates, gated_layers
from limbert.train.progress import Progress
from limbert.train.context import Phase, PhaseWork
from limbert.train.distributed import Processes
from limbert.run.static_answers import Keeping, StaticAnswers, static_answers
from limbert.train.trainer import Stopped, step_seed

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
