"""The training phases: which sub-networks each trains, from what, with which settings, and for how many steps."""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from limbert.core.config import AnyPhaseConfig, GatesConfig, PhaseConfig
from limbert.core.subnet import Subnet
from limbert.errors import ConfigError
from limbert.model.elastic import ElasticModel
from limbert.model.outputs import logits_of
from limbert.train.arguments import ElasticTrainingArguments
from limbert.train.data import pop_labels
from limbert.train.gates import check_gates

logger = logging.getLogger(__name__)

Supervision = Literal["labels", "text"]


@dataclass(frozen=True)
class Phase:
    """One stage of training.

    Attributes:
        name: of its folder, its seeds and its messages.
        help: one line for people.
        select_subnets: the sub-networks that it trains, by name, largest first.
        uses_teacher: whether it learns from a teacher, the model as it was when the phase began.
        rewires: whether heads and neurons are first sorted by importance.
        trains_gates: whether it trains width gates and leaves the encoder as it is.
        defaults: settings where a recipe says nothing: fields of `PhaseConfig` or `GatesConfig`.
        supervision: what it can learn from: ``labels`` of a task, or masked ``text``.
    """

    name: str
    help: str = ""
    select_subnets: Callable[[ElasticModel], dict[str, Subnet]] = ElasticModel.subnets
    uses_teacher: bool = False
    rewires: bool = False
    trains_gates: bool = False
    defaults: Mapping[str, Any] = field(default_factory=lambda: {"label_weight": 1.0})
    supervision: frozenset[Supervision] = frozenset({"labels"})

    @property
    def config_class(self) -> type[AnyPhaseConfig]:
        """The settings that it has."""
        return GatesConfig if self.trains_gates else PhaseConfig


ConfiguredPhase = tuple[Phase, AnyPhaseConfig]


def _full_subnet(model: ElasticModel) -> dict[str, Subnet]:
    return {name: subnet for name, subnet in model.subnets().items() if subnet == model.full}


def _full_depth_subnets(model: ElasticModel) -> dict[str, Subnet]:
    return {name: subnet for name, subnet in model.subnets().items() if len(subnet.layers) == model.shape.layers}


_LABELS_OR_TEXT: frozenset[Supervision] = frozenset({"labels", "text"})
_PHASES = (
    Phase("finetune", "the whole model on the task's labels: the teacher", _full_subnet),
    Phase(
        "width",
        "rewire once, then all widths at full depth, taught by the model as it was",
        _full_depth_subnets,
        uses_teacher=True,
        rewires=True,
        defaults={"logit_weight": 1.0, "hidden_weight": 0.1},
        supervision=_LABELS_OR_TEXT,
    ),
    Phase(
        "depth",
        "all widths at all depths, taught by the result of the width phase",
        uses_teacher=True,
        defaults={"logit_weight": 1.0, "hidden_weight": 1.0, "teacher_width": "matched"},
        supervision=_LABELS_OR_TEXT,
    ),
    Phase(
        "joint",
        "rewire once, then all widths at all depths at once, taught by the model as it was",
        uses_teacher=True,
        rewires=True,
        defaults={"logit_weight": 1.0, "hidden_weight": 1.0},
        supervision=_LABELS_OR_TEXT,
    ),
    Phase("final", "all widths at all depths on the true labels, without a teacher", supervision=_LABELS_OR_TEXT),
    Phase("gates", "gates that choose each input's widths, with the encoder frozen", trains_gates=True, defaults={}),
    Phase(
        "specialise",
        "one sub-network of an elastic run, taught by the run's full size (--subnet)",
        uses_teacher=True,
        defaults={
            "logit_weight": 1.0,
            "hidden_weight": 1.0,
            "learning_rate": 1e-4,
            "warmup": 0.1,
            "epochs": 1.0,
            "min_steps": 300,
            "max_steps": 1000,
        },
        supervision=frozenset(),
    ),
    Phase(
        "mlm",
        "the whole model on the masked words of a text: the teacher of pre-training",
        _full_subnet,
        supervision=frozenset({"text"}),
    ),
)
PHASES: dict[str, Phase] = {phase.name: phase for phase in _PHASES}
_TRAIN_WIDTHS = frozenset({"width", "depth", "joint", "final"})


