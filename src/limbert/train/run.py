"""The public function `train`, and training on a task's files: split and tokenised for a base model, then evaluated."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from limbert.core.config import DataConfig, TrainConfig, configs_from_options, require
from limbert.core.subnet import Subnet
from limbert.data.augmented import AugmentedExamples
from limbert.data.load import TaskData, load_task_data
from limbert.data.readers import Examples
from limbert.data.split import train_validation_split
from limbert.data.task_registry import baseline_metrics, compute_task_metrics, tokenize_for_task
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError
from limbert.evaluation.choose import resolve_measured_names
from limbert.evaluation.evaluate import evaluate_subnets, fit_temperatures
from limbert.evaluation.results import LOG_NAME, RESULTS_NAME, SubnetResult
from limbert.export.export import export_model
from limbert.files import json_fingerprint, write_json_lines
from limbert.inference.base_model import TaskBaseCheckpoint, load_base_checkpoint
from limbert.inference.load import override_data_config, saved_data_config
from limbert.inference.predict import predict_subnet_logits
from limbert.method.calibration import TEMPERATURES_KEY
from limbert.method.losses import label_loss
from limbert.model.checkpoint import SEARCHED_SUBNETS_KEY, read_record
from limbert.model.elastic import ElasticModel
from limbert.train.distributed import all_gather_object, run_on_main
from limbert.train.model_run import train_model
from limbert.train.output_run import RunData, arguments_of_run, run_phases, start_processes
from limbert.train.phases import check_supervision, warn_about_phases
from limbert.train.recipes import Recipe, load_recipe, override_recipe, with_trained_space
from limbert.train.run_folder import run_settings
from limbert.train.subnet_evaluation import SubnetMetrics, subnets_of_rank

logger = logging.getLogger(__name__)

_MAX_SHOWN_LABELS = 20
SEEDS_NAME = "seeds.jsonl"  # mean and spread of the metrics over several seeds


def train(model: str | Path | ElasticModel, **options: Any) -> Any:
    """Train an elastic model: from files as the command does, or from datasets in memory.

    ``train("bert-base-uncased", data="tickets", output="runs/tickets", recipe="limbert")`` does what ``limbert train``
    does and returns the results of all sub-networks. ``data`` is a folder, a data set's name on the Hub or a
    `DataConfig`; further keywords are the fields of `TrainConfig` and `DataConfig`, and those of `train_task`. With
    ``seeds=(1, 2, 3)`` see `train_seeds`, with ``subnet="0.5x0.75"`` see `specialise`.

    ``train(elastic_model, args=, train_dataset=, eval_dataset=, recipe=)`` takes what `transformers.Trainer` takes and
    returns the trained model, see `train_model`. Either call, repeated after an interruption, resumes.
    """
    return train_model(model, **options) if isinstance(model, ElasticModel) else _train_files(str(model), **options)


def _train_files(
    model: str,
    *,
    output: str | Path,
    data: str | Path | DataConfig | None = None,
    recipe: str | Recipe | None = None,
    seeds: Sequence[int] = (),
    subnet: str | None = None,
    **options: Any,
) -> Any:
    extra = {name: options.pop(name) for name in ("callbacks", "progress", "overwrite", "format") if name in options}
    options |= {"model": model, "output": str(output)} | ({"recipe": recipe} if isinstance(recipe, str) else {})
    if isinstance(data, str | Path):
        options["data"] = str(data)
    classes = (TrainConfig,) if isinstance(data, DataConfig) else (TrainConfig, DataConfig)
    config, *data_configs = configs_from_options(options, *classes)
    data_config = data if isinstance(data, DataConfig) else data_configs[0]
    if subnet is not None:
        return specialise(config, subnet, data_config, recipe=recipe if isinstance(recipe, Recipe) else None, **extra)
    if not isinstance(recipe, Recipe):
        recipe = with_trained_space(override_recipe(load_recipe(config.recipe), phases=config.phases), model)
    if seeds:
        return train_seeds(config, recipe, data_config, seeds, **extra)
    return train_task(config, recipe, data_config, **extra)


def train_seeds(
    config: TrainConfig, recipe: Recipe, data_config: DataConfig, seeds: Sequence[int], **options: Any
) -> dict[int, list[SubnetResult]]:
    """One run a seed, each in ``OUTPUT/seed-N``; mean and spread of their metrics in ``OUTPUT/seeds.jsonl``.

    Args: as of `train_task`, whose ``config.seed`` does not count.

    Returns:
        The results of each seed.
    """
    require(len({*seeds}) > 1, "seeds", [*seeds], "at least two different numbers")
    found = {
        seed: train_task(replace(config, seed=seed, output=f"{config.output}/seed-{seed}"), recipe, data_config,
                         **options)
        for seed in dict.fromkeys(seeds)
    }  # fmt: skip
    rows = [result.to_dict() | {"spread": spread, "seeds": [*found]} for result, spread in over_seeds(found)]
    run_on_main(lambda: write_json_lines(Path(config.output) / SEEDS_NAME, rows))
    return found


def over_seeds(found: Mapping[int, Sequence[SubnetResult]]) -> list[tuple[SubnetResult, dict[str, float]]]:
    """For each sub-network the mean of its metrics over the seeds, and their standard deviations."""
    rows = []
    for results in zip(*found.values(), strict=True):
        values = {metric: [result.metrics[metric] for result in results] for metric in results[0].metrics}
        means = {metric: float(np.mean(numbers)) for metric, numbers in values.items()}
        spread = {metric: float(np.std(numbers, ddof=1)) for metric, numbers in values.items()}
        rows.append((replace(results[0], metrics=means), spread))
    return rows


def specialise(
    config: TrainConfig,
    subnet: str,
    data_config: DataConfig,
    *,
    recipe: Recipe | None = None,
    format: str = "hf",
    overwrite: bool = False,
    **options: Any,
) -> list[SubnetResult]:
    """Fine-tune one sub-network of an elastic run, taught by the run's full size, and export it.

    Args:
        config: the run is its ``model``; ``output`` becomes the exported folder, with the results in ``results.jsonl``.
        subnet: ``WIDTHxDEPTH``, or a name found by a search or a measurement.
        data_config: settings that replace the run's own.
        recipe: with the one phase ``specialise``.
        format: of the export.
        overwrite: replace an earlier export.
        options: of `train_task`.

    Raises:
        ConfigError: if the output exists, or the model is not an elastic run on this data.
    """
    output = Path(config.output)
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise ConfigError(f"output {output} exists; choose another folder or --overwrite")
    (name,) = resolve_measured_names(config.model, [subnet])
    given = {key: value for key, value in vars(data_config).items() if value != getattr(DataConfig(), key)}
    data = override_data_config(saved_data_config(read_record(config.model)), **given)
    work = f"{output}.elastic"
    recipe = with_trained_space(recipe or override_recipe(load_recipe("limbert"), phases=["specialise"]), config.model)
    results = train_task(replace(config, output=work), recipe, data, subnet=name, overwrite=overwrite, **options)

    def export() -> None:
        export_model(work, output, subnet=name, format=format, overwrite=overwrite)
        for file in (RESULTS_NAME, LOG_NAME):
            shutil.copy(Path(work) / file, output)
        shutil.rmtree(work)

    run_on_main(export)
    return results


def train_task(
    config: TrainConfig,
    recipe: Recipe,
    data_config: DataConfig,
    *,
    data: TaskData | None = None,
    subnet: str | None = None,
    **options: Any,
) -> list[SubnetResult]:
    """Train on a task's files, as ``limbert train`` does; the results of all sub-networks on the development data.

    Args:
        config: base model, output, seed, precision.
        recipe: with the batch sizes of one process.
        data_config: where the data is.
        data: the examples that it names, if they are read already.
        subnet: name of the only sub-network that is trained and evaluated.
        options: ``callbacks``, ``progress`` and ``overwrite`` of `run_phases`.

    Raises:
        LimbertError: see `run_phases`.
    """
    check_supervision([name for name in recipe.phases if name != "specialise"], "labels")
    recipe = recipe.with_world_size(start_processes(config))
    data = data or load_task_data(data_config, seed=config.seed)
    settings = run_settings(config, recipe.to_dict(), data.config, fingerprint=task_fingerprint(data))
    return run_phases(
        config.output,
        settings | ({"subnet": subnet} if subnet else {}),
        lambda: load_run_data(config, recipe, data, subnet=subnet),
        partial(arguments_of_run, config, task_type=data.task.task_type),
        **options,
    )


def task_fingerprint(data: TaskData) -> str:
    """Of the task and its examples; files and columns do not count."""
    copies = data.augmented
    logits = None if copies is None or copies.logits is None else copies.logits.tolist()
    augmented = None if copies is None else [copies.examples.texts, copies.examples.pairs, copies.source_ids, logits]
    return json_fingerprint([data.config.fingerprints, augmented])


def load_run_data(config: TrainConfig, recipe: Recipe, data: TaskData, *, subnet: str | None = None) -> RunData:
    """Split and tokenise a task's examples for a base model, and say what they are."""
    base = load_base_checkpoint(config, data.task)
    task, max_length = base.task, min(data.config.max_length, base.max_length)
    base.tokenizer.model_max_length = max_length  # saved with the model, for programs other than this one
    if subnet is not None and not base.is_finetuned:
        raise ConfigError(f"{config.model} is not trained on these labels: {', '.join(task.labels)}")

    def tokenize(part: Examples) -> TokenizedExamples:
        return tokenize_for_task(part, task, base.tokenizer, max_length=max_length, stride=data.config.stride)

    examples = base.map_labels(data.train, data.task)
    train_part, validation_part = train_validation_split(examples, task, config)
    train_dataset, eval_dataset = tokenize(train_part), tokenize(validation_part)
    distill_dataset = None
    if data.augmented is not None:
        augmented = base.map_augmented_labels(data.augmented, data.task)
        distill_dataset = with_augmented(
            train_dataset,
            augmented,
            tokenize(augmented.examples),
            train_examples=train_part,
            validation_examples=validation_part,
        )
    dev = {name: tokenize(base.map_labels(part, data.task)) for name, part in data.dev.items()}
    phases = recipe.configured_phases()
    if base.is_finetuned and config.phases is None and "finetune" in recipe.phases:
        logger.info("%s is fine-tuned for these labels; phase finetune is skipped", config.model)
        phases = [(phase, settings) for phase, settings in phases if phase.name != "finetune"]
    warn_about_phases(
        [phase.name for phase, _ in phases], completed=base.completed_phases, is_finetuned=base.is_finetuned
    )
    baseline, validation_baseline = None, None
    if task.task_type != "question-answering":
        measured = {name: baseline_metrics(task, examples, part) for name, part in dev.items()}
        baseline = {
            metric if len(dev) == 1 else f"{name}/{metric}": value
            for name, metrics in measured.items()
            for metric, value in metrics.items()
        }
        validation_baseline = baseline_metrics(task, examples, eval_dataset)[task.primary_metric]
    _log_examples(
        config, base, data, {"train": train_dataset, "validation": eval_dataset, **dev},
        max_length=max_length, baseline=baseline,
    )  # fmt: skip
    record: dict[str, Any] = {"task": task.to_dict()}

    def selected(model: ElasticModel) -> dict[str, Subnet]:
        return model.subnets() if subnet is None else {subnet: model.subnet(subnet)}

    if subnet is not None:
        phases = [(replace(phase, select_subnets=selected), settings) for phase, settings in phases]
        record[SEARCHED_SUBNETS_KEY] = read_record(config.model).get(SEARCHED_SUBNETS_KEY, {})

    def validate(model: ElasticModel, subnets: Mapping[str, Subnet]) -> SubnetMetrics:
        return validation_metrics(model, subnets, eval_dataset, task=task, precision=config.precision)

    def evaluate_dev(model: ElasticModel) -> list[SubnetResult]:
        mine = subnets_of_rank(selected(model))  # each process measures some
        fit_temperatures(model, eval_dataset, task=task, subnets=mine, precision=config.precision)
        measured = evaluate_subnets(model, dev, task=task, subnets=mine, precision=config.precision)
        parts = all_gather_object((measured, model.record.get(TEMPERATURES_KEY, {})))
        found = {result.subnet: result for part, _ in parts for result in part}
        if temperatures := {name: value for _, part in parts for name, value in part.items()}:
            model.record[TEMPERATURES_KEY] = temperatures
        return [found[name] for name in selected(model)]

    return RunData(
        phases=phases,
        load_base=lambda: base.load_model(recipe.space),
        training={
            "train_dataset": train_dataset,
            "distill_dataset": distill_dataset,
            "eval_dataset": eval_dataset,
            "evaluate_subnets": validate,
            "metric": task.primary_metric,
            "baseline": validation_baseline,
            "processing_class": base.tokenizer,
        },
        evaluate=evaluate_dev,
        record=record,
        num_examples=sum(map(len, data.dev.values())),
        baseline=baseline,
    )


