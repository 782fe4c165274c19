"""The training phases, and the function that runs several of them in order, interrupted and resumed at will."""

import copy
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from limbert.core.config import AnyPhaseConfig, GatesConfig, PhaseConfig
from limbert.core.subnet import Subnet
from limbert.core.task_types import TASK_TYPE_SPECS
from limbert.errors import ConfigError
from limbert.evaluation.evaluate import Progress, no_progress
from limbert.evaluation.results import LOG_NAME
from limbert.method.importance import importance_from_micro_batches
from limbert.method.rewiring import rewire
from limbert.model.elastic import ElasticModel
from limbert.train.arguments import ElasticTrainingArguments
from limbert.train.distributed import all_gather_object, broadcast_weights, check_equal, rank
from limbert.train.gates import check_gates, train_gates
from limbert.train.subnet_evaluation import task_of, task_type_of
from limbert.train.trainer import ElasticTrainer

logger = logging.getLogger(__name__)

Supervision = Literal["labels", "text"]
FINAL = "final"  # folder of a finished phase's model
_LOGGING_STEPS = 10  # each log waits for the device once


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
        "mlm",
        "the whole model on the masked words of a text: the teacher of pre-training",
        _full_subnet,
        supervision=frozenset({"text"}),
    ),
)
PHASES: dict[str, Phase] = {phase.name: phase for phase in _PHASES}


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
        if PHASES[name].trains_gates and not widths_trained:
            logger.warning("phase %s chooses among widths that no phase has trained; run phase width before it", name)
        if PHASES[name].uses_teacher and not is_finetuned:
            logger.warning("phase %s has a teacher that is not fine-tuned; run phase finetune before it", name)
        widths_trained |= name in ("width", "depth", "final")
        is_finetuned |= name in ("finetune", "final")


def check_phases(model: ElasticModel, phases: Iterable[ConfiguredPhase]) -> None:
    """Raise SubnetError or ConfigError for sub-networks or gates that a model cannot have."""
    model.subnets()
    for _, config in phases:
        if isinstance(config, GatesConfig):
            check_gates(model, config)


def train_phases(
    model: ElasticModel,
    phases: Sequence[ConfiguredPhase],
    *,
    args: ElasticTrainingArguments,
    train_dataset: Any,
    eval_dataset: Any,
    distill_dataset: Any = None,
    is_rewired: bool = False,
    metric: str | None = None,
    compute_metrics: Any = None,
    processing_class: Any = None,
    callbacks: Sequence[TrainerCallback] = (),
    load: Callable[[Path], ElasticModel] = ElasticModel.from_pretrained,
    make_record: Callable[[list[str]], dict[str, Any]] = lambda phases: {},
    progress: Progress = no_progress,
    **trainer_options: Any,
) -> ElasticModel:
    """Run phases in order, each into ``output_dir/PHASE/final``. The same call resumes what was interrupted.

    Args:
        model: the base model, changed in place.
        phases: with their settings, of which the batch size is that of all processes together.
        args: for all phases; what differs from its default is used instead of the settings of a phase that trains the
            encoder.
        train_dataset: as `ElasticTrainer` takes it, or a function of the phase's name.
        eval_dataset: chooses checkpoints and scores importance.
        distill_dataset: instead of ``train_dataset`` in phases with a teacher.
        is_rewired: whether the heads and neurons of the base model are sorted already, so that their order must stay.
        metric: that chooses checkpoints; default: the first of the task's, else the loss.
        compute_metrics, processing_class, trainer_options: as `ElasticTrainer` takes them.
        callbacks: those with a state of their own (early stopping) see only phases that train the encoder.
        load: the model of a finished phase.
        make_record: what else ``limbert.json`` says after these phases.
        progress: called with a description, the steps done, and in all.

    Raises:
        ConfigError: for settings that this model or data cannot have.
        TrainingInterrupted, DivergedError, StorageError, ProcessError: as `ElasticTrainer.train`.
    """
    root, names = args.path, [phase.name for phase, _ in phases]
    done = max((number for number, name in enumerate(names, start=1) if (root / name / FINAL).is_dir()), default=0)
    check_equal(done, description=f"in {root} as the number of finished phases")
    if done:
        model = load(root / names[done - 1] / FINAL)
        logger.info("resuming after phase %s from %s", names[done - 1], root / names[done - 1] / FINAL)
    check_phases(model, phases[done:])
    metric = metric or args.metric_for_best_model or _default_metric(model, args, compute_metrics)
    for number, (phase, config) in enumerate(phases[done:], start=done + 1):
        data = distill_dataset if phase.uses_teacher and distill_dataset is not None else train_dataset
        data = data(phase.name) if callable(data) else data
        phase_args, loggers = _phase_arguments(args, phase.name)
        encoder_args = phase_args
        if isinstance(config, PhaseConfig):
            encoder_args = encoder_arguments(phase_args, config, num_examples=len(data), metric=metric)
        trainer = ElasticTrainer(
            model,
            encoder_args,
            subnets=phase.select_subnets(model),
            train_dataset=data,
            eval_dataset=eval_dataset,
            compute_metrics=compute_metrics,
            processing_class=processing_class,
            callbacks=[*callbacks, *loggers],
            **trainer_options,
        )
        if isinstance(config, GatesConfig):
            stateless = [callback for callback in callbacks if not isinstance(callback, ExportableState)]
            history = train_gates(trainer, config, args=phase_args, callbacks=[*stateless, *loggers], progress=progress)
            rows = log_rows(phase.name, history, metric="loss", sign=-1)
        else:
            model.gates = None  # they fitted the weights before
            if phase.rewires and not is_rewired:
                rewire(model, importance_from_micro_batches(model, trainer.importance_batches()))
                broadcast_weights(model.network)
            if phase.uses_teacher:
                trainer.teacher = ElasticModel(copy.deepcopy(model.network).requires_grad_(False).eval())
            trainer.train(resume_from_checkpoint=True)
            rows = log_rows(phase.name, trainer.state.log_history, metric=metric)
        model.record = make_record(names[:number])
        if rank() == 0:
            _finish_phase(model, root, names[:number], tokenizer=processing_class, rows=rows)
        all_gather_object(None)  # the others wait for the result
    return model


