"""Where an augmentation is kept: what decides its result, and what earlier calls left in the output folder."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from limbert.core.augmentation import AugmentConfig
from limbert.core.config import DataConfig
from limbert.data.write import Suffix
from limbert.errors import ConfigError, StorageError
from limbert.model.checkpoint import json_text
from limbert.files import replaced_file
from limbert.run.content import files_digest, rows_digest

NAME = "train_aug"
_SOURCES = ("lm", "with_logits", "neighbours", "stop_words")  # settings that name files


class AugmentPlace:
    """The file of copies, its record beside it, and the folder of the unfinished work.

    Making one looks at what is there and writes nothing; ``create`` does.

    Args:
        output: the output folder.
        suffix: of the file of copies.
        settings: from ``augment_settings``.
        overwrite: let ``create`` discard a result with other settings instead of refusing it.

    Raises:
        ConfigError: if there is a result with other settings, or a file that is no result.
        StorageError: if its record cannot be read.
    """

    def __init__(self, output: str | Path, *, suffix: str, settings: dict[str, Any], overwrite: bool) -> None:
        if Path(output).exists() and not Path(output).is_dir():
            raise ConfigError(f"output {output} is a file; it must be a folder, or nothing yet")
        self.target = Path(output) / f"{NAME}{suffix}"
        self.work = Path(output) / f"{NAME}.work"
        self._record = Path(output) / f"{NAME}.json"
        self._settings, self._overwrite = settings, overwrite
        unfinished = _read(self.work / "settings.json")
        self._stale = unfinished is not None and unfinished != settings
        if overwrite:
            return
        if unfinished is not None and self._stale:
            raise _other_settings(self.work, unfinished, settings)
        record = _read(self._record)
        if record is not None and record.get("settings") != settings:
            raise _other_settings(self._record, record.get("settings", {}), settings)
        if record is None and self.target.exists():
            raise ConfigError(f"{self.target} exists and was not made by limbert augment; choose another folder")

    def finished(self) -> dict[str, Any] | None:
        """What the record says of this very result; None where it is not finished, or shall be made again.

        Raises:
            ConfigError: if the file is not the one that was made.
        """
        record = None if self._overwrite or not self.target.exists() else _read(self._record)
        if record is not None and record.get("bytes", 0) != self.target.stat().st_size:
            raise ConfigError(f"{self.target} was changed since it was made; --overwrite makes it again")
        return record

    def discard(self) -> None:
        """Delete the work folder: nothing comes of it."""
        shutil.rmtree(self.work, ignore_errors=True)

    def create(self) -> None:
        """Make the work folder, with the settings in it.

        Raises:
            StorageError: if it cannot be written.
        """
        try:
            if self._stale:
                shutil.rmtree(self.work)
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {self.work}: {error.strerror}") from error
        with replaced_file(self.work / "settings.json") as file:
            file.write(json_text(self._settings))

    def finish(self, record: dict[str, Any]) -> None:
        """Write the record, after the file of copies, and delete the work folder.

        Raises:
            StorageError: if it cannot be written.
        """
        with replaced_file(self._record) as file:
            size = self.target.stat().st_size
            file.write(json_text(record | {"bytes": size, "settings": self._settings}))
        for other in self.target.parent.glob(f"{NAME}.*") if self._overwrite else ():
            if other.suffix in get_args(Suffix) and other != self.target:
                other.unlink()  # of another format, made by an earlier call
        shutil.rmtree(self.work, ignore_errors=True)


def augment_settings(config: AugmentConfig, data: DataConfig, rows: list[Sequence[object]]) -> dict[str, Any]:
    """Everything that decides the result, with digests of what is read, as JSON values.

    Raises:
        DataError: if a file cannot be read.
    """
    named = {name: value for name, value in asdict(config).items() if name in _SOURCES and value is not None}
    values = {
        "augment": {name: value for name, value in asdict(config).items() if name != "output"}
        | {"copies": config.copies_of(len(rows))},
        "data": {name: value for name, value in asdict(data).items() if value not in (None, False)},
        "rows": rows_digest(rows),
        "content": {name: files_digest(value) for name, value in named.items()},
    }
    parsed: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists, as when read back
    return parsed


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise StorageError(f"{path} holds {type(found).__name__}, not an object; delete it, or choose another folder")
    return found


def _other_settings(path: Path, old: dict[str, Any], new: dict[str, Any]) -> ConfigError:
    differs = _first_difference(old, new)
    return ConfigError(f"{path} has other settings ({differs}); choose another folder or use --overwrite")


def _first_difference(old: Any, new: Any, path: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in [*old, *new] if old.get(key) != new.get(key))
        return _first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    return f"{path} {json.dumps(old)} -> {json.dumps(new)}"