def _log_examples(
    config: TrainConfig,
    base: TaskBaseCheckpoint,
    data: TaskData,
    datasets: Mapping[str, TokenizedExamples],
    *,
    max_length: int,
    baseline: Mapping[str, float] | None,
) -> None:
    """Log the number of examples, where label ids come from, how many texts are truncated, and the baseline."""
    logger.info("examples: %s", ", ".join(f"{len(part)} {name}" for name, part in datasets.items()))
    labels = base.task.labels
    if labels:
        source = "of the training data, sorted"
        if base.is_finetuned:
            source = f"of the model {config.model}"
        elif data.config.label_names or data.config.label_columns:
            source = "as given"
        elif data.task.name is not None:
            source = f"of task {data.task.name}"
        shown = ", ".join(f"{name} = {index}" for index, name in enumerate(labels[:_MAX_SHOWN_LABELS]))
        logger.info("label ids (%s): %s%s", source, shown, ", ..." * (len(labels) > _MAX_SHOWN_LABELS))
    if base.task.task_type != "question-answering":  # which reads long texts in windows
        parts = (f"{100 * np.mean(part.lengths >= max_length):.1f} % of {name}" for name, part in datasets.items())
        logger.info("texts of %d tokens or more, truncated to that (--max-length): %s", max_length, ", ".join(parts))
    if baseline is not None:
        shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in baseline.items())
        logger.info("baseline, always predicting the same: %s", shown)


