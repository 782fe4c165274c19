"""Finding the training and development tables (files, a folder, splits of a Hub data set), and reading them."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbert.core.config import DataConfig, TaskType
from limbert.data.columns import choose_columns, select_columns
from limbert.data.labels import infer_task, label_parser
from limbert.data.readers import Examples, TableExamples, read_examples
from limbert.data.split import split_by_group
from limbert.data.table import FORMATS, Table, dataset_tables, file_format
from limbert.data.task_files import TAGGED_FORMATS, open_file, row_parser
from limbert.data.tasks import GLUE_HUB_NAME, Columns, GlueTask, Task, column_layouts, find_glue_task
from limbert.errors import ConfigError, DataError

DEV_SPLIT_NAMES = ("dev", "validation", "valid", "val", "test")  # test only if there is none of the others
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?")
_HELD_OUT_SEED = 0  # the same development examples in every run


@dataclass(frozen=True)
class TrainTable:
    """The training rows of a task, and what they say about it."""

    table: Table
    columns: Columns
    raw: TableExamples  # labels as in the file
    parsed: TableExamples  # those with labels of the task
    task: Task
    reason: str  # why it is this task
    parse_label: Callable[[Any], Any]


@dataclass(frozen=True)
class DataSource:
    """Where the examples of a task are, and how they are read."""

    config: DataConfig
    task_type: TaskType | None
    glue: GlueTask | None
    train: Table | None
    dev: Mapping[str, Table]  # by the name that results are reported under

    @property
    def train_table(self) -> Table:
        """The training table; DataError if there is none."""
        if self.train is None:
            raise self.error("no training data; expected train.* in the folder, or a training file")
        return self.train

    def error(self, problem: str) -> DataError:
        """An error that names the data."""
        config = self.config
        return DataError(f"{config.data or config.train or config.dev or config.task}: {problem}")

    def read_train_table(self) -> TrainTable:
        """Read the training rows; the task is GLUE's, or follows from their labels."""
        config, glue = self.config, self.glue
        table, columns = choose_columns(self.train_table, config, column_layouts(glue, self.task_type), labelled=True)
        raw, id_names = self._read_raw(table, columns, self.task_type), config.label_names or ()
        if glue is None:
            names, labels = table.class_names.get(columns.label or ""), raw.examples.labels or ()
            task, reason = infer_task(labels, config, class_names=names, source=table.name)
        else:
            if config.task_type not in (None, glue.task.task_type):
                required = f"it must be {glue.task.task_type} for {glue.task.name}"
                raise ConfigError(f"task type is {config.task_type}; {required}")
            id_names = id_names or glue.task.labels
            if len(id_names) != len(glue.task.labels):
                required = f"they must be {len(glue.task.labels)} for {glue.task.name}"
                raise ConfigError(f"label names are {list(id_names)}; {required}")
            task, reason = replace(glue.task, labels=id_names), "as given"
        # If the names come from the labels themselves, an id in place of a name is a mistake.
        parse_label = label_parser(task, id_names, config.label_separator)
        parsed = raw.parse_labels(parse_label, skip_bad_rows=config.skip_bad_rows)
        return TrainTable(table, columns, raw, parsed, task, reason, parse_label)

    def read(self, table: Table, columns: Columns, task_type: TaskType, parse_label: Callable[[Any], Any]) -> Examples:
        """The labelled examples of a table."""
        raw = self._read_raw(select_columns(table, columns), columns, task_type)
        return raw.parse_labels(parse_label, skip_bad_rows=self.config.skip_bad_rows).examples

    def _read_raw(self, table: Table, columns: Columns, task_type: TaskType | None) -> TableExamples:
        parse, excluded = row_parser(task_type), self.glue.excluded_labels if self.glue else ()
        return read_examples(table, columns, parse, skip_bad_rows=self.config.skip_bad_rows, excluded_labels=excluded)

    def hold_out(self, train: Examples) -> tuple[Examples, dict[str, Examples]]:
        """Training examples, and the fraction of them that serves as development examples."""
        if self.config.held_out is None:
            raise self.error(
                "no development data; expected dev.* in the folder, a development file, or a "
                "fraction of the training data to hold out (--held-out 0.1)"
            )
        rest, dev = split_by_group(train, fraction=self.config.held_out, seed=_HELD_OUT_SEED)
        return rest, {"dev": dev}


