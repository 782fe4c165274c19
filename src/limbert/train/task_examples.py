"""A task's examples as a run trains on them: split and tokenised for a base model, described, and evaluated."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from limbert.core.config import Precision, TrainConfig
from limbert.core.subnet import Subnet
from limbert.data.augmented import AugmentedExamples
from limbert.data.load import TaskData
from limbert.data.readers import Examples
from limbert.data.split import train_validation_split
from limbert.data.task_registry import baseline_metrics, compute_task_metrics, tokenize_for_task
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError
from limbert.evaluation.evaluate import evaluate_subnets, fit_temperatures
from limbert.evaluation.results import SubnetResult
from limbert.inference.base_model import TaskBaseCheckpoint, load_base_checkpoint
from limbert.inference.load import warn_about_skipped_rows
from limbert.inference.predict import predict_subnet_logits
from limbert.method.losses import label_loss
from limbert.model.checkpoint import SEARCHED_SUBNETS_KEY, read_record
from limbert.model.elastic import ElasticModel
from limbert.train.data import resolve_class_weights
from limbert.train.output_run import RunData
from limbert.train.phases import ConfiguredPhase, select_only, warn_about_phases
from limbert.train.recipes import Recipe
from limbert.train.subnet_trainer import SubnetMetrics

logger = logging.getLogger(__name__)

_MAX_SHOWN_LABELS = 20
_LARGE_REGRESSION_LABEL = 100  # above it, labels are too large for the learning rates of an encoder


def load_run_data(config: TrainConfig, recipe: Recipe, data: TaskData, *, subnet: str | None = None) -> RunData:
    """Split and tokenise a task's examples for a base model, and say what they are; arguments as of `train_task`."""
    base = load_base_checkpoint(config, data.task)
    task, max_length = base.task, min(data.config.max_length, base.max_length)
    base.tokenizer.model_max_length = max_length  # saved with the model, for programs other than this one
    if subnet is not None and not base.is_finetuned:
        raise ConfigError(f"{config.model} is not trained on these labels: {', '.join(task.labels)}")

    def tokenize(part: Examples) -> TokenizedExamples:
        return tokenize_for_task(part, task, base.tokenizer, max_length=max_length, stride=data.config.stride)

    examples = base.map_labels(data.train, data.task)
    train_part, validation_part = train_validation_split(examples, task, config)
    train, validation, distill = tokenize(train_part), tokenize(validation_part), None
    if data.augmented is not None:
        augmented = base.map_augmented_labels(data.augmented, data.task)
        parts = {"train_examples": train_part, "validation_examples": validation_part}
        distill = with_augmented(train, augmented, tokenize(augmented.examples), **parts)
    dev = {name: tokenize(base.map_labels(part, data.task)) for name, part in data.dev.items()}
    phases = _phases(config, recipe, base, train.labels)
    baselines: dict[str, dict[str, float]] = {}
    if task.task_type != "question-answering":
        baselines = {name: baseline_metrics(task, examples, part) for name, part in (dev | {"": validation}).items()}
    validation_baseline = baselines.pop("", {}).get(task.primary_metric)
    baseline = {
        metric if len(dev) == 1 else f"{name}/{metric}": value
        for name, metrics in baselines.items()
        for metric, value in metrics.items()
    }
    _describe(config, base, data, {"train": train, "validation": validation, **dev}, max_length, baseline)
    record: dict[str, Any] = {"task": task.to_dict()}
    if subnet is not None:
        phases = [(select_only(phase, subnet), settings) for phase, settings in phases]
        record[SEARCHED_SUBNETS_KEY] = read_record(config.model).get(SEARCHED_SUBNETS_KEY, {})

    def evaluate_dev(model: ElasticModel, subnets: Mapping[str, Subnet]) -> list[SubnetResult]:
        fit_temperatures(model, validation, task=task, subnets=subnets, precision=config.precision)
        return evaluate_subnets(model, dev, task=task, subnets=subnets, precision=config.precision)

    return RunData(
        model=base.load_model(recipe.space),
        phases=phases,
        training={
            "train_dataset": train,
            "distill_dataset": distill,
            "eval_dataset": validation,
            "evaluate_subnets": partial(validation_metrics, dataset=validation, task=task, precision=config.precision),
            "metric": task.primary_metric,
            "baseline": validation_baseline,
            "processing_class": base.tokenizer,
        },
        evaluate=evaluate_dev,
        record=record,
        num_examples=sum(map(len, data.dev.values())),
        baseline=baseline or None,
        subnet=subnet,
    )


