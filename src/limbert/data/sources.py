"""Finding the training and development tables: files in a folder, named files, splits of a Hub data set."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from limbert.core.config import DataConfig
from limbert.data.columns import TableOpener
from limbert.data.table import FORMATS, Table, dataset_table, dataset_tables, file_format, open_table
from limbert.data.tasks import GLUE_HUB_NAME, GlueTask
from limbert.errors import ConfigError, DataError

DEV_SPLIT_NAMES = ("dev", "validation", "valid", "val", "test")  # test only if there is none of the others
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?")


@dataclass(frozen=True)
class DataSources:
    """Openers of the tables; the training one is None if there is none."""

    train: TableOpener | None
    dev: Mapping[str, TableOpener]


def find_sources(
    config: DataConfig,
    glue: GlueTask | None,
    *,
    formats: Sequence[str] = FORMATS,
    open_file: Callable[[Path], Table] | None = None,
    splits: Mapping[str, Any] | None = None,
) -> DataSources:
    """Find what ``train`` and ``dev``, or ``data``, or the GLUE task alone (then from the Hub) point to.

    A folder holds ``train.*`` and ``dev.*`` (or ``validation.*``, ``valid.*``, ``val.*``) with one of the suffixes in
    ``formats``, gzipped or not. Without such a development file, ``test.*`` is used and must have labels. MNLI's two
    parts are ``dev_matched`` and ``dev_mismatched``; one is enough. The same holds for the splits of a Hub data set,
    ``NAME`` or ``NAME:CONFIGURATION``, and of a folder that ``DatasetDict.save_to_disk`` wrote.

    Args:
        config: where the data is.
        glue: the GLUE task, or None for other data.
        formats: suffixes of files in a folder.
        open_file: opens a file as a table; None for files of texts and labels.
        splits: ``datasets.Dataset`` by split name, in place of what the config names.
    """

    parts = glue.dev_files if glue else ()

    def file_openers(paths: Mapping[str, Path]) -> dict[str, TableOpener]:
        def open_path(path: Path, header: bool) -> Table:
            return open_table(path, header=header) if open_file is None else open_file(path)

        return {name: partial(open_path, path) for name, path in paths.items()}

    if splits is not None:
        return _from_tables("datasets", {name: dataset_table(name, split) for name, split in splits.items()}, parts)
    if config.train is not None or config.dev is not None:
        if config.data is not None:
            raise ConfigError(f"data is {config.data!r} beside train or dev; it must be one or the other")
        named = {"train": config.train, "dev": config.dev}
        return _choose(file_openers({name: Path(path).expanduser() for name, path in named.items() if path}), ())
    if config.data is None:
        if glue is None:
            raise ConfigError("no data given; it must be a folder or Hub name, train and dev files, or a GLUE task")
        return _from_hub(GLUE_HUB_NAME, glue)
    folder = Path(config.data).expanduser()
    if (folder / "dataset_dict.json").is_file():
        return _from_tables(config.data, dataset_tables(str(folder)), parts)
    if folder.is_dir():
        return _choose(file_openers(_files_by_stem(folder, parts, formats)), parts)
    if folder.exists():
        raise DataError(f"{config.data}: a file; data must be a folder or a Hub name (give files as train and dev)")
    if not _HUB_NAME.fullmatch(config.data) or ("/" in config.data and folder.parent.is_dir()):
        raise DataError(f"{config.data}: no such folder")
    return _from_hub(config.data, glue)


def _files_by_stem(folder: Path, parts: Sequence[tuple[str, str]], formats: Sequence[str]) -> dict[str, Path]:
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
    stems = {"train", *DEV_SPLIT_NAMES, *(stem for _, stem in parts)}
    paths: dict[str, Path] = {}
    for path in files:
        suffix = file_format(path)
        stem = path.name[: path.name.lower().rindex(suffix)]
        if suffix not in formats or stem not in stems:
            continue
        if stem in paths:
            raise DataError(f"{folder}: {paths[stem].name} and {path.name} are both there; expected one")
        paths[stem] = path
    if not paths:
        found = ", ".join(path.name for path in files[:10]) or "nothing"
        raise DataError(f"{folder}: no train.* or dev.* ending in {', '.join(formats)}; it holds {found}")
    return paths


def _from_hub(name: str, glue: GlueTask | None) -> DataSources:
    name, _, configuration = name.partition(":")
    tables = dataset_tables(name, configuration or (str(glue.task.name) if glue else None))
    return _from_tables(name, tables, glue.dev_files if glue else ())


def _from_tables(name: str, tables: Mapping[str, Table], parts: Sequence[tuple[str, str]]) -> DataSources:
    openers: dict[str, TableOpener] = {split: partial(lambda table, header: table, tables[split]) for split in tables}
    sources = _choose(openers, [(part, stem.replace("dev", "validation")) for part, stem in parts])
    if sources.train is None and not sources.dev:
        raise DataError(f"{name}: no split train or {', '.join(DEV_SPLIT_NAMES)}; it has {', '.join(tables)}")
    return sources


def _choose(openers: Mapping[str, TableOpener], parts: Sequence[tuple[str, str]]) -> DataSources:
    """The training split, and the development splits by the name they are reported under."""
    dev = {part: openers[name] for part, name in parts if name in openers}
    other = next((name for name in DEV_SPLIT_NAMES if name in openers and not dev), None)
    return DataSources(openers.get("train"), dev if other is None else {"dev": openers[other]})