def find_sources(config: DataConfig, task_name: str | None, task_type: TaskType | None) -> DataSource:
    """Find what ``train`` and ``dev``, or ``data``, or the GLUE task alone (then from the Hub) point to.

    A folder holds ``train.*`` and ``dev.*`` (or ``validation.*``, ``valid.*``, ``val.*``) with one of the suffixes of
    the task type, gzipped or not. Without such a development file, ``test.*`` is used and must have labels. MNLI's two
    parts are ``dev_matched`` and ``dev_mismatched``; one is enough. The same holds for the splits of a Hub data set,
    ``NAME`` or ``NAME:CONFIGURATION``, and of a folder that ``DatasetDict.save_to_disk`` wrote.
    """
    glue = find_glue_task(task_name, task_type)
    name, tables = _find_tables(config, glue, task_type)
    parts = glue.dev_files if glue else ()
    stems = {part: (stem.replace("dev", "validation"), stem) for part, stem in parts}  # Hub, files
    dev = {part: tables[stem] for part, both in stems.items() for stem in both if stem in tables}
    other = next((stem for stem in DEV_SPLIT_NAMES if stem in tables), None)
    if "train" not in tables and not dev and other is None:
        raise DataError(f"{name}: no split train or {', '.join(DEV_SPLIT_NAMES)}; it has {', '.join(tables)}")
    return DataSource(config, task_type, glue, tables.get("train"), dev or ({"dev": tables[other]} if other else {}))


def _find_tables(config: DataConfig, glue: GlueTask | None, task_type: TaskType | None) -> tuple[str, dict[str, Table]]:
    """The name of the data, and the tables by split or stem of the file."""
    if config.train is not None or config.dev is not None:
        if config.data is not None:
            raise ConfigError(f"data is {config.data!r} beside train or dev; it must be one or the other")
        named = {"train": config.train, "dev": config.dev}
        files = {stem: Path(path).expanduser() for stem, path in named.items() if path}
        return "files", {stem: open_file(path, task_type) for stem, path in files.items()}
    name = config.data or (GLUE_HUB_NAME if glue else None)
    if name is None:
        raise ConfigError("no data given; it must be a folder or Hub name, train and dev files, or a GLUE task")
    folder = Path(name).expanduser()
    if (folder / "dataset_dict.json").is_file():
        return name, dataset_tables(str(folder))
    if folder.is_dir():
        formats = TAGGED_FORMATS if task_type == "token-classification" else FORMATS
        stems = {"train", *DEV_SPLIT_NAMES, *(stem for _, stem in (glue.dev_files if glue else ()))}
        files = _files_by_stem(folder, stems, formats)
        return name, {stem: open_file(path, task_type) for stem, path in files.items()}
    if folder.exists():
        raise DataError(f"{name}: a file; data must be a folder or a Hub name (give files as train and dev)")
    if not _HUB_NAME.fullmatch(name) or (config.data and "/" in name and folder.parent.is_dir()):
        raise DataError(f"{name}: no such folder")
    name, _, configuration = name.partition(":")
    return name, dataset_tables(name, configuration or (str(glue.task.name) if glue else None))


def _files_by_stem(folder: Path, stems: set[str], formats: tuple[str, ...]) -> dict[str, Path]:
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
    paths: dict[str, Path] = {}
    for path in files:
        suffix = file_format(path)
        stem = path.name[: path.name.lower().rindex(suffix)]
        if suffix in formats and stem in stems:
            if stem in paths:
                raise DataError(f"{folder}: {paths[stem].name} and {path.name} are both there; expected one")
            paths[stem] = path
    if not paths:
        found = ", ".join(path.name for path in files[:10]) or "nothing"
        raise DataError(f"{folder}: no train.* or dev.* ending in {', '.join(formats)}; it holds {found}")
    return paths