def validation_metrics(
    model: ElasticModel, subnets: Mapping[str, Subnet], dataset: TokenizedExamples, *, task: Task, precision: Any
) -> SubnetMetrics:
    """The primary metric and the loss of sub-networks on labelled examples, by name."""
    outputs = predict_subnet_logits(model, dataset, subnets=subnets, batch_size=64, precision=precision)
    primary = task.primary_metric
    return {
        name: {
            primary: compute_task_metrics(task, logits, dataset)[primary],
            "loss": _validation_loss(torch.from_numpy(logits), dataset, task),
        }
        for name, logits in outputs.items()
    }


def _validation_loss(logits: torch.Tensor, dataset: TokenizedExamples, task: Task) -> float:
    """The mean label loss; logits ``(examples, outputs)``, or ``(all tokens, outputs)`` of tasks at tokens."""
    labels, mask = dataset.labels, None
    assert labels is not None
    if task.task_type == "token-classification":
        logits, labels = logits[None], labels[None]
    elif task.task_type == "question-answering":
        logits = pad_sequence(list(logits.split(dataset.lengths.tolist())), batch_first=True)
        mask = (torch.arange(logits.shape[1]) < torch.from_numpy(dataset.lengths)[:, None]).long()
    return float(label_loss(logits, labels, task_type=task.task_type, mask=mask))