def _phases(
    config: TrainConfig, recipe: Recipe, base: TaskBaseCheckpoint, labels: torch.Tensor | None
) -> list[ConfiguredPhase]:
    """The phases to run; warnings for those without what they build on, ConfigError for impossible class weights."""
    phases, weights, task = recipe.configured_phases(), config.class_weight_values, base.task
    if base.is_finetuned and config.phases is None and "finetune" in recipe.phases:
        logger.info("%s is fine-tuned for these labels; phase finetune is skipped", config.model)
        phases = [(phase, settings) for phase, settings in phases if phase.name != "finetune"]
    resolve_class_weights(weights, labels, num_labels=task.num_outputs, task_type=task.task_type)
    if weights is not None and not any(getattr(settings, "label_weight", 0) for _, settings in phases):
        logger.warning("class weights change nothing: no phase of this run has a label_weight")
    names = [phase.name for phase, _ in phases]
    warn_about_phases(names, completed=base.completed_phases, is_finetuned=base.is_finetuned)
    return phases


def _describe(
    config: TrainConfig,
    base: TaskBaseCheckpoint,
    data: TaskData,
    parts: Mapping[str, TokenizedExamples],
    max_length: int,
    baseline: Mapping[str, float],
) -> None:
    """Log what was read, where label ids come from, how many texts are truncated, and the baseline."""
    for line in data.description:
        logger.info("%s", line)
    warn_about_skipped_rows({"train": data.train} | data.dev)
    largest = max(map(abs, data.train.labels or ()), default=0) if base.task.task_type == "regression" else 0  # type: ignore[arg-type]
    if largest > _LARGE_REGRESSION_LABEL:
        note = "labels reach %g; a regression head learns values up to about 10 fastest: scale them first"
        logger.warning(note, largest)
    logger.info("examples: %s", ", ".join(f"{len(part)} {name}" for name, part in parts.items()))
    labels = base.task.labels
    if labels and base.is_finetuned:
        shown = ", ".join(f"{name} = {index}" for index, name in enumerate(labels[:_MAX_SHOWN_LABELS]))
        logger.info("label ids: those of the model %s: %s", config.model, shown)
    elif labels:
        given = data.config.label_names or data.config.label_columns
        source = f"those of task {data.task.name}" if data.task.name else "the order of the training data's names"
        logger.info("label ids: %s", "as given" if given else source)
    if base.task.task_type != "question-answering":  # which reads long texts in windows
        shares = (f"{100 * np.mean(part.lengths >= max_length):.1f} % of {name}" for name, part in parts.items())
        logger.info("texts of %d tokens or more, truncated to that (--max-length): %s", max_length, ", ".join(shares))
    if baseline:
        metrics = ", ".join(f"{name} {100 * value:.1f}" for name, value in baseline.items())
        logger.info("baseline, always predicting the same: %s", metrics)


def validation_metrics(
    model: ElasticModel, subnets: Mapping[str, Subnet], *, dataset: TokenizedExamples, task: Task, precision: Precision
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
    train: TokenizedExamples,
    augmented: AugmentedExamples,
    tokens: TokenizedExamples,
    *,
    train_examples: Examples,
    validation_examples: Examples,
) -> TokenizedExamples:
    """The training examples, then their augmented ones; those made of validation examples are left out.

    A teacher's logits that come with them take the place of their labels: the label loss of a phase, if it has a
    weight, is then taken to the softmax (with several labels the sigmoid, in a regression the value). ``tokens`` are
    those of ``augmented``, which has the class ids of the model. DataError if no augmented example is left.
    """
    indices = augmented.trainable_indices(train=train_examples, validation=validation_examples)
    left_out = len(augmented) - len(indices)
    note = f"; {left_out} left out: made of validation examples or unknown ones" if left_out else ""
    logger.info("%d augmented examples in the phases with a teacher%s", len(indices), note)
    chosen, labels = tokens.select(indices), train.labels
    if augmented.logits is None or labels is None:
        return train.concatenate(chosen)
    logits = torch.from_numpy(augmented.logits[indices])  # (examples, outputs)
    if labels.ndim > 1:  # several labels
        return train.concatenate(chosen.with_labels(logits.sigmoid()))
    if labels.is_floating_point():
        return train.concatenate(chosen.with_labels(logits[:, 0]))
    certain = train.with_labels(F.one_hot(labels, logits.shape[-1]).float())
    return certain.concatenate(chosen.with_labels(logits.softmax(dim=-1)))
