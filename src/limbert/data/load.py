"""From the data settings to the task and its examples: the one door through which the rest of Limbert gets data."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from limbert.core.config import DataConfig, TaskType
from limbert.data.augmented import AugmentedExamples, load_augmented_examples
from limbert.data.labels import DEFAULT_LABEL_SEPARATOR, LabelParser, infer_task
from limbert.data.readers import (
    DataSources,
    Examples,
    RawExamples,
    Table,
    check_columns,
    choose_columns,
    find_sources,
    parse_labels,
    read_raw_examples,
    read_texts,
)
from limbert.data.split import split_by_group
from limbert.data.task_registry import TaskFileReader, file_reader_for
from limbert.data.tasks import Columns, GlueTask, Task, glue_task, requested_task_type
from limbert.errors import ConfigError, DataError

_DEV_SPLIT_SEED = 0


@dataclass(frozen=True)
class TaskData:
    """A task with its examples. ``dev`` is only ever reported on: ``{"dev": ...}``, or MNLI's two parts."""

    task: Task
    train: Examples
    dev: dict[str, Examples]
    augmented: AugmentedExamples | None = None  # copies of training rows, where the settings name a file of them


@dataclass(frozen=True)
class TrainTable:
    """The training rows as they stand in their table, and what they say about the task."""

    task: Task
    glue_task: GlueTask | None
    sources: DataSources
    table: Table
    columns: Columns
    raw_examples: RawExamples
    label_parser: LabelParser


def load_task_data(config: DataConfig, *, seed: int) -> TaskData:
    """Load the training and development examples that the settings point to.

    The task and the label names are GLUE's, or follow from the *whole* training data (see ``labels.infer_task``),
    before ``train_limit`` rows of it are chosen.

    Args:
        config: where the data is and how to read it.
        seed: chooses the rows under ``train_limit``.

    Raises:
        ConfigError: settings that contradict each other or an unknown task.
        DataError: a missing or unusable file, column or row.
    """
    reader_of_kind = file_reader_for(requested_task_type(config))
    if reader_of_kind is not None:
        if config.augmented is not None:
            raise ConfigError(f"augmented rows are given for {requested_task_type(config)}; it has no such copies")
        return _load_with_reader(reader_of_kind, config, seed=seed)
    found = read_train_table(config)
    task, reader = found.task, found.label_parser
    train = parse_labels(found.raw_examples, reader, skip_bad_rows=config.skip_bad_rows)
    if task.task_type == "classification" and len(set(train.labels or ())) < 2:
        raise DataError(
            f"{found.table.name}: every label is {task.labels[int((train.labels or (0,))[0])]!r}; "
            "a classification needs at least two classes"
        )
    if config.held_out is not None:
        _check_single_dev_source(found.sources, config)
        train, dev = _split_dev(train, config.held_out)
    else:
        dev = _load_dev(found.sources, found.columns, config, glue=found.glue_task, label_parser=reader)
    augmented = None
    if config.augmented is not None:
        augmented = load_augmented_examples(
            config.augmented,
            train_table=found.table,
            columns=found.columns,
            raw_train=found.raw_examples,
            label_parser=reader,
            skip_bad_rows=config.skip_bad_rows,
        )
    return _task_data(task, _subsample(train, config.train_limit, seed=seed), dev, augmented)


def read_train_table(config: DataConfig) -> TrainTable:
    """Find and read the training rows of a task whose labels stand in a column; they are not turned into ids yet.

    Raises:
        ConfigError: settings that contradict each other or an unknown task.
        DataError: a missing or unusable file, column or row.
    """
    glue = glue_task(config.task) if config.task is not None else None
    sources = find_sources(config, glue)
    if sources.train is None:
        raise DataError(_no_train_message(config))
    table, columns = choose_columns(sources.train, config, glue, labelled=True)
    raw = _read_raw_examples(table, columns, config, glue, multi_label=requested_task_type(config) == "multi-label")
    task = _glue_task_with_config(glue, config) if glue else _infer_custom_task(raw, table, columns, config)
    # Where the names come from the labels themselves, an id in their place is a mistake and not another spelling.
    given = glue is not None or config.label_names is not None
    reader = LabelParser(task, accept_ids=given, separator=config.label_separator or DEFAULT_LABEL_SEPARATOR)
    return TrainTable(task, glue, sources, table, columns, raw, reader)


def load_evaluation_data(config: DataConfig, task: Task) -> dict[str, Examples]:
    """Load the development examples only, for a task that is already known (from a checkpoint).

    Label ids follow ``task.labels``; a label may be written as a name or, where no name is a number, as its id.
    A GLUE task is read as laid out by GLUE, whether the config names it or the checkpoint.

    Raises:
        ConfigError: settings that contradict each other or an unknown task.
        DataError: a missing or unusable file, column or row.
    """
    reader_of_kind = file_reader_for(task.task_type)
    if reader_of_kind is not None:
        return _load_dev_with_reader(reader_of_kind, config, task)
    name = config.task or task.name
    glue = glue_task(name) if name is not None else None
    sources = find_sources(config, glue)
    reader = LabelParser(task, accept_ids=True, separator=config.label_separator or DEFAULT_LABEL_SEPARATOR)
    if not sources.dev and config.held_out is not None and sources.train is not None:
        table, columns = choose_columns(sources.train, config, glue, labelled=True)
        raw = _read_raw_examples(table, columns, config, glue, multi_label=task.task_type == "multi-label")
        return _split_dev(parse_labels(raw, reader, skip_bad_rows=config.skip_bad_rows), config.held_out)[1]
    if not sources.dev:
        raise DataError(_no_dev_message(config))
    _, columns = choose_columns(next(iter(sources.dev.values())), config, glue, labelled=True)
    return _load_dev(sources, columns, config, glue=glue, label_parser=reader)