def select_only(phase: Phase, subnet: str) -> Phase:
    """The phase training nothing but one sub-network, by its name."""
    return replace(phase, select_subnets=lambda model: {subnet: model.subnet(subnet)})


def check_supervision(phases: Iterable[str], supervision: Supervision) -> None:
    """Raise ConfigError for the first phase that cannot learn from the data of a run, naming those that can."""
    for name in phases:
        if supervision not in PHASES[name].supervision:
            able = ", ".join(other for other, phase in PHASES.items() if supervision in phase.supervision)
            verb = {"labels": "train", "text": "pretrain"}[supervision]
            raise ConfigError(f"phase {name!r} cannot learn from {supervision}; limbert {verb} has phases {able}")


def warn_about_phases(phases: Iterable[str], *, completed: Iterable[str], is_finetuned: bool) -> None:
    """Log a warning for phases without what they build on: trained widths, or a teacher of the task.

    ``completed`` are the phases that trained the base model, which may be fine-tuned on the task.
    """
    widths_trained = bool(_TRAIN_WIDTHS & {*completed})
    for name in phases:
        if name == "gates" and not widths_trained:
            logger.warning("phase %s chooses among widths that no phase has trained; run phase width before it", name)
        if PHASES[name].uses_teacher and not is_finetuned:
            logger.warning("phase %s has a teacher that is not fine-tuned; run phase finetune before it", name)
        widths_trained |= name in _TRAIN_WIDTHS
        is_finetuned |= name in ("finetune", "final")


@dataclass(frozen=True)
class PlannedPhase:
    """A phase that is to run: what it trains, on what, and with which arguments."""

    phase: Phase
    config: AnyPhaseConfig
    subnets: dict[str, Subnet]  # by name, largest first
    dataset: Any
    args: ElasticTrainingArguments


_OTHER_NAMES = {  # fields of PhaseConfig that ElasticTrainingArguments call otherwise
    "warmup": "warmup_steps",
    "sampled": "sampled_subnets",
    "grafts": "grafts_per_epoch",
    "graft_share": "graft_fraction",
}
_NUMBERS = ("epochs", "max_steps", "min_steps", "batch_size", "evaluations")  # from which others are computed
_FORWARD = 1 / 3  # of the time of a forward and a backward pass
_TIMED_EXAMPLES = 8


def plan_phase(
    model: ElasticModel,
    configured: ConfiguredPhase,
    dataset: Any,
    args: ElasticTrainingArguments,
    *,
    metric: str,
    given: Collection[str] = (),
    baseline: float | None = None,
) -> PlannedPhase:
    """A phase of a run, of which ``args`` are; see `train_phases`.

    Raises:
        SubnetError, ConfigError: for sub-networks, gates or a batch size that cannot be.
    """
    phase, config = configured
    own: dict[str, Any] = {"output_dir": str(args.path / phase.name), "phase": phase.name, "push_to_hub": False}
    if isinstance(config, GatesConfig):
        check_gates(model, config)
        own |= {"eval_strategy": "epoch", "save_strategy": "best", "load_best_model_at_end": True}
        phase_args = replace(args, **own, metric_for_best_model="loss", greater_is_better=False)
    else:
        args = replace(args, **own, baseline=baseline)
        phase_args = encoder_arguments(args, config, num_examples=len(dataset), metric=metric, given=given)
    return PlannedPhase(phase, config, phase.select_subnets(model), dataset, phase_args)


