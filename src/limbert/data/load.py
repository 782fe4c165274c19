"""From the data settings to the task and its examples; everything above the data layer loads data with these."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from limbert.core.config import DataConfig
from limbert.data.augmented import AugmentedExamples, load_augmented_examples
from limbert.data.columns import choose_columns
from limbert.data.labels import label_parser
from limbert.data.metrics import label_counts
from limbert.data.readers import Examples
from limbert.data.sources import DataSource, TrainTable, find_sources
from limbert.data.task_files import load_texts as load_texts
from limbert.data.tasks import TASK_COLUMNS, Task, column_layouts, requested_task_type
from limbert.errors import ConfigError, DataError
from limbert.files import json_fingerprint

_MAX_MAJORITY = 0.8  # fraction of one class up to which accuracy alone is reported
_MAX_SHOWN_CLASSES = 20  # classes with their counts in the description of the data


@dataclass(frozen=True)
class TaskData:
    """A task with its examples, and what was read."""

    task: Task
    train: Examples
    dev: dict[str, Examples]  # only ever reported on: ``{"dev": ...}``, or MNLI's two parts
    augmented: AugmentedExamples | None = None
    config: DataConfig = field(default_factory=DataConfig, compare=False)  # with fingerprints of what was read
    description: tuple[str, ...] = field(default=(), compare=False)  # files, columns, task type and why, class counts


def load_task_data(config: DataConfig, *, seed: int) -> TaskData:
    """Load the training and development examples that the settings point to.

    The task and the label names are GLUE's, or follow from *all* training examples (see `infer_task`), before
    ``train_limit`` of them are chosen with the seed.

    Raises:
        ConfigError: settings that contradict each other, or an unknown task.
        DataError: a missing or unusable file, column or row, or other examples than the config's fingerprints say.
    """
    task_type = requested_task_type(config)
    if config.augmented is not None and task_type in TASK_COLUMNS:
        raise ConfigError(f"augmented examples are given; {task_type} cannot use them")
    source = find_sources(config, config.task, task_type)
    training = source.read_train_table()
    task, train = training.task, training.parsed.examples
    labels = train.labels or ()
    if task.task_type == "classification" and len({*labels}) < 2:
        only = task.labels[labels[0]]
        raise DataError(f"{training.table.name}: every label is {only!r}; a classification needs at least two classes")
    if config.held_out is not None and source.dev:
        raise ConfigError(f"held-out fraction is {config.held_out} beside development data; give one of them")
    options = (training.columns, task.task_type, training.parse_label)
    dev = {part: source.read(table, *options) for part, table in source.dev.items()}
    if not dev:
        train, dev = source.hold_out(train)
    task = replace(task, has_pairs=train.pairs is not None)
    is_classification = task.name is None and task.task_type == "classification"
    if is_classification and label_counts(task, train).max() > _MAX_MAJORITY * len(train):
        task = replace(task, metrics=(*task.metrics, "macro_f1"))  # accuracy hardly sees the rare classes
    if config.metric is not None:
        task = task.with_primary_metric(config.metric)
    fingerprints = {"train": _fingerprint(task, {"train": train}), "dev": _fingerprint(task, dev)}
    _check_fingerprint(source, "train", fingerprints["train"])
    augmented = None
    if config.augmented is not None:
        augmented = load_augmented_examples(config.augmented, training, skip_bad_rows=config.skip_bad_rows)
    description = _describe(training, task, train, dev)
    if config.train_limit is not None and config.train_limit < len(train):
        chosen = np.random.default_rng(seed).choice(len(train), size=config.train_limit, replace=False)
        train = train.select(np.sort(chosen).tolist())
    return TaskData(task, train, dev, augmented, replace(config, fingerprints=fingerprints), description)


def load_evaluation_data(config: DataConfig, task: Task) -> dict[str, Examples]:
    """Load only the development examples, for a task that is known from a checkpoint.

    Label ids follow ``task.labels``; a label may be written as a name or, if no name is a number, as its id.
    GLUE tasks have GLUE's layout, whether the config or the checkpoint names the task.

    Raises:
        DataError: other examples than the config's fingerprints say.
    """
    source = find_sources(config, config.task or task.name, task.task_type)
    tables = source.dev or {"dev": source.train_table}
    layouts = column_layouts(source.glue, task.task_type)
    _, columns = choose_columns(next(iter(tables.values())), config, layouts, labelled=True)
    id_names = config.label_names or (source.glue.task.labels if source.glue else ())
    if {*id_names} != {*task.labels} and task.task_type != "token-classification":
        id_names = task.labels
    parse_label = label_parser(task, id_names, config.label_separator)
    dev = {part: source.read(table, columns, task.task_type, parse_label) for part, table in tables.items()}
    if not source.dev:
        _, dev = source.hold_out(dev["dev"])
    _check_fingerprint(source, "dev", _fingerprint(task, dev))
    return dev


def read_train_table(config: DataConfig) -> TrainTable:
    """Find and read the training rows of a task whose labels are in columns; labels are not converted to ids yet."""
    task_type = requested_task_type(config)
    if task_type in TASK_COLUMNS:
        raise ConfigError(f"task is {task_type}; only texts and pairs of texts with labels in a column are augmented")
    return find_sources(config, config.task, task_type).read_train_table()


def _check_fingerprint(source: DataSource, part: str, fingerprint: str) -> None:
    if (source.config.fingerprints or {}).get(part, fingerprint) != fingerprint:
        what = "training" if part == "train" else "development"
        raise source.error(
            f"the {what} data differs from the data that the model was trained with; "
            "restore it, or give other data with --data (or --train and --dev)"
        )


def _fingerprint(task: Task, parts: Mapping[str, Examples]) -> str:
    """A digest of texts and labels; labels count by name, so that the order of ids does not matter."""

    def named(label: Any) -> Any:
        if not task.labels:
            return label
        if isinstance(label, tuple):
            names = [task.labels[index] for index in label]
            return sorted(names) if task.task_type == "multi-label" else names
        return task.labels[int(label)]

    return json_fingerprint(
        [[name, part.texts, part.pairs, [*map(named, part.labels or ())]] for name, part in sorted(parts.items())]
    )


def _describe(training: TrainTable, task: Task, train: Examples, dev: Mapping[str, Examples]) -> tuple[str, ...]:
    columns, sizes = training.columns, {"train": train, **dev}
    roles = [("text", columns.text), ("pair", columns.pair), ("label", columns.label)]
    roles += [("label", name) for name in columns.label_columns]
    shown = [f"{role} {name!r}" + " (guessed)" * (name in columns.guessed) for role, name in roles if name]
    lines = [
        f"data: {training.table.name}: {', '.join(f'{len(part)} {name}' for name, part in sizes.items())} examples",
        f"columns: {', '.join(shown)}",
        f"task: {task.name or task.task_type} ({training.reason})",
    ]
    if task.labels:
        counts = label_counts(task, train)
        classes = [f"{name} = {index} ({counts[index]})" for index, name in enumerate(task.labels[:_MAX_SHOWN_CLASSES])]
        more = f", ... ({len(task.labels)} in all)" if len(task.labels) > _MAX_SHOWN_CLASSES else ""
        lines.append(f"labels, ids and counts: {', '.join(classes)}{more}")
    return tuple(lines)