def load_texts(path: str | Path, config: DataConfig, *, task_type: TaskType | None = None) -> Examples:
    """Load texts, or pairs of texts, without labels: for prediction.

    A ``.txt`` file holds one text a line. Any other is read as training files are, with the same columns; a label
    column may be there or not.

    Args:
        path: the file.
        config: names the columns.
        kind: of the task, where it has files of its own.

    Raises:
        DataError: a missing or unusable file, column or row.
    """
    path = Path(path).expanduser()
    reader = file_reader_for(task_type)
    if reader is not None:
        return reader.read_unlabelled(path, config)
    return read_texts(path, config)


def _split_dev(train: Examples, fraction: float) -> tuple[Examples, dict[str, Examples]]:
    """The same cut for every run: its seed sets nothing aside."""
    rest, dev = split_by_group(train, fraction=fraction, seed=_DEV_SPLIT_SEED)
    return rest, {"dev": dev}


def _check_single_dev_source(sources: DataSources, config: DataConfig) -> None:
    if sources.dev:
        raise ConfigError(f"held-out share is {config.held_out} beside development data; it must be one or the other")


def _load_with_reader(file_reader: TaskFileReader, config: DataConfig, *, seed: int) -> TaskData:
    """Data of a kind with files of its own."""
    sources = find_sources(config, None, formats=file_reader.formats, open_file=file_reader.open_table)
    if sources.train is None:
        raise DataError(_no_train_message(config))
    task, train = file_reader.read_labelled(sources.train(True), config, None)
    if config.held_out is not None:
        _check_single_dev_source(sources, config)
        train, dev = _split_dev(train, config.held_out)
    elif sources.dev:
        dev = {part: file_reader.read_labelled(opener(True), config, task)[1] for part, opener in sources.dev.items()}
    else:
        raise DataError(_no_dev_message(config))
    return _task_data(task, _subsample(train, config.train_limit, seed=seed), dev)


def _task_data(
    task: Task, train: Examples, dev: dict[str, Examples], augmented: AugmentedExamples | None = None
) -> TaskData:
    return TaskData(replace(task, has_pairs=train.pairs is not None), train, dev, augmented)


def _load_dev_with_reader(file_reader: TaskFileReader, config: DataConfig, task: Task) -> dict[str, Examples]:
    sources = find_sources(config, None, formats=file_reader.formats, open_file=file_reader.open_table)
    if sources.dev:
        return {part: file_reader.read_labelled(opener(True), config, task)[1] for part, opener in sources.dev.items()}
    if config.held_out is None or sources.train is None:
        raise DataError(_no_dev_message(config))
    return _split_dev(file_reader.read_labelled(sources.train(True), config, task)[1], config.held_out)[1]


def _infer_custom_task(raw: RawExamples, table: Table, columns: Columns, config: DataConfig) -> Task:
    class_names = table.class_names.get(columns.label or "")
    return infer_task(raw.labels or (), config, class_names=class_names, source=table.name)


def _glue_task_with_config(glue: GlueTask, config: DataConfig) -> Task:
    """The GLUE task, with other label names (in their order) where the config gives as many."""
    if config.task_type not in (None, glue.task.task_type):
        raise ConfigError(f"task type is {config.task_type}; it must be {glue.task.task_type} for {glue.task.name}")
    if config.label_names is None:
        return glue.task
    if len(config.label_names) != len(glue.task.labels):
        raise ConfigError(
            f"label names are {list(config.label_names)}; they must be {len(glue.task.labels)} for {glue.task.name}"
        )
    return replace(glue.task, labels=config.label_names)


def _load_dev(
    sources: DataSources, columns: Columns, config: DataConfig, *, glue: GlueTask | None, label_parser: LabelParser
) -> dict[str, Examples]:
    if not sources.dev:
        raise DataError(_no_dev_message(config))
    dev = {}
    for part, opener in sources.dev.items():
        table = opener(not columns.are_positions)
        check_columns(table, columns)
        raw = _read_raw_examples(table, columns, config, glue, multi_label=label_parser.task.task_type == "multi-label")
        dev[part] = parse_labels(raw, label_parser, skip_bad_rows=config.skip_bad_rows)
    return dev


def _read_raw_examples(
    table: Table, columns: Columns, config: DataConfig, glue: GlueTask | None, *, multi_label: bool
) -> RawExamples:
    return read_raw_examples(
        table,
        columns,
        skip_bad_rows=config.skip_bad_rows,
        excluded_labels=glue.excluded_labels if glue else (),
        multi_label=multi_label,
    )


def _subsample(examples: Examples, limit: int | None, *, seed: int) -> Examples:
    if limit is None or limit >= len(examples):
        return examples
    chosen = np.random.default_rng(seed).choice(len(examples), size=limit, replace=False)
    return examples.select(np.sort(chosen).tolist())


def _data_location(config: DataConfig) -> str:
    return config.data or config.train or config.dev or str(config.task)


def _no_dev_message(config: DataConfig) -> str:
    return (
        f"{_data_location(config)}: no development data; expected dev.* in the folder, a development file, or a held-out share "
        "of the training data (--held-out 0.1)"
    )


def _no_train_message(config: DataConfig) -> str:
    return f"{_data_location(config)}: no training data; expected train.* in the folder, or a training file"
