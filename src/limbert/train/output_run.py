"""Runs that end in an output folder: phases in a work folder beside it, results on held-out data, one renaming."""

import copy
import json
import logging
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from limbert.core.config import GatesConfig, TaskType, TrainConfig, require
from limbert.core.subnet import Subnet
from limbert.errors import ConfigError
from limbert.evaluation.evaluate import Progress, no_progress
from limbert.evaluation.results import LOG_NAME, RESULTS_NAME, SubnetResult, mean_metric, read_results
from limbert.inference.load import resolve_device
from limbert.method.importance import importance_from_micro_batches
from limbert.method.rewiring import rewire
from limbert.model.checkpoint import library_versions
from limbert.model.elastic import ElasticModel
from limbert.train import distributed
from limbert.train.arguments import ElasticTrainingArguments
from limbert.train.gates import train_gates
from limbert.train.phases import PHASES, ConfiguredPhase, log_plan, plan_phase
from limbert.train.run_folder import is_run_finished, run_folder
from limbert.train.subnet_trainer import result_record, subnets_of_rank
from limbert.train.trainer import ElasticTrainer

logger = logging.getLogger(__name__)

FINAL = "final"  # folder of a finished phase's model
_BOARD = "tensorboard"


@dataclass(frozen=True)
class RunData:
    """What the phases of one run train on, and how their result is measured and recorded."""

    model: ElasticModel  # the base model; phases of earlier runs are in its record
    phases: Sequence[ConfiguredPhase]  # batch sizes are those of all processes together
    training: dict[str, Any]  # of `train_phases`: datasets, metric, tokenizer, how to evaluate and to load
    # results of some sub-networks on data that trained nothing, empty without metrics; each process is given others
    evaluate: Callable[[ElasticModel, Mapping[str, Subnet]], list[SubnetResult]]
    record: dict[str, Any]  # what ``limbert.json`` says beside phases and settings
    num_examples: int  # that ``evaluate`` runs
    baseline: dict[str, float] | None = None  # metrics of the best constant prediction on them, where there is one
    subnet: str | None = None  # name of the only sub-network that is evaluated


