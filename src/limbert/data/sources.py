"""Finding the training and development tables: files in a folder, named files, splits of a Hub data set."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbert.core.config import DataConfig, TaskType
from limbert.data.table import FORMATS, Table, dataset_table, dataset_tables, file_format
from limbert.data.task_files import TAGGED_FORMATS, open_file
from limbert.data.tasks import GLUE_HUB_NAME, GlueTask
from limbert.errors import ConfigError, DataError

DEV_SPLIT_NAMES = ("dev", "validation", "valid", "val", "test")  # test only if there is none of the others
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?")


@dataclass(frozen=True)
class DataSources:
    """The tables; the training one is None if there is none."""

    train: Table | None
    dev: Mapping[str, Table]


def find_sources(
    config: DataConfig,
    glue: GlueTask | None = None,
    *,
    task_type: TaskType | None = None,
    splits: Mapping[str, Any] | None = None,
) -> DataSources:
    """Find what ``train`` and ``dev``, or ``data``, or the GLUE task alone (then from the Hub) point to.

    A folder holds ``train.*`` and ``dev.*`` (or ``validation.*``, ``valid.*``, ``val.*``) with one of the suffixes of
    the task type, gzipped or not. Without such a development file, ``test.*`` is used and must have labels. MNLI's two
    parts are ``dev_matched`` and ``dev_mismatched``; one is enough. The same holds for the splits of a Hub data set,
    ``NAME`` or ``NAME:CONFIGURATION``, and of a folder that ``DatasetDict.save_to_disk`` wrote.
    ``splits``, each a ``datasets.Dataset``, take the place of all this.
    """
    parts = dict(glue.dev_files) if glue else {}
    if splits is not None:
        return _choose({name: dataset_table(name, split) for name, split in splits.items()}, parts, name="datasets")
    if config.train is not None or config.dev is not None:
        if config.data is not None:
            raise ConfigError(f"data is {config.data!r} beside train or dev; it must be one or the other")
        named = {"train": config.train, "dev": config.dev}
        files = {stem: Path(path).expanduser() for stem, path in named.items() if path}
        return _choose({stem: open_file(path, task_type) for stem, path in files.items()}, {}, name="files")
    name = config.data or (GLUE_HUB_NAME if glue else None)
    if name is None:
        raise ConfigError("no data given; it must be a folder or Hub name, train and dev files, or a GLUE task")
    folder = Path(name).expanduser()
    if (folder / "dataset_dict.json").is_file():
        return _choose(dataset_tables(str(folder)), parts, name=name)
    if folder.is_dir():
        formats = TAGGED_FORMATS if task_type == "token-classification" else FORMATS
        files = _files_by_stem(folder, parts.values(), formats)
        return _choose({stem: open_file(path, task_type) for stem, path in files.items()}, parts, name=name)
    if folder.exists():
        raise DataError(f"{name}: a file; data must be a folder or a Hub name (give files as train and dev)")
    if not _HUB_NAME.fullmatch(name) or (config.data and "/" in name and folder.parent.is_dir()):
        raise DataError(f"{name}: no such folder")
    name, _, configuration = name.partition(":")
    return _choose(dataset_tables(name, configuration or (str(glue.task.name) if glue else None)), parts, name=name)


def _files_by_stem(folder: Path, part_stems: Iterable[str], formats: tuple[str, ...]) -> dict[str, Path]:
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
    paths: dict[str, Path] = {}
    for path in files:
        suffix = file_format(path)
        stem = path.name[: path.name.lower().rindex(suffix)]
        if suffix in formats and stem in {"train", *DEV_SPLIT_NAMES, *part_stems}:
            if stem in paths:
                raise DataError(f"{folder}: {paths[stem].name} and {path.name} are both there; expected one")
            paths[stem] = path
    if not paths:
        found = ", ".join(path.name for path in files[:10]) or "nothing"
        raise DataError(f"{folder}: no train.* or dev.* ending in {', '.join(formats)}; it holds {found}")
    return paths


def _choose(tables: Mapping[str, Table], parts: Mapping[str, str], *, name: str) -> DataSources:
    """The training split, and the development splits by the name they are reported under."""
    stems = {part: (stem.replace("dev", "validation"), stem) for part, stem in parts.items()}  # Hub, files
    dev = {part: tables[stem] for part, both in stems.items() for stem in both if stem in tables}
    other = next((stem for stem in DEV_SPLIT_NAMES if stem in tables), None)
    if "train" not in tables and not dev and other is None:
        raise DataError(f"{name}: no split train or {', '.join(DEV_SPLIT_NAMES)}; it has {', '.join(tables)}")
    return DataSources(tables.get("train"), dev or ({} if other is None else {"dev": tables[other]}))
