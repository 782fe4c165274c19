"""From the data settings to the task and its examples; everything above the data layer loads data with these."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from limbert.core.config import DataConfig, TaskType
from limbert.data.augmented import AugmentedExamples, load_augmented_examples
from limbert.data.columns import check_columns, choose_columns, with_columns
from limbert.data.labels import LabelParser, infer_task, task_type_reason
from limbert.data.metrics import label_counts
from limbert.data.readers import Examples, TableExamples, TrainTable, read_examples
from limbert.data.sources import DataSources, find_sources
from limbert.data.split import split_by_group
from limbert.data.table import Table
from limbert.data.task_files import load_texts as load_texts
from limbert.data.task_files import row_parser
from limbert.data.tasks import (
    TASK_COLUMNS,
    Columns,
    GlueTask,
    Task,
    column_layouts,
    find_glue_task,
    requested_task_type,
)
from limbert.errors import ConfigError, DataError
from limbert.files import json_fingerprint

_HELD_OUT_SEED = 0  # the same development examples in every run
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


def load_task_data(config: DataConfig, *, seed: int, splits: Mapping[str, Any] | None = None) -> TaskData:
    """Load the training and development examples that the settings point to.

    The task and the label names are GLUE's, or follow from *all* training examples (see `infer_task`), before
    ``train_limit`` of them are chosen.

    Args:
        config: where the data is and how to read it.
        seed: chooses the examples under ``train_limit``.
        splits: ``datasets.Dataset`` by split name, in place of the files that the config names.

    Raises:
        ConfigError: settings that contradict each other, or an unknown task.
        DataError: a missing or unusable file, column or row, or other examples than the config's fingerprints say.
    """
    task_type = requested_task_type(config)
    if config.augmented is not None and task_type in TASK_COLUMNS:
        raise ConfigError(f"augmented examples are given; {task_type} cannot use them")
    source = _find(config, config.task, task_type, splits)
    training = source.read_train_table()
    task, train = training.task, training.examples(skip_bad_rows=config.skip_bad_rows).examples
    labels = train.labels or ()
    if task.task_type == "classification" and len({*labels}) < 2:
        only = task.labels[labels[0]]
        raise DataError(f"{training.table.name}: every label is {only!r}; a classification needs at least two classes")
    if config.held_out is not None and source.tables.dev:
        raise ConfigError(f"held-out fraction is {config.held_out} beside development data; give one of them")
    dev = source.read_dev(training.columns, training.label_parser)
    if not dev:
        train, dev = source.hold_out(train)
    task = replace(task, has_pairs=train.pairs is not None)
    is_classification = task.name is None and task.task_type == "classification"
    if is_classification and label_counts(task, train).max() > _MAX_MAJORITY * len(train):
        task = replace(task, metrics=(*task.metrics, "macro_f1"))  # accuracy hardly sees the rare classes
    if config.metric is not None:
        task = task.with_primary_metric(config.metric)
    fingerprints = {"train": _fingerprint(task, {"train": train}), "dev": _fingerprint(task, dev)}
    source.check_fingerprint(fingerprints["train"], "train")
    augmented = None
    if config.augmented is not None:
        augmented = load_augmented_examples(config.augmented, training, skip_bad_rows=config.skip_bad_rows)
    description = _describe(config, task, train, dev, training)
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
    source = _find(config, config.task or task.name, task.task_type)
    if not source.tables.dev and config.held_out is None:
        raise source.no_dev_error()
    table = next(iter(source.tables.dev.values()), None) or source.train_table
    _, columns = choose_columns(table, config, source.layouts, labelled=True)
    id_names = config.label_names or (source.glue.task.labels if source.glue else ())
    if {*id_names} != {*task.labels} and task.task_type != "token-classification":
        id_names = task.labels
    parser = LabelParser(task, id_names, config.label_separator)
    dev = source.read_dev(columns, parser) or source.hold_out(source.read(source.train_table, columns, parser))[1]
    source.check_fingerprint(_fingerprint(task, dev), "dev")
    return dev


def read_train_table(config: DataConfig) -> TrainTable:
    """Find and read the training rows of a task whose labels are in columns; labels are not converted to ids yet."""
    task_type = requested_task_type(config)
    if task_type in TASK_COLUMNS:
        raise ConfigError(f"task is {task_type}; only texts and pairs of texts with labels in a column are augmented")
    return _find(config, config.task, task_type).read_train_table()


def _find(
    config: DataConfig, task_name: str | None, task_type: TaskType | None, splits: Mapping[str, Any] | None = None
) -> "_DataSource":
    glue = find_glue_task(task_name, task_type)
    return _DataSource(config, task_type, glue, find_sources(config, glue, task_type=task_type, splits=splits))


@dataclass(frozen=True)
class _DataSource:
    """Where the examples of a task are, and how they are read."""

    config: DataConfig
    task_type: TaskType | None
    glue: GlueTask | None
    tables: DataSources

    @property
    def layouts(self) -> tuple[Columns, ...]:
        return column_layouts(self.glue, self.task_type)

    @property
    def name(self) -> str:
        return self.config.data or self.config.train or self.config.dev or str(self.config.task)

    @property
    def train_table(self) -> Table:
        if self.tables.train is None:
            raise DataError(f"{self.name}: no training data; expected train.* in the folder, or a training file")
        return self.tables.train

    def read_train_table(self) -> TrainTable:
        config = self.config
        table, columns = choose_columns(self.train_table, config, self.layouts, labelled=True)
        raw = self._read_raw(table, columns, self.task_type)
        if self.glue is not None:
            task = _glue_task_with_config(self.glue, config)
        else:
            class_names = table.class_names.get(columns.label or "")
            task = infer_task(raw.examples.labels or (), config, class_names=class_names, source=table.name)
        # If the names come from the labels themselves, an id in place of a name is a mistake.
        id_names = config.label_names or (task.labels if self.glue else ())
        return TrainTable(table, columns, raw, LabelParser(task, id_names, config.label_separator))

    def read_dev(self, columns: Columns, parser: LabelParser) -> dict[str, Examples]:
        return {part: self.read(table, columns, parser) for part, table in self.tables.dev.items()}

    def read(self, table: Table, columns: Columns, parser: LabelParser) -> Examples:
        table = with_columns(table, columns)
        raw = self._read_raw(table, check_columns(table, columns), parser.task.task_type)
        return raw.parse_labels(parser.parse, skip_bad_rows=self.config.skip_bad_rows).examples

    def _read_raw(self, table: Table, columns: Columns, task_type: TaskType | None) -> TableExamples:
        parse, excluded = row_parser(task_type), self.glue.excluded_labels if self.glue else ()
        return read_examples(table, columns, parse, skip_bad_rows=self.config.skip_bad_rows, excluded_labels=excluded)

    def hold_out(self, train: Examples) -> tuple[Examples, dict[str, Examples]]:
        if self.config.held_out is None:
            raise self.no_dev_error()
        rest, dev = split_by_group(train, fraction=self.config.held_out, seed=_HELD_OUT_SEED)
        return rest, {"dev": dev}

    def no_dev_error(self) -> DataError:
        return DataError(
            f"{self.name}: no development data; expected dev.* in the folder, a development file, or a "
            "fraction of the training data to hold out (--held-out 0.1)"
        )

    def check_fingerprint(self, fingerprint: str, part: str) -> None:
        if (self.config.fingerprints or {}).get(part, fingerprint) != fingerprint:
            what = "training" if part == "train" else "development"
            raise DataError(
                f"{self.name}: the {what} data differs from the data that the model was trained with; "
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


def _glue_task_with_config(glue: GlueTask, config: DataConfig) -> Task:
    """The GLUE task, with other label names (in their order) if the config gives as many."""
    if config.task_type not in (None, glue.task.task_type):
        raise ConfigError(f"task type is {config.task_type}; it must be {glue.task.task_type} for {glue.task.name}")
    labels = config.label_names or glue.task.labels
    if len(labels) != len(glue.task.labels):
        raise ConfigError(f"label names are {list(labels)}; they must be {len(glue.task.labels)} for {glue.task.name}")
    return replace(glue.task, labels=labels)


def _describe(
    config: DataConfig, task: Task, train: Examples, dev: Mapping[str, Examples], training: TrainTable
) -> tuple[str, ...]:
    sizes = ", ".join(f"{len(part)} {name}" for name, part in {"train": train, **dev}.items())
    columns = training.columns
    roles = [("text", columns.text), ("pair", columns.pair), ("label", columns.label)]
    roles += [("label", name) for name in columns.label_columns]
    shown = [f"{role} {name!r}" + " (guessed)" * (name in columns.guessed) for role, name in roles if name]
    reason = task_type_reason(training.raw.examples.labels or (), config, task)
    lines = [
        f"data: {training.table.name}: {sizes} examples",
        "columns: " + ", ".join(shown),
        f"task: {task.name or task.task_type} ({reason})",
    ]
    if task.labels:
        counts = label_counts(task, train)
        classes = [f"{name} = {index} ({counts[index]})" for index, name in enumerate(task.labels[:_MAX_SHOWN_CLASSES])]
        more = f", ... ({len(task.labels)} in all)" if len(task.labels) > _MAX_SHOWN_CLASSES else ""
        lines.append(f"labels, ids and counts: {', '.join(classes)}{more}")
    return tuple(lines)
