"""From the data settings to the task and its examples; everything above the data layer loads data with these."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from limbert.core.config import DataConfig, TaskType
from limbert.data.augmented import AugmentedExamples, load_augmented_examples
from limbert.data.columns import TableOpener, check_columns, choose_columns
from limbert.data.labels import LabelParser, are_scores, are_two_whole_values, infer_task, label_text
from limbert.data.metrics import label_counts
from limbert.data.readers import Examples, TableExamples, TrainTable, read_examples, read_texts
from limbert.data.sources import DataSources, find_sources
from limbert.data.split import split_by_group
from limbert.data.table import Table
from limbert.data.task_registry import TASK_HANDLERS, TaskFileReader
from limbert.data.tasks import Columns, GlueTask, Task, glue_task, requested_task_type
from limbert.errors import ConfigError, DataError
from limbert.files import json_fingerprint

LabelledReader = Callable[[TableOpener], Examples]

_HELD_OUT_SEED = 0  # the same development examples in every run
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
        splits: ``datasets.Dataset`` by split name (a ``DatasetDict``), in place of the files that the config names.

    Raises:
        ConfigError: settings that contradict each other, or an unknown task.
        DataError: a missing or unusable file, column or row, or other examples than the config's fingerprints say.
    """
    task_type = requested_task_type(config)
    file_reader, glue, sources = _locate(config, task_type, config.task, splits)
    training = None
    if file_reader is not None:
        if config.augmented is not None:
            raise ConfigError(f"augmented examples are given; {task_type} cannot use them")
        task, train = file_reader.read_labelled(_train_opener(sources, config)(True), config, None)
        read = _file_labelled_reader(file_reader, config, task)
    else:
        training = _read_train_table(config, glue, sources)
        task, parser = training.task, training.label_parser
        train = training.examples.parse_labels(parser.parse, skip_bad_rows=config.skip_bad_rows).examples
        assert train.labels is not None
        if task.task_type == "classification" and len({*train.labels}) < 2:
            raise DataError(
                f"{training.table.name}: every label is {task.labels[train.labels[0]]!r}; "
                "a classification needs at least two classes"
            )
        read = _table_labelled_reader(config, glue, training.columns, parser)
    if config.held_out is not None and sources.dev:
        raise ConfigError(f"held-out fraction is {config.held_out} beside development data; give one of them")
    dev = {part: read(opener) for part, opener in sources.dev.items()}
    if not dev:
        train, dev = _hold_out(train, config)
    task = replace(task, has_pairs=train.pairs is not None)
    if config.metric is not None:
        task = task.with_primary_metric(config.metric)
    fingerprints = {"train": _fingerprint(task, {"train": train}), "dev": _fingerprint(task, dev)}
    _check_fingerprint(config, fingerprints["train"], "train")
    augmented = None
    if training is not None and config.augmented is not None:
        augmented = load_augmented_examples(config.augmented, training, skip_bad_rows=config.skip_bad_rows)
    return TaskData(
        task,
        _subsample(train, config.train_limit, seed=seed),
        dev,
        augmented,
        config=replace(config, fingerprints=fingerprints),
        description=_describe(config, task, train, dev, training),
    )


def load_evaluation_data(config: DataConfig, task: Task) -> dict[str, Examples]:
    """Load only the development examples, for a task that is known from a checkpoint.

    Label ids follow ``task.labels``; a label may be written as a name or, if no name is a number, as its id.
    GLUE tasks have GLUE's layout, whether the config or the checkpoint names the task.

    Raises:
        DataError: other examples than the config's fingerprints say.
    """
    file_reader, glue, sources = _locate(config, task.task_type, config.task or task.name, None)
    if not sources.dev and config.held_out is None:
        raise DataError(_no_dev_message(config))
    if file_reader is not None:
        read = _file_labelled_reader(file_reader, config, task)
    else:
        opener = next(iter(sources.dev.values()), None) or _train_opener(sources, config)
        _, columns = choose_columns(opener, config, glue, labelled=True)
        parser = LabelParser(task, accept_ids=True, separator=config.label_separator)
        read = _table_labelled_reader(config, glue, columns, parser)
    dev = {part: read(opener) for part, opener in sources.dev.items()}
    dev = dev or _hold_out(read(_train_opener(sources, config)), config)[1]
    _check_fingerprint(config, _fingerprint(task, dev), "dev")
    return dev


