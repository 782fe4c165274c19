"""The training phases: which sub-networks each trains, from what, with which settings, and for how many steps."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
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

    Args:
        phases: of this run, in order.
        completed: phases of earlier runs, which trained the base model.
        is_finetuned: whether the base model is fine-tuned on the task.
    """
    widths_trained = bool({"width", "depth", "final"} & {*completed})
    for name in phases:
        if name == "gates" and not widths_trained:
            logger.warning("phase %s chooses among widths that no phase has trained; run phase width before it", name)
        if name in ("width", "depth") and not is_finetuned:
            logger.warning("phase %s has a teacher that is not fine-tuned; run phase finetune before it", name)
        widths_trained |= name in ("width", "depth", "final")
        is_finetuned |= name in ("finetune", "final")


def check_phases(model: ElasticModel, phases: Iterable[ConfiguredPhase]) -> None:
    """Raise SubnetError or ConfigError for sub-networks or gates that a model cannot have."""
    model.subnets()
    for phase, config in phases:
        phase.select_subnets(model)
        if isinstance(config, GatesConfig):
            check_gates(model, config)


_OTHER_NAMES = {  # fields of PhaseConfig that ElasticTrainingArguments call otherwise
    "warmup": "warmup_steps",
    "sampled": "sampled_subnets",
    "grafts": "grafts_per_epoch",
    "graft_share": "graft_fraction",
}
_FORWARD = 1 / 3  # of the time of a forward and a backward pass
_TIMED_EXAMPLES = 8
_NUMBERS = ("epochs", "max_steps", "min_steps", "batch_size", "evaluations")  # from which others are computed
_DEFAULTS = {item.name: item.default for item in fields(ElasticTrainingArguments)}


def argument_or(args: ElasticTrainingArguments, name: str, value: Any) -> Any:
    """The argument if it differs from its default, else the value."""
    given = getattr(args, name)
    return value if given == _DEFAULTS[name] else given


def encoder_arguments(
    args: ElasticTrainingArguments, config: PhaseConfig, *, num_examples: int, metric: str
) -> ElasticTrainingArguments:
    """The arguments of one phase that trains the encoder; of ``args`` what differs from its default is kept.

    Raises:
        ConfigError: if the processes cannot share the batch evenly.
    """
    shares = args.world_size * args.gradient_accumulation_steps
    per_device = argument_or(args, "per_device_train_batch_size", config.batch_size // shares)
    if not per_device or (per_device == config.batch_size // shares and config.batch_size % shares):
        raise ConfigError(
            f"batch size is {config.batch_size} over all processes; it must be a multiple of {shares}: "
            f"{args.world_size} processes x {args.gradient_accumulation_steps} accumulated steps"
        )
    steps_per_epoch = math.ceil(num_examples / (per_device * shares))
    epochs = argument_or(args, "num_train_epochs", config.epochs)
    steps = max(config.min_steps or 0, math.ceil(epochs * steps_per_epoch))
    own_evaluation = args.eval_strategy != "no"
    settings = {_OTHER_NAMES.get(name, name): value for name, value in vars(config).items() if name not in _NUMBERS}
    return replace(
        args,
        **{name: argument_or(args, name, value) for name, value in settings.items()},
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=argument_or(args, "per_device_eval_batch_size", 64),
        max_steps=min(steps, args.max_steps if args.max_steps > 0 else config.max_steps or steps),
        eval_strategy=args.eval_strategy if own_evaluation else "steps",
        eval_steps=args.eval_steps if own_evaluation else math.ceil(steps_per_epoch / config.evaluations),
        save_strategy="best",
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=args.greater_is_better if args.metric_for_best_model else not metric.endswith("loss"),
    )


def describe_steps(args: ElasticTrainingArguments, config: PhaseConfig, *, num_examples: int) -> str:
    """``200 steps (8.7 epochs, instead of 3: few examples need at least 200 steps)``.

    Args:
        args: of the phase.
        config: of the phase.
        num_examples: of the training data.
    """
    batch = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    epochs = args.max_steps / math.ceil(num_examples / batch)
    raised = config.min_steps == args.max_steps and epochs > config.epochs
    note = f", instead of {config.epochs:g}: few examples need at least {config.min_steps} steps" if raised else ""
    return f"{args.max_steps} steps ({epochs:.3g} epochs{note})"


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
    inputs, times = {name: tensor.to(device) for name, tensor in batch.items()}, []
    for _ in range(4):  # the first one warms up; the fastest counts, because other programs slow down the others
        started = time.monotonic()
        logits_of(network(**inputs)).float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic() - started)
    network.zero_grad(set_to_none=True)
    return min(times) / len(batch["input_ids"])
