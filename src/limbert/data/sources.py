"""Where the training and development rows lie: two files, a folder, or a data set of the Hub."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from limbert.core.config import DataConfig
from limbert.data.arrow import hub_tables
from limbert.data.columns import Opener
from limbert.data.readers import FORMATS, open_table
from limbert.data.table import Table
from limbert.data.tasks import HUB_GLUE, GlueTask
from limbert.errors import ConfigError, DataError

DEV_NAMES = ("dev", "validation", "valid", "val", "test")  # test only where there is none of the others
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?")


@dataclass(frozen=True)
class Sources:
    """Openers of the tables; the training one is None where it is absent or was not asked for."""

    train: Opener | None
    dev: Mapping[str, Opener]


def find_sources(
    config: DataConfig,
    glue: GlueTask | None,
    *,
    formats: Sequence[str] = FORMATS,
    opened: Callable[[Path], Table] | None = None,
) -> Sources:
    """Find what ``train`` and ``dev``, or ``data``, or the GLUE task alone (then from the Hub) point to.

    A folder holds ``train.*`` and ``dev.*`` (also ``validation.*``, ``valid.*`` or ``val.*``) with one of the endings
    in ``FORMATS``. Where it has no such development file, ``test.*`` is reported on, and must have labels. MNLI's two
    parts are ``dev_matched`` and ``dev_mismatched``; one is enough. The same holds for the splits of a Hub data set,
    ``NAME`` or ``NAME:CONFIGURATION``.

    Args:
        config: where the data is.
        glue: the GLUE task, or None for other data.
        formats: ends of the names of files in a folder.
        opened: how a file becomes a table; None for files of texts and labels.

    Raises:
        ConfigError: settings that contradict each other, or none at all.
        DataError: nothing lies there.
    """
    if config.train is not None or config.dev is not None:
        if config.data is not None:
            raise ConfigError(f"data is {config.data!r} beside train or dev; it must be one or the other")
        train = None if config.train is None else _file(Path(config.train).expanduser(), opened)
        return Sources(train, {} if config.dev is None else {"dev": _file(Path(config.dev).expanduser(), opened)})
    if config.data is None:
        if glue is None:
            raise ConfigError("no data given; it must be a folder or Hub name, train and dev files, or a GLUE task")
        return _from_hub(HUB_GLUE, glue)
    folder = Path(config.data).expanduser()
    if folder.is_dir():
        return _from_folder(folder, glue, formats=formats, opened=opened)
    if folder.exists():
        raise DataError(f"{config.data}: a file; data must be a folder or a Hub name (give files as train and dev)")
    if not _HUB_NAME.fullmatch(config.data) or ("/" in config.data and folder.parent.is_dir()):
        raise DataError(f"{config.data}: no such folder")
    return _from_hub(config.data, glue)


def _from_folder(
    folder: Path, glue: GlueTask | None, *, formats: Sequence[str], opened: Callable[[Path], Table] | None
) -> Sources:
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
    train = _find(files, "train", formats)
    parts = {part: _find(files, stem, formats) for part, stem in glue.dev} if glue else {}
    found = {part: path for part, path in parts.items() if path is not None}
    if not found:
        dev = next((path for path in (_find(files, stem, formats) for stem in DEV_NAMES) if path is not None), None)
        found = {} if dev is None else {"dev": dev}
    if train is None and not found:
        held = ", ".join(path.name for path in files[:10]) or "nothing"
        raise DataError(f"{folder}: no train.* or dev.* ending in {', '.join(formats)}; it holds {held}")
    return Sources(
        None if train is None else _file(train, opened), {part: _file(path, opened) for part, path in found.items()}
    )


def _from_hub(name: str, glue: GlueTask | None) -> Sources:
    name, _, configuration = name.partition(":")
    if glue is not None and not configuration:
        configuration = str(glue.task.name)
    tables = hub_tables(name, configuration or None)
    parts = [(part, stem.replace("dev", "validation")) for part, stem in glue.dev] if glue else []
    found = {part: tables[split] for part, split in parts if split in tables}
    if not found:
        dev = next((tables[split] for split in DEV_NAMES if split in tables), None)
        found = {} if dev is None else {"dev": dev}
    if "train" not in tables and not found:
        raise DataError(f"{name}: no split train or {', '.join(DEV_NAMES)}; it has {', '.join(tables)}")
    train = tables.get("train")
    return Sources(None if train is None else _opened(train), {part: _opened(table) for part, table in found.items()})


def _find(files: Sequence[Path], stem: str, formats: Sequence[str]) -> Path | None:
    found = [path for path in files if path.stem == stem and path.suffix.lower() in formats]
    if len(found) > 1:
        raise DataError(f"{found[0].parent}: {' and '.join(path.name for path in found)} are both there; expected one")
    return found[0] if found else None


def _file(path: Path, opened: Callable[[Path], Table] | None) -> Opener:
    return lambda header: open_table(path, header=header) if opened is None else opened(path)


def _opened(table: Table) -> Opener:
    return lambda header: table