def load_texts(path: str | Path, config: DataConfig, *, task_type: TaskType | None = None) -> Examples:
    """Load texts, or pairs of texts, without labels: for prediction.

    A ``.txt`` file holds one text per line. Any other file is read as training files are, with the same columns, with
    or without a label column.
    """
    reader = TASK_HANDLERS[task_type].file_reader if task_type else None
    return (reader.read_unlabelled if reader else read_texts)(Path(path).expanduser(), config)


def read_train_table(config: DataConfig) -> TrainTable:
    """Find and read the training rows of a task whose labels are in columns; labels are not converted to ids yet."""
    file_reader, glue, sources = _locate(config, task_type := requested_task_type(config), config.task, None)
    if file_reader is not None:
        raise ConfigError(f"task is {task_type}; only texts and pairs of texts with labels in a column are augmented")
    return _read_train_table(config, glue, sources)


def _locate(
    config: DataConfig, task_type: TaskType | None, task_name: str | None, splits: Mapping[str, Any] | None
) -> tuple[TaskFileReader | None, GlueTask | None, DataSources]:
    """How the task type reads its own files (None for tables of texts and labels), the GLUE task, and the tables."""
    reader = TASK_HANDLERS[task_type].file_reader if task_type else None
    if reader is not None:
        sources = find_sources(config, None, formats=reader.formats, open_file=reader.open_table, splits=splits)
        return reader, None, sources
    glue = glue_task(task_name) if task_name is not None else None
    return None, glue, find_sources(config, glue, splits=splits)


def _read_train_table(config: DataConfig, glue: GlueTask | None, sources: DataSources) -> TrainTable:
    table, columns = choose_columns(_train_opener(sources, config), config, glue, labelled=True)
    is_multi_label = requested_task_type(config) == "multi-label"
    examples = _read_rows(table, columns, config, glue, multi_label=is_multi_label)
    if glue is not None:
        task = _glue_task_with_config(glue, config)
    else:
        class_names = table.class_names.get(columns.label or "")
        task = infer_task(examples.examples.labels or (), config, class_names=class_names, source=table.name)
    # If the names come from the labels themselves, an id in place of a name is a mistake.
    accept_ids = glue is not None or config.label_names is not None
    parser = LabelParser(task, accept_ids=accept_ids, separator=config.label_separator)
    return TrainTable(table, columns, examples, parser)


def _train_opener(sources: DataSources, config: DataConfig) -> TableOpener:
    if sources.train is None:
        raise DataError(
            f"{_data_location(config)}: no training data; expected train.* in the folder, or a training file"
        )
    return sources.train


def _file_labelled_reader(file_reader: TaskFileReader, config: DataConfig, task: Task) -> LabelledReader:
    return lambda opener: file_reader.read_labelled(opener(True), config, task)[1]


def _table_labelled_reader(
    config: DataConfig, glue: GlueTask | None, columns: Columns, label_parser: LabelParser
) -> LabelledReader:
    def read(opener: TableOpener) -> Examples:
        table = opener(not columns.are_positions)
        check_columns(table, columns)
        is_multi_label = label_parser.task.task_type == "multi-label"
        examples = _read_rows(table, columns, config, glue, multi_label=is_multi_label)
        return examples.parse_labels(label_parser.parse, skip_bad_rows=config.skip_bad_rows).examples

    return read


