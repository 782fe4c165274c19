"""From the data settings to the task and its examples: the one door through which the rest of Limbert gets data."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from limbert.core.config import DataConfig, TaskKind
from limbert.data.augmented import Augmented, load_augmented
from limbert.data.labels import SEPARATOR, LabelReader, infer_task
from limbert.data.readers import (
    Examples,
    RawExamples,
    Sources,
    Table,
    check_columns,
    choose_columns,
    find_sources,
    read_rows,
    read_texts,
    with_labels,
)
from limbert.data.split import split_groups
from limbert.data.task_registry import Reader, reader_of
from limbert.data.tasks import Columns, GlueTask, Task, asked_kind, glue_task
from limbert.errors import ConfigError, DataError

_HELD_OUT_SEED = 0


@dataclass(frozen=True)
class TaskData:
    """A task with its examples. ``dev`` is only ever reported on: ``{"dev": ...}``, or MNLI's two parts."""

    task: Task
    train: Examples
    dev: dict[str, Examples]
    augmented: Augmented | None = None  # copies of training rows, where the settings name a file of them


@dataclass(frozen=True)
class TrainTable:
    """The training rows as they stand in their table, and what they say about the task."""

    task: Task
    glue: GlueTask | None
    sources: Sources
    table: Table
    columns: Columns
    raw: RawExamples
    reader: LabelReader


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
    reader_of_kind = reader_of(asked_kind(config))
    if reader_of_kind is not None:
        if config.augmented is not None:
            raise ConfigError(f"augmented rows are given for {asked_kind(config)}; it has no such copies")
        return _load_with(reader_of_kind, config, seed=seed)
    found = read_train_table(config)
    task, reader = found.task, found.reader
    train = with_labels(found.raw, reader, skip_bad_rows=config.skip_bad_rows)
    if task.kind == "classification" and len(set(train.labels or ())) < 2:
        raise DataError(
            f"{found.table.name}: every label is {task.labels[int((train.labels or (0,))[0])]!r}; "
            "a classification needs at least two classes"
        )
    if config.held_out is not None:
        _refuse_two_developments(found.sources, config)
        train, dev = _held_out(train, config.held_out)
    else:
        dev = _load_dev(found.sources, found.columns, config, glue=found.glue, reader=reader)
    augmented = None
    if config.augmented is not None:
        augmented = load_augmented(
            config.augmented,
            table=found.table,
            columns=found.columns,
            raw=found.raw,
            reader=reader,
            skip_bad_rows=config.skip_bad_rows,
        )
    return _of(task, _limited(train, config.train_limit, seed=seed), dev, augmented)


def read_train_table(config: DataConfig) -> TrainTable:
    """Find and read the training rows of a task whose labels stand in a column; they are not turned into ids yet.

    Raises:
        ConfigError: settings that contradict each other or an unknown task.
        DataError: a missing or unusable file, column or row.
    """
    glue = glue_task(config.task) if config.task is not None else None
    sources = find_sources(config, glue)
    if sources.train is None:
        raise DataError(_no_train(config))
    table, columns = choose_columns(sources.train, config, glue, labelled=True)
    raw = _read(table, columns, config, glue, several=asked_kind(config) == "multi-label")
    task = _glue_task_as_told(glue, config) if glue else _own_task(raw, table, columns, config)
    # Where the names come from the labels themselves, an id in their place is a mistake and not another spelling.
    given = glue is not None or config.label_names is not None
    reader = LabelReader(task, accept_ids=given, separator=config.label_separator or SEPARATOR)
    return TrainTable(task, glue, sources, table, columns, raw, reader)


def load_evaluation_data(config: DataConfig, task: Task) -> dict[str, Examples]:
    """Load the development examples only, for a task that is already known (from a checkpoint).

    Label ids follow ``task.labels``; a label may be written as a name or, where no name is a number, as its id.
    A GLUE task is read as laid out by GLUE, whether the config names it or the checkpoint.

    Raises:
        ConfigError: settings that contradict each other or an unknown task.
        DataError: a missing or unusable file, column or row.
    """
    reader_of_kind = reader_of(task.kind)
    if reader_of_kind is not None:
        return _load_development_with(reader_of_kind, config, task)
    name = config.task or task.name
    glue = glue_task(name) if name is not None else None
    sources = find_sources(config, glue)
    reader = LabelReader(task, accept_ids=True, separator=config.label_separator or SEPARATOR)
    if not sources.dev and config.held_out is not None and sources.train is not None:
        table, columns = choose_columns(sources.train, config, glue, labelled=True)
        raw = _read(table, columns, config, glue, several=task.kind == "multi-label")
        return _held_out(with_labels(raw, reader, skip_bad_rows=config.skip_bad_rows), config.held_out)[1]
    if not sources.dev:
        raise DataError(_no_dev(config))
    _, columns = choose_columns(next(iter(sources.dev.values())), config, glue, labelled=True)
    return _load_dev(sources, columns, config, glue=glue, reader=reader)