def _finish_phase(
    model: ElasticModel, root: Path, names: Sequence[str], *, tokenizer: Any, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write the model and the log so far in one renaming, then delete what is not needed any more."""
    folder, earlier = root / names[-1], [root / name for name in names[:-1]]
    logs = [path / FINAL / LOG_NAME for path in earlier if (path / FINAL / LOG_NAME).exists()]

    def add_log(target: Path) -> None:
        before = logs[-1].read_text(encoding="utf-8") if logs else ""
        text = before + "".join(json.dumps(row) + "\n" for row in rows)
        (target / LOG_NAME).write_text(text, encoding="utf-8")

    model.save_pretrained(folder / FINAL, tokenizer=tokenizer, add_files=add_log)
    for path in folder.iterdir():
        if path.name != FINAL:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in earlier:
        shutil.rmtree(path, ignore_errors=True)


def log_rows(phase: str, history: Iterable[Mapping[str, float]], *, metric: str, sign: int = 1) -> list[dict[str, Any]]:
    """The rows of ``log.jsonl`` of a phase: losses, and ``validation``, the metric times ``sign``: higher is better."""
    rows: list[dict[str, Any]] = []
    for record in history:
        head = {"phase": phase, "step": record["step"]}
        if "loss" in record:
            rows.append(head | {key: record[key] for key in ("loss", "learning_rate", "examples_per_second")})
        elif f"eval_{metric}" in record:
            rows.append(head | {"validation": sign * record[f"eval_{metric}"]})
    return rows


def _default_metric(model: ElasticModel, args: ElasticTrainingArguments, compute_metrics: Any) -> str:
    task_type = args.task_type or task_type_of(model.network)
    if compute_metrics is not None or TASK_TYPE_SPECS[task_type].token_level:
        return "loss"
    return task_of(model.network, task_type).primary_metric


def _phase_arguments(
    args: ElasticTrainingArguments, name: str
) -> tuple[ElasticTrainingArguments, list[TrainerCallback]]:
    """The arguments of a phase's folder; TensorBoard's log is kept beside the phases, one run a phase."""
    loggers: list[TrainerCallback] = []
    report_to = [*(args.report_to or ())]
    if "tensorboard" in report_to:
        from transformers.integrations.integration_utils import TensorBoardCallback

        report_to.remove("tensorboard")
        board = TensorBoardCallback()
        board.logging_dir = str(args.path / "tensorboard" / name)
        loggers.append(board)
    own = replace(
        args,
        output_dir=str(args.path / name),
        phase=name,
        report_to=report_to,
        push_to_hub=False,
        logging_steps=_own(args, "logging_steps", _LOGGING_STEPS),
        save_seconds=args.save_seconds or 120.0,
    )
    return own, loggers


_CONFIG_FIELDS = {  # of ElasticTrainingArguments: the field of PhaseConfig
    "learning_rate": "learning_rate",
    "warmup_steps": "warmup",
    "weight_decay": "weight_decay",
    "adam_epsilon": "adam_epsilon",
    "max_grad_norm": "max_grad_norm",
    "label_weight": "label_weight",
    "logit_weight": "logit_weight",
    "hidden_weight": "hidden_weight",
    "teacher_width": "teacher_width",
    "full_weight": "full_weight",
    "sampled_subnets": "sampled",
    "grafts_per_epoch": "grafts",
    "graft_rate": "graft_rate",
    "graft_fraction": "graft_share",
}
_DEFAULTS = {item.name: item.default for item in fields(ElasticTrainingArguments)}


def _own(args: ElasticTrainingArguments, name: str, value: Any) -> Any:
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
    per_device = _own(args, "per_device_train_batch_size", config.batch_size // shares)
    if not per_device or (per_device == config.batch_size // shares and config.batch_size % shares):
        raise ConfigError(
            f"batch size is {config.batch_size} over all processes; it must be a multiple of {shares}: "
            f"{args.world_size} processes x {args.gradient_accumulation_steps} accumulated steps"
        )
    steps_per_epoch = math.ceil(num_examples / (per_device * shares))
    steps = math.ceil(_own(args, "num_train_epochs", config.epochs) * steps_per_epoch)
    own_evaluation = args.eval_strategy != "no"
    return replace(
        args,
        **{name: _own(args, name, getattr(config, source)) for name, source in _CONFIG_FIELDS.items()},
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=_own(args, "per_device_eval_batch_size", 64),
        max_steps=min(steps, args.max_steps if args.max_steps > 0 else config.max_steps or steps),
        eval_strategy=args.eval_strategy if own_evaluation else "steps",
        eval_steps=args.eval_steps if own_evaluation else math.ceil(steps_per_epoch / config.evaluations),
        save_strategy="best",
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=args.greater_is_better if args.metric_for_best_model else not metric.endswith("loss"),
    )