def _read_rows(
    table: Table, columns: Columns, config: DataConfig, glue: GlueTask | None, *, multi_label: bool
) -> TableExamples:
    excluded = glue.excluded_labels if glue else ()
    return read_examples(
        table, columns, skip_bad_rows=config.skip_bad_rows, excluded_labels=excluded, multi_label=multi_label
    )


def _hold_out(train: Examples, config: DataConfig) -> tuple[Examples, dict[str, Examples]]:
    if config.held_out is None:
        raise DataError(_no_dev_message(config))
    rest, dev = split_by_group(train, fraction=config.held_out, seed=_HELD_OUT_SEED)
    return rest, {"dev": dev}


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


def _check_fingerprint(config: DataConfig, fingerprint: str, part: str) -> None:
    if (config.fingerprints or {}).get(part, fingerprint) != fingerprint:
        what = "training" if part == "train" else "development"
        raise DataError(
            f"{_data_location(config)}: other {what} data than the model was trained with; "
            "restore it, or name the data with --data (or --train and --dev)"
        )


def _glue_task_with_config(glue: GlueTask, config: DataConfig) -> Task:
    """The GLUE task, with other label names (in their order) if the config gives as many."""
    if config.task_type not in (None, glue.task.task_type):
        raise ConfigError(f"task type is {config.task_type}; it must be {glue.task.task_type} for {glue.task.name}")
    if config.label_names is None:
        return glue.task
    if len(config.label_names) != len(glue.task.labels):
        raise ConfigError(
            f"label names are {list(config.label_names)}; they must be {len(glue.task.labels)} for {glue.task.name}"
        )
    return replace(glue.task, labels=config.label_names)


def _subsample(examples: Examples, limit: int | None, *, seed: int) -> Examples:
    if limit is None or limit >= len(examples):
        return examples
    chosen = np.random.default_rng(seed).choice(len(examples), size=limit, replace=False)
    return examples.select(np.sort(chosen).tolist())


def _describe(
    config: DataConfig, task: Task, train: Examples, dev: Mapping[str, Examples], training: TrainTable | None
) -> tuple[str, ...]:
    sizes = ", ".join(f"{len(part)} {name}" for name, part in {"train": train, **dev}.items())
    lines = [f"data: {training.table.name if training else _data_location(config)}: {sizes} examples"]
    if training is not None:
        columns = training.columns
        roles = [("text", columns.text), ("pair", columns.pair), ("label", columns.label)]
        roles += [("label", name) for name in columns.label_columns]
        shown = [f"{role} {name!r}" + " (guessed)" * (name in columns.guessed) for role, name in roles if name]
        lines.append("columns: " + ", ".join(shown))
    lines.append(f"task: {task.name or task.task_type} ({_task_type_reason(config, task, training)})")
    if task.labels:
        counts = label_counts(task, train)
        classes = [f"{name} = {index} ({counts[index]})" for index, name in enumerate(task.labels[:_MAX_SHOWN_CLASSES])]
        more = f", ... ({len(task.labels)} in all)" if len(task.labels) > _MAX_SHOWN_CLASSES else ""
        lines.append(f"labels, ids and counts: {', '.join(classes)}{more}")
    return tuple(lines)


def _task_type_reason(config: DataConfig, task: Task, training: TrainTable | None) -> str:
    if task.name is not None or requested_task_type(config) is not None or training is None:
        return "as given"
    if task.task_type == "multi-label":
        return "labels are lists"
    texts = [label_text(value) for value in training.examples.examples.labels or ()]
    if are_scores(texts):
        return "labels are numbers with a decimal point; --task-type classification makes them classes"
    if are_two_whole_values(texts):
        return "labels are two whole numbers; --task-type regression makes them scores"
    return "from the labels"


def _data_location(config: DataConfig) -> str:
    return config.data or config.train or config.dev or str(config.task)


def _no_dev_message(config: DataConfig) -> str:
    return (
        f"{_data_location(config)}: no development data; expected dev.* in the folder, a development file, or a "
        "fraction of the training data to hold out (--held-out 0.1)"
    )