def load_texts(path: str | Path, config: DataConfig, *, kind: TaskKind | None = None) -> Examples:
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
    reader = reader_of(kind)
    if reader is not None:
        return reader.read_unlabelled(path, config)
    return read_texts(path, config)


def _held_out(train: Examples, fraction: float) -> tuple[Examples, dict[str, Examples]]:
    """The same cut for every run: its seed sets nothing aside."""
    rest, dev = split_groups(train, fraction=fraction, seed=_HELD_OUT_SEED)
    return rest, {"dev": dev}


def _refuse_two_developments(sources: Sources, config: DataConfig) -> None:
    if sources.dev:
        raise ConfigError(f"held-out share is {config.held_out} beside development data; it must be one or the other")


def _load_with(reader: Reader, config: DataConfig, *, seed: int) -> TaskData:
    """Data of a kind with files of its own."""
    sources = find_sources(config, None, formats=reader.formats, opened=reader.open)
    if sources.train is None:
        raise DataError(_no_train(config))
    task, train = reader.read(sources.train(True), config, None)
    if config.held_out is not None:
        _refuse_two_developments(sources, config)
        train, dev = _held_out(train, config.held_out)
    elif sources.dev:
        dev = {part: reader.read(opener(True), config, task)[1] for part, opener in sources.dev.items()}
    else:
        raise DataError(_no_dev(config))
    return _of(task, _limited(train, config.train_limit, seed=seed), dev)


def _of(task: Task, train: Examples, dev: dict[str, Examples], augmented: Augmented | None = None) -> TaskData:
    return TaskData(replace(task, pairs=train.pairs is not None), train, dev, augmented)


def _load_development_with(reader: Reader, config: DataConfig, task: Task) -> dict[str, Examples]:
    sources = find_sources(config, None, formats=reader.formats, opened=reader.open)
    if sources.dev:
        return {part: reader.read(opener(True), config, task)[1] for part, opener in sources.dev.items()}
    if config.held_out is None or sources.train is None:
        raise DataError(_no_dev(config))
    return _held_out(reader.read(sources.train(True), config, task)[1], config.held_out)[1]


def _own_task(raw: RawExamples, table: Table, columns: Columns, config: DataConfig) -> Task:
    class_names = table.class_names.get(columns.label or "")
    return infer_task(raw.labels or (), config, class_names=class_names, source=table.name)


def _glue_task_as_told(glue: GlueTask, config: DataConfig) -> Task:
    """The GLUE task, with other label names (in their order) where the config gives as many."""
    if config.task_type not in (None, glue.task.kind):
        raise ConfigError(f"task type is {config.task_type}; it must be {glue.task.kind} for {glue.task.name}")
    if config.label_names is None:
        return glue.task
    if len(config.label_names) != len(glue.task.labels):
        raise ConfigError(
            f"label names are {list(config.label_names)}; they must be {len(glue.task.labels)} for {glue.task.name}"
        )
    return replace(glue.task, labels=config.label_names)


def _load_dev(
    sources: Sources, columns: Columns, config: DataConfig, *, glue: GlueTask | None, reader: LabelReader
) -> dict[str, Examples]:
    if not sources.dev:
        raise DataError(_no_dev(config))
    dev = {}
    for part, opener in sources.dev.items():
        table = opener(not columns.by_number)
        check_columns(table, columns)
        raw = _read(table, columns, config, glue, several=reader.task.kind == "multi-label")
        dev[part] = with_labels(raw, reader, skip_bad_rows=config.skip_bad_rows)
    return dev


def _read(table: Table, columns: Columns, config: DataConfig, glue: GlueTask | None, *, several: bool) -> RawExamples:
    return read_rows(
        table,
        columns,
        skip_bad_rows=config.skip_bad_rows,
        unlabelled=glue.unlabelled if glue else (),
        several_labels=several,
    )


def _limited(examples: Examples, limit: int | None, *, seed: int) -> Examples:
    if limit is None or limit >= len(examples):
        return examples
    chosen = np.random.default_rng(seed).choice(len(examples), size=limit, replace=False)
    return examples.select(np.sort(chosen).tolist())


def _place(config: DataConfig) -> str:
    return config.data or config.train or config.dev or str(config.task)


def _no_dev(config: DataConfig) -> str:
    return (
        f"{_place(config)}: no development data; expected dev.* in the folder, a development file, or a held-out share "
        "of the training data (--held-out 0.1)"
    )


def _no_train(config: DataConfig) -> str:
    return f"{_place(config)}: no training data; expected train.* in the folder, or a training file"