def encoder_arguments(
    args: ElasticTrainingArguments, config: PhaseConfig, *, num_examples: int, metric: str, given: Collection[str] = ()
) -> ElasticTrainingArguments:
    """The arguments of a phase that trains the encoder, see `plan_phase`.

    Raises:
        ConfigError: if the processes cannot share the batch evenly.
    """
    parts = args.world_size * args.gradient_accumulation_steps
    batch_size = config.batch_size
    if "per_device_train_batch_size" in given:
        batch_size = args.per_device_train_batch_size * parts
    if batch_size % parts:
        raise ConfigError(
            f"batch size is {batch_size} over all processes; it must be a multiple of {parts}: "
            f"{args.world_size} processes x {args.gradient_accumulation_steps} accumulated steps"
        )
    steps_per_epoch = math.ceil(num_examples / batch_size)
    epochs = args.num_train_epochs if "num_train_epochs" in given else config.epochs
    steps = max(config.min_steps or 0, math.ceil(epochs * steps_per_epoch))
    settings = {_OTHER_NAMES.get(name, name): value for name, value in vars(config).items() if name not in _NUMBERS}
    settings |= {"per_device_eval_batch_size": 64, "logging_steps": 10}  # each log waits for the device once
    settings = {name: value for name, value in settings.items() if name not in given}
    if args.eval_strategy == "no":
        settings |= {"eval_strategy": "steps", "eval_steps": math.ceil(steps_per_epoch / config.evaluations)}
    if args.metric_for_best_model is None:
        settings["greater_is_better"] = not metric.endswith("loss")
    return replace(
        args,
        **settings,
        per_device_train_batch_size=batch_size // parts,
        max_steps=min(steps, args.max_steps if args.max_steps > 0 else config.max_steps or steps),
        save_seconds=args.save_seconds or 120.0,
        save_strategy="best",
        load_best_model_at_end=True,
        metric_for_best_model=metric,
    )


def log_plan(model: ElasticModel, plan: Sequence[PlannedPhase]) -> None:
    """Log steps and epochs of phases, and the time of all, estimated from that of a few examples at full size."""
    shown, passes = [], 0.0  # forward and backward passes of one example through the full network
    for planned in plan:
        args, config, count = planned.args, planned.config, len(planned.dataset)
        sizes = np.array([sum(subnet.neurons) for subnet in planned.subnets.values()]) / sum(model.full.neurons)
        if isinstance(config, GatesConfig):
            shown.append(f"{args.phase} {config.epochs:g} epochs")
            passes += min(count, config.max_rows) * sizes.sum() * _FORWARD
            continue
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
        epochs = args.max_steps / math.ceil(count / (batch * args.world_size))
        raised = config.min_steps == args.max_steps and epochs > config.epochs
        note = f", instead of {config.epochs:g}: few examples need at least {config.min_steps} steps" if raised else ""
        shown.append(f"{args.phase} {args.max_steps} steps ({epochs:.3g} epochs{note})")
        trained = sizes.sum()
        if 0 < args.sampled_subnets < len(sizes):  # the largest, the smallest, and others at random
            trained = sizes[0] + sizes[-1] + (args.sampled_subnets - 2) * sizes[1:-1].mean()
        passes += args.max_steps * batch * (trained + planned.phase.uses_teacher * _FORWARD)
    if plan:
        logger.info("phases: %s", ", ".join(shown))
        seconds = passes * _seconds_per_example(model, plan[-1].dataset, plan[-1].args.device)
        text = f"{seconds / 60:.0f} min" if 90 < seconds < 5400 else f"{seconds / 3600:.1f} h"
        logger.info("estimated time in all: %s", text if seconds > 90 else f"{seconds:.0f} s")


def _seconds_per_example(model: ElasticModel, dataset: Any, device: torch.device) -> float:
    """Seconds of a forward and a backward pass of the full network, for an example of about the mean length."""
    order = np.argsort(np.abs(dataset.lengths - dataset.lengths.mean()), kind="stable")
    batch = dataset.prepare_inputs(dataset.collate(order[:_TIMED_EXAMPLES].tolist()))
    pop_labels(batch)
    network: Any = model.network.to(device)  # type: ignore[arg-type]  # transformers' own `to` hides the types
    network.train()
    inputs, times = {name: tensor.to(device) for name, tensor in batch.items()}, []
    for _ in range(4):  # the first one warms up; the fastest counts, because other programs slow down the others
        started = time.monotonic()
        logits_of(network(**inputs)).float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic() - started)
    network.zero_grad(set_to_none=True)
    return min(times) / len(batch["input_ids"])
