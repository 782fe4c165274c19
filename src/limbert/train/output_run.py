"""Runs that end in an output folder: phases in a work folder beside it, results on held-out data, one renaming."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback

from limbert.core.config import TrainConfig, require
from limbert.core.subnet import Subnet
from limbert.evaluation.evaluate import Progress, no_progress
from limbert.evaluation.results import LOG_NAME, RESULTS_NAME, SubnetResult, mean_metric, read_results
from limbert.inference.load import resolve_device
from limbert.model.checkpoint import library_versions
from limbert.model.elastic import ElasticModel
from limbert.train.arguments import ElasticTrainingArguments
from limbert.train.distributed import all_gather_object, local_main_process_first, rank, run_on_main, world_size
from limbert.train.phases import FINAL, check_phases, train_phases
from limbert.train.recipes import Recipe
from limbert.train.run_folder import RunFolder, is_run_finished
from limbert.train.subnet_evaluation import EvaluateSubnets, result_record, subnets_of_rank

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """What the phases of one run train on, and how their result is measured and recorded.

    Attributes:
        tokenizer: saved with the model.
        load_base: loads the base model.
        load_phase: loads the result of a finished phase.
        train_dataset, distill_dataset, eval_dataset: as `train_phases` takes them.
        evaluate_subnets: on the validation split.
        evaluate_dev: results on data that neither trained nor chose anything.
        metric: that chooses checkpoints.
        num_dev_examples: that ``evaluate_dev`` runs.
        baseline: metrics of the best constant prediction on them; None where there is none.
        record: what ``limbert.json`` says beside phases and settings.
        completed_phases: of earlier runs that trained the base model.
        skipped_phase: of the recipe, that the base model makes unnecessary.
        task_type: what the outputs mean.
    """

    tokenizer: PreTrainedTokenizerBase
    load_base: Callable[[], ElasticModel]
    load_phase: Callable[[Path], ElasticModel]
    train_dataset: Any
    distill_dataset: Any
    eval_dataset: Any
    evaluate_subnets: EvaluateSubnets
    evaluate_dev: Callable[[ElasticModel, Mapping[str, Subnet]], list[SubnetResult]]
    metric: str
    num_dev_examples: int
    baseline: dict[str, float] | None
    record: dict[str, Any]
    completed_phases: tuple[str, ...]
    skipped_phase: str | None
    task_type: str


def run_phases(
    config: TrainConfig,
    recipe: Recipe,
    *,
    settings: dict[str, Any],
    load_data: Callable[[], RunData],
    callbacks: Sequence[TrainerCallback] = (),
    progress: Progress = no_progress,
    overwrite: bool = False,
) -> list[SubnetResult]:
    """Train what is left to train, write the output folder, and return the results on held-out data.

    Args:
        config: base model, output, seed, precision.
        recipe: with the batch sizes of all processes together.
        settings: see `run_settings`; an unfinished run with others is refused.
        load_data: reads and tokenises; called in one process of each machine first.
        callbacks: of the Trainer, in the main process.
        progress: called with a description, the steps done, and in all.
        overwrite: replace a model or an unfinished run with other settings.

    Raises:
        TrainingInterrupted: after a signal; the same call resumes.
        ConfigError, StorageError, CheckpointError, SubnetError, ProcessError, DivergedError: in one line each.
    """
    resolve_device(config.device)
    require(world_size() == 1 or config.device == "auto", "device", config.device, "auto with several processes")
    if is_run_finished(config.output, settings, overwrite=overwrite):
        logger.info("%s is finished already, with these settings (--overwrite trains it again)", config.output)
        return read_results(config.output)
    output = Path(config.output)
    folder = RunFolder(output.with_name(output.name + ".training"), settings, overwrite=overwrite)
    with local_main_process_first():
        data = load_data()
    model = data.load_base()
    model.space = recipe.space
    phases = [(phase, settled) for phase, settled in recipe.configured_phases() if phase.name != data.skipped_phase]
    check_phases(model, phases)
    with folder.opened():
        args = ElasticTrainingArguments(  # here, since it resets accelerate's state
            str(folder.path),
            task_type=data.task_type,  # type: ignore[arg-type]
            seed=config.seed,
            bf16=config.precision == "bf16",
            save_seconds=config.checkpoint_every,
            report_to=["tensorboard"] if config.tensorboard else [],
            disable_tqdm=True,
            use_cpu=config.device == "cpu" or not torch.accelerator.is_available(),
        )
        model = train_phases(
            model,
            phases,
            args=args,
            train_dataset=data.train_dataset,
            eval_dataset=data.eval_dataset,
            distill_dataset=data.distill_dataset,
            is_rewired="width" in data.completed_phases,
            evaluate_subnets=data.evaluate_subnets,
            metric=data.metric,
            processing_class=data.tokenizer,
            callbacks=callbacks if rank() == 0 else (),
            load=data.load_phase,
            make_record=lambda done: data.record | {"phases": [*data.completed_phases, *done], "settings": settings},
            progress=progress,
        )
        model.network.to(args.device)  # type: ignore[arg-type]  # transformers' own `to` hides the types
        subnets = model.subnets()
        measured = data.evaluate_dev(model, subnets_of_rank(subnets, args))  # each process measures some
        found = {result.subnet: result for part in all_gather_object(measured) for result in part}
        results = [found[name] for name in subnets]
        run_on_main(lambda: _save_output(model, output, folder.path / phases[-1][0].name, data, results, args))
    if data.baseline is not None and rank() == 0:
        _warn_if_not_above_baseline(results, data.baseline, metric=data.metric)
    return results


def _warn_if_not_above_baseline(results: Sequence[SubnetResult], baseline: Mapping[str, float], *, metric: str) -> None:
    best, constant = max(result.mean_metric(metric) for result in results), mean_metric(baseline, metric)
    if best <= constant:
        logger.warning(
            "no sub-network is better than always predicting the same: %s %.3f, baseline %.3f; "
            "train for more steps (--epochs, --max-steps) or with a higher --learning-rate",
            metric,
            best,
            constant,
        )


def _save_output(
    model: ElasticModel,
    output: Path,
    last: Path,
    data: RunData,
    results: Sequence[SubnetResult],
    args: ElasticTrainingArguments,
) -> None:
    """Write the finished folder in one renaming, then delete the work folder."""
    stamp = {
        "seed": args.seed,
        "device": args.device.type,
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "versions": library_versions(),
        "examples": data.num_dev_examples,
    }
    if data.baseline is not None:
        stamp["baseline"] = data.baseline
    model.record |= result_record(results, device=args.device.type)

    def add_files(folder: Path) -> None:
        rows = [json.dumps(result.to_dict() | stamp) + "\n" for result in results]
        (folder / RESULTS_NAME).write_text("".join(rows), encoding="utf-8")
        shutil.copy(last / FINAL / LOG_NAME, folder)
        if (last.parent / "tensorboard").is_dir():
            shutil.copytree(last.parent / "tensorboard", folder / "tensorboard")

    model.save_pretrained(output, tokenizer=data.tokenizer, add_files=add_files)
    shutil.rmtree(last.parent, ignore_errors=True)
