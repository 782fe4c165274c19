"""Finding the training and development tables: files in a folder, named files, splits of a Hub data set."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

    Raises:
        ConfigError: settings that contradict each other, or none at all.
        DataError: no data there.
    """
    if splits is not None:
        return _from_splits("datasets", {name: dataset_table(name, split) for name, split in splits.items()}, glue)
    if config.train is not None or config.dev is not None:
        if config.data is not None:
            raise ConfigError(f"data is {config.data!r} beside train or dev; it must be one or the other")
        train, dev = (
            None if path is None else _file_opener(Path(path).expanduser(), open_file)
            for path in (config.train, config.dev)
        )
        return DataSources(train, {} if dev is None else {"dev": dev})
    if config.data is None:
        if glue is None:
            raise ConfigError("no data given; it must be a folder or Hub name, train and dev files, or a GLUE task")
        return _from_hub(GLUE_HUB_NAME, glue)
    folder = Path(config.data).expanduser()
    if (folder / "dataset_dict.json").is_file():
        return _from_splits(config.data, dataset_tables(str(folder)), glue)
    if folder.is_dir():
        return _from_folder(folder, glue, formats=formats, open_file=open_file)
    if folder.exists():
        raise DataError(f"{config.data}: a file; data must be a folder or a Hub name (give files as train and dev)")
    if not _HUB_NAME.fullmatch(config.data) or ("/" in config.data and folder.parent.is_dir()):
        raise DataError(f"{config.data}: no such folder")
    return _from_hub(config.data, glue)


def _from_folder(
    folder: Path, glue: GlueTask | None, *, formats: Sequence[str], open_file: Callable[[Path], Table] | None
) -> DataSources:
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
    paths: dict[str, Path] = {}
    parts = list(glue.dev_files) if glue else []
    stems = {"train", *DEV_SPLIT_NAMES, *(stem for _, stem in parts)}
    for path in files:
        if file_format(path) not in formats:
            continue
        stem = path.name[: path.name.lower().rindex(file_format(path))]
        if stem in paths and stem in stems:
            raise DataError(f"{folder}: {paths[stem].name} and {path.name} are both there; expected one")
        paths.setdefault(stem, path)
    train, dev = _choose_splits(paths, parts)
    if train is None and not dev:
        found = ", ".join(path.name for path in files[:10]) or "nothing"
        raise DataError(f"{folder}: no train.* or dev.* ending in {', '.join(formats)}; it holds {found}")
    return DataSources(
        None if train is None else _file_opener(train, open_file),
        {part: _file_opener(path, open_file) for part, path in dev.items()},
    )


def _from_hub(name: str, glue: GlueTask | None) -> DataSources:
    name, _, configuration = name.partition(":")
    if glue is not None and not configuration:
        configuration = str(glue.task.name)
    return _from_splits(name, dataset_tables(name, configuration or None), glue)


def _from_splits(name: str, tables: Mapping[str, Table], glue: GlueTask | None) -> DataSources:
    parts = [(part, stem.replace("dev", "validation")) for part, stem in glue.dev_files] if glue else []
    train, dev = _choose_splits(tables, parts)
    if train is None and not dev:
        raise DataError(f"{name}: no split train or {', '.join(DEV_SPLIT_NAMES)}; it has {', '.join(tables)}")
    return DataSources(
        None if train is None else _table_opener(train), {part: _table_opener(table) for part, table in dev.items()}
    )


def _choose_splits(found: Mapping[str, Any], glue_parts: Sequence[tuple[str, str]]) -> tuple[Any, dict[str, Any]]:
    """The training split, and the development splits by the name they are reported under."""
    dev = {part: found[name] for part, name in glue_parts if name in found}
    other = next((name for name in DEV_SPLIT_NAMES if name in found), None)
    return found.get("train"), dev or ({} if other is None else {"dev": found[other]})


def _file_opener(path: Path, open_file: Callable[[Path], Table] | None) -> TableOpener:
    return lambda header: open_table(path, header=header) if open_file is None else open_file(path)


def _table_opener(table: Table) -> TableOpener:
    return lambda header: table