def with_augmented(
    train_dataset: TokenizedExamples,
    augmented: AugmentedExamples,
    augmented_dataset: TokenizedExamples,
    *,
    train_examples: Examples,
    validation_examples: Examples,
) -> TokenizedExamples:
    """The training examples, then their augmented ones; those made of validation examples are left out.

    A teacher's logits that come with them take the place of their labels: the label loss of a phase, if it has a
    weight, is then taken to the softmax (with several labels the sigmoid, in a regression the value).

    Args:
        train_dataset: the training examples.
        augmented: all augmented examples, with the class ids of the model.
        augmented_dataset: the same, tokenised.
        train_examples, validation_examples: the two parts of the training data.

    Raises:
        DataError: if no augmented example is left.
    """
    indices = augmented.trainable_indices(train=train_examples, validation=validation_examples)
    left_out = len(augmented) - len(indices)
    note = f"; {left_out} left out: made of validation examples or unknown ones" if left_out else ""
    logger.info("%d augmented examples in the phases with a teacher%s", len(indices), note)
    chosen = augmented_dataset.select(indices)
    if augmented.logits is None:
        return train_dataset.concatenate(chosen)
    assert train_dataset.labels is not None
    logits = torch.from_numpy(augmented.logits[indices])  # (examples, outputs)
    if train_dataset.labels.ndim > 1:  # several labels
        return train_dataset.concatenate(chosen.with_labels(logits.sigmoid()))
    if train_dataset.labels.is_floating_point():
        return train_dataset.concatenate(chosen.with_labels(logits[:, 0]))
    certain = train_dataset.with_labels(F.one_hot(train_dataset.labels, logits.shape[-1]).float())
    return certain.concatenate(chosen.with_labels(logits.softmax(dim=-1)))