def start_processes(config: TrainConfig) -> int:
    """Join the processes of a launcher, if any; their number. ConfigError for what this machine does not have."""
    if config.tensorboard and not any(find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise ConfigError("--tensorboard needs tensorboard; pip install tensorboard")  # accelerate would ignore it
    resolve_device(config.device)
    count = distributed.init_distributed()
    require(count == 1 or config.device == "auto", "device", config.device, "auto with several processes")
    return count


def arguments_of_run(config: TrainConfig, path: Path, *, task_type: TaskType) -> ElasticTrainingArguments:
    """The arguments that all phases of a run share, in its work folder."""
    return ElasticTrainingArguments(
        str(path),
        task_type=task_type,
        class_weights=config.class_weight_values,
        seed=config.seed,
        bf16=config.precision == "bf16",
        save_seconds=config.checkpoint_every,
        report_to=["tensorboard"] if config.tensorboard else [],
        disable_tqdm=True,
        use_cpu=config.device == "cpu" or not torch.accelerator.is_available(),
    )


def run_phases(
    output: str | Path,
    settings: dict[str, Any],
    load_data: Callable[[], RunData],
    make_arguments: Callable[[Path], ElasticTrainingArguments],
    *,
    callbacks: Sequence[TrainerCallback] = (),
    progress: Progress = no_progress,
    overwrite: bool = False,
    command: str | None = None,
) -> list[SubnetResult]:
    """Train what is left to train, write the output folder, and return the results on held-out data.

    Args:
        output: the folder; until the run is finished everything is in ``OUTPUT.training``.
        settings: see `run_settings`; an unfinished run with others is refused, unless it is to be overwritten.
        load_data: reads and tokenises; called in one process of each machine first.
        make_arguments: of all phases, in the work folder.
        callbacks: of the Trainer, in the main process.
        progress: called with a description, the steps done, and in all.
        overwrite: replace a model or an unfinished run with other settings.
        command: the command line, for the record.

    Raises:
        TrainingInterrupted: after a signal; the same call resumes.
        ConfigError, StorageError, CheckpointError, SubnetError, ProcessError, DivergedError: with a one-line message.
    """
    output = Path(output) if Path(output).name else Path(output).absolute()
    if is_run_finished(output, settings, overwrite=overwrite):
        logger.info("%s is finished already, with these settings (--overwrite trains it again)", output)
        return read_results(output) if (output / RESULTS_NAME).exists() else []
    path = output.with_name(output.name + ".training")
    with run_folder(path, settings, overwrite=overwrite):
        with PartialState().local_main_process_first():
            data = load_data()
        completed, args = [*data.model.record.get("phases", ())], make_arguments(path)
        start = {"command": command} if command else {}
        model = train_phases(
            data.model,
            data.phases,
            args=args,
            callbacks=callbacks if distributed.rank() == 0 else (),
            make_record=lambda done: data.record | start | {"phases": completed + done, "settings": settings},
            progress=progress,
            **data.training,
        )
        model.network.to(args.device)  # type: ignore[arg-type]  # transformers' own `to` hides the types
        subnets = model.subnets() if data.subnet is None else {data.subnet: model.subnet(data.subnet)}
        measured = data.evaluate(model, subnets_of_rank(subnets))
        found = distributed.gather_dict({result.subnet: result for result in measured})
        results = [found[name] for name in subnets if name in found]
        distributed.run_on_main(lambda: _save_output(model, output, data, results, args))
    if data.baseline is not None and distributed.rank() == 0:
        metric = data.training["metric"]
        best, constant = max(row.mean_metric(metric) for row in results), mean_metric(data.baseline, metric)
        if best <= constant:
            logger.warning(
                "no sub-network is better than always predicting the same: %s %.3f, baseline %.3f; "
                "train for more steps (--epochs, --max-steps) or with a higher --learning-rate",
                *(metric, best, constant),
            )
    return results


def train_phases(
    model: ElasticModel,
    phases: Sequence[ConfiguredPhase],
    *,
    args: ElasticTrainingArguments,
    metric: str,
    train_dataset: Any,
    eval_dataset: Any,
    distill_dataset: Any = None,
    given: Collection[str] = (),
    baseline: float | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    load: Callable[[Path], ElasticModel] = ElasticModel.from_pretrained,
    make_record: Callable[[list[str]], dict[str, Any]] = lambda phases: {},
    progress: Progress = no_progress,
    **trainer_options: Any,
) -> ElasticModel:
    """Run phases in order, each into ``output_dir/PHASE/final``. The same call resumes what was interrupted.

    Args:
        model: the base model, changed in place. Phase width does not sort heads and neurons that an earlier run, named
            in its record, has sorted.
        phases: with their settings, of which the batch size is that of all processes together.
        args: for all phases.
        metric: that chooses checkpoints.
        train_dataset: as `ElasticTrainer` takes it, or a function of the phase's name.
        eval_dataset: chooses checkpoints and scores importance.
        distill_dataset: instead of ``train_dataset`` in phases with a teacher.
        given: names of ``args`` that are used instead of the settings of a phase that trains the encoder.
        baseline: the metric of a constant prediction, see `ElasticTrainingArguments`.
        callbacks: of every phase's trainer.
        load: the model of a finished phase.
        make_record: what else ``limbert.json`` says after these phases.
        progress: called with a description, the steps done, and in all.
        trainer_options: as `ElasticTrainer` takes them.

    Raises:
        ConfigError, SubnetError: for settings that this model or data cannot have.
        TrainingInterrupted, DivergedError, StorageError, ProcessError: as `ElasticTrainer.train`.
    """
    root, names = args.path, [phase.name for phase, _ in phases]
    is_rewired = any(name in PHASES and PHASES[name].rewires for name in model.record.get("phases", ()))
    done = max((number for number, name in enumerate(names, start=1) if (root / name / FINAL).is_dir()), default=0)
    distributed.check_equal(done, description=f"in {root} as the number of finished phases")
    if done:
        model = load(root / names[done - 1] / FINAL)
        logger.info("resuming after phase %s from %s", names[done - 1], root / names[done - 1] / FINAL)
    plan = []
    for phase, config in phases[done:]:
        data = distill_dataset if phase.uses_teacher and distill_dataset is not None else train_dataset
        data = data(phase.name) if callable(data) else data
        plan.append(plan_phase(model, (phase, config), data, args, metric=metric, given=given, baseline=baseline))
    log_plan(model, plan)
    for number, planned in enumerate(plan, start=done + 1):
        phase, config = planned.phase, planned.config
        trainer = ElasticTrainer(
            model,
            planned.args,
            subnets=planned.subnets,
            train_dataset=planned.dataset,
            eval_dataset=eval_dataset,
            callbacks=[*callbacks],
            **trainer_options,
        )
        for callback in trainer.callback_handler.callbacks:
            if type(callback).__name__ == "TensorBoardCallback":  # its log outlives the folder of the phase
                callback.logging_dir = str(root / _BOARD / phase.name)
        if isinstance(config, GatesConfig):
            train_gates(trainer, config, progress=progress)
            rows = _log_rows(phase.name, trainer.state.log_history, metric="loss", scale=-1)
        else:
            model.gates = None  # they fitted the weights before
            if phase.rewires and not is_rewired:
                rewire(model, importance_from_micro_batches(model, trainer.importance_batches()))
                distributed.broadcast_weights(model.network)
            if phase.uses_teacher:
                trainer.teacher = ElasticModel(copy.deepcopy(model.network).requires_grad_(False).eval())
            trainer.train(resume_from_checkpoint=True)
            rows = _log_rows(phase.name, trainer.state.log_history, metric=metric)
        model.record = make_record(names[:number])
        if distributed.rank() == 0:
            tokenizer = trainer_options.get("processing_class")
            _finish_phase(model, root, names[:number], tokenizer=tokenizer, rows=rows)
        distributed.all_gather_object(None)  # the others wait for the result
    return model


def _finish_phase(
    model: ElasticModel, root: Path, names: Sequence[str], *, tokenizer: Any, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write the model and the log so far in one renaming, then delete what is not needed any more."""
    folder, earlier = root / names[-1], [root / name for name in names[:-1]]
    before = [file.read_text(encoding="utf-8") for name in earlier if (file := name / FINAL / LOG_NAME).exists()]

    def add_log(target: Path) -> None:
        text = "".join([*before[-1:], *(json.dumps(row) + "\n" for row in rows)])
        (target / LOG_NAME).write_text(text, encoding="utf-8")

    model.save_pretrained(folder / FINAL, tokenizer=tokenizer, add_files=add_log)
    for path in folder.iterdir():
        if path.name != FINAL:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in earlier:
        shutil.rmtree(path, ignore_errors=True)


def _log_rows(
    phase: str, history: Sequence[Mapping[str, float]], *, metric: str, scale: float = 1
) -> list[dict[str, Any]]:
    """The rows of ``log.jsonl`` of a phase: losses, and ``validation``, the metric (of gates the negative loss)."""
    rows: list[dict[str, Any]] = []
    for record in history:
        head = {"phase": phase, "step": record["step"]}
        if "loss" in record:
            rows.append(head | {key: record[key] for key in ("loss", "learning_rate", "examples_per_second")})
        elif f"eval_{metric}" in record:
            rows.append(head | {"validation": scale * record[f"eval_{metric}"]})
    return rows


def _save_output(
    model: ElasticModel, output: Path, data: RunData, results: Sequence[SubnetResult], args: ElasticTrainingArguments
) -> None:
    """Write the finished folder in one renaming, then delete the work folder."""
    stamp: dict[str, Any] = {
        "seed": args.seed,
        "device": args.device.type,
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "versions": library_versions(),
        "examples": data.num_examples,
    }
    stamp |= {} if data.baseline is None else {"baseline": data.baseline}
    model.record |= result_record(results, device=args.device.type) if results else {}
    log, board = args.path / data.phases[-1][0].name / FINAL / LOG_NAME, args.path / _BOARD

    def add_files(folder: Path) -> None:
        rows = [json.dumps(result.to_dict() | stamp) + "\n" for result in results]
        if rows:
            (folder / RESULTS_NAME).write_text("".join(rows), encoding="utf-8")
        shutil.copy(log, folder)
        if board.is_dir():
            shutil.copytree(board, folder / board.name)

    model.save_pretrained(output, tokenizer=data.training.get("processing_class"), add_files=add_files)
    shutil.rmtree(args.path, ignore_errors=True)
