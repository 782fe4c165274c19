"""The public function `train`, and training on a task's files: split and tokenised for a base model, then evaluated."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback

from limbert.core.config import DataConfig, TrainConfig, configs_from_options
from limbert.core.subnet import Subnet
from limbert.data.augmented import AugmentedExamples
from limbert.data.load import TaskData, load_task_data
from limbert.data.readers import Examples
from limbert.data.split import train_validation_split
from limbert.data.task_registry import baseline_metrics, compute_task_metrics, tokenize_for_task
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples
from limbert.evaluation.evaluate import Progress, evaluate_subnets, fit_temperatures, no_progress
from limbert.evaluation.results import SubnetResult
from limbert.files import json_fingerprint
from limbert.inference.base_model import load_base_checkpoint
from limbert.inference.predict import predict_subnet_logits
from limbert.method.losses import label_loss
from limbert.model.elastic import ElasticModel
from limbert.train.distributed import init_distributed
from limbert.train.model_run import train_model
from limbert.train.output_run import RunData, run_phases
from limbert.train.phases import check_supervision, warn_about_phases
from limbert.train.recipes import Recipe, load_recipe, override_recipe, with_trained_space
from limbert.train.run_folder import run_settings
from limbert.train.subnet_evaluation import SubnetMetrics

logger = logging.getLogger(__name__)


def train(model: str | Path | ElasticModel, **options: Any) -> "list[SubnetResult] | ElasticModel":
    """Train an elastic model: from files as the command does, or from datasets in memory.

    ``train("bert-base-uncased", data="tickets", output="runs/tickets", recipe="limbert")`` does what ``limbert train``
    does and returns the results of all sub-networks. ``data`` is a folder, a data set's name on the Hub or a
    `DataConfig`; further keywords are the fields of `TrainConfig` and `DataConfig`, ``callbacks`` and ``overwrite``.

    ``train(elastic_model, args=, train_dataset=, eval_dataset=, recipe=)`` takes what `transformers.Trainer` takes and
    returns the trained model, see `train_model`. Either call, repeated after an interruption, resumes.
    """
    return train_model(model, **options) if isinstance(model, ElasticModel) else train_files(str(model), **options)


def train_files(
    model: str,
    *,
    data: str | Path | DataConfig,
    output: str | Path,
    recipe: str | Recipe = "limbert",
    callbacks: Sequence[TrainerCallback] = (),
    progress: Progress = no_progress,
    overwrite: bool = False,
    **options: Any,
) -> list[SubnetResult]:
    """`train` from files; see there."""
    options |= {"model": model, "output": str(output)} | ({"recipe": recipe} if isinstance(recipe, str) else {})
    if not isinstance(data, DataConfig):
        options["data"] = str(data)
    classes = (TrainConfig,) if isinstance(data, DataConfig) else (TrainConfig, DataConfig)
    config, *data_configs = configs_from_options(options, *classes)
    if isinstance(recipe, str):
        recipe = with_trained_space(override_recipe(load_recipe(recipe), phases=config.phases), model)
    data_config = data if isinstance(data, DataConfig) else data_configs[0]
    return train_task(config, recipe, data_config, callbacks=callbacks, progress=progress, overwrite=overwrite)


def train_task(
    config: TrainConfig,
    recipe: Recipe,
    data_config: DataConfig,
    *,
    data: TaskData | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    progress: Progress = no_progress,
    overwrite: bool = False,
) -> list[SubnetResult]:
    """Train on a task's files, as ``limbert train`` does; the results of all sub-networks on the development data.

    Args:
        config: base model, output, seed, precision.
        recipe: with the batch sizes of one process.
        data_config: where the data is.
        data: the examples that it names, if they are read already.
        callbacks, progress, overwrite: see `run_phases`.

    Raises:
        LimbertError: see `run_phases`.
    """
    check_supervision(recipe.phases, "labels")
    recipe = recipe.with_world_size(init_distributed())
    data = data or load_task_data(data_config, seed=config.seed)
    return run_phases(
        config,
        recipe,
        settings=run_settings(config, recipe.to_dict(), data.config, fingerprint=task_fingerprint(data)),
        load_data=lambda: load_run_data(config, recipe, data),
        callbacks=callbacks,
        progress=progress,
        overwrite=overwrite,
    )


def task_fingerprint(data: TaskData) -> str:
    """Of the task and its examples; files and columns do not count."""
    copies = data.augmented
    logits = None if copies is None or copies.logits is None else copies.logits.tolist()
    augmented = None if copies is None else [copies.examples.texts, copies.examples.pairs, copies.source_ids, logits]
    return json_fingerprint([data.config.fingerprints, augmented])


def load_run_data(config: TrainConfig, recipe: Recipe, data: TaskData) -> RunData:
    """Split and tokenise a task's examples for a base model."""
    base = load_base_checkpoint(config, data.task)
    task, max_length = base.task, min(data.config.max_length, base.max_length)
    base.tokenizer.model_max_length = max_length  # saved with the model, for programs other than this one

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
    skipped = "finetune" if base.is_finetuned and config.phases is None and "finetune" in recipe.phases else None
    if skipped:
        logger.info("%s is fine-tuned for these labels; phase finetune is skipped", config.model)
    phases, precision = [name for name in recipe.phases if name != skipped], config.precision
    warn_about_phases(phases, completed=base.completed_phases, is_finetuned=base.is_finetuned)

    def load_phase(folder: Path) -> ElasticModel:
        return ElasticModel.from_pretrained(folder, space=recipe.space)

    def validate(model: ElasticModel, subnets: Mapping[str, Subnet]) -> SubnetMetrics:
        return validation_metrics(model, subnets, eval_dataset, task=task, precision=precision)

    def evaluate_dev(model: ElasticModel, subnets: Mapping[str, Subnet]) -> list[SubnetResult]:
        fit_temperatures(model, eval_dataset, task=task, subnets=subnets, precision=precision)
        return evaluate_subnets(model, dev, task=task, subnets=subnets, precision=precision)

    return RunData(
        tokenizer=base.tokenizer,
        load_base=lambda: base.load_model(recipe.space),
        load_phase=load_phase,
        train_dataset=train_dataset,
        distill_dataset=distill_dataset,
        eval_dataset=eval_dataset,
        evaluate_subnets=validate,
        evaluate_dev=evaluate_dev,
        metric=task.primary_metric,
        num_dev_examples=sum(map(len, data.dev.values())),
        baseline=_baseline(task, examples, dev),
        record={"task": task.to_dict()},
        completed_phases=base.completed_phases,
        skipped_phase=skipped,
        task_type=task.task_type,
    )


def _baseline(task: Task, train: Examples, dev: Mapping[str, TokenizedExamples]) -> dict[str, float] | None:
    """Metrics of the best constant prediction, with several development sets by ``SET/METRIC``."""
    if task.task_type == "question-answering":
        return None
    measured = {name: baseline_metrics(task, train, part) for name, part in dev.items()}
    return {
        metric if len(dev) == 1 else f"{name}/{metric}": value
        for name, metrics in measured.items()
        for metric, value in metrics.items()
    }


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
