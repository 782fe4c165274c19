"""The folder of an unfinished run: its settings, which another run must not have, and its lock."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from limbert.core.config import CorpusConfig, DataConfig, TrainConfig
from limbert.errors import ConfigError, StorageError
from limbert.files import try_lock
from limbert.model.checkpoint import read_record, write_json
from limbert.train.distributed import all_gather_object, is_main_process, run_on_main

_SETTINGS_NAME = "settings.json"
_IGNORED = ("output", "checkpoint_every", "tensorboard", "device")  # settings that do not change the result
_LOCATIONS = ("data", "train", "dev", "augmented", "corpus")  # do not count where the data itself is known to be equal


def run_settings(
    config: TrainConfig,
    recipe: Mapping[str, Any],
    data_config: DataConfig | CorpusConfig,
    *,
    fingerprint: str | None = None,
) -> dict[str, Any]:
    """Everything that decides a run's result, as JSON values; see `describe_differences`.

    Args:
        config, recipe, data_config: as the run has them.
        fingerprint: of the data; None where it is not known.
    """
    train = {name: value for name, value in asdict(config).items() if name not in _IGNORED}
    source = "data" if isinstance(data_config, DataConfig) else "corpus"
    values = {"train": train, "recipe": dict(recipe), source: asdict(data_config), "content": {"data": fingerprint}}
    parsed: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists, as when read back
    return parsed


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """How the settings of two runs differ, ``train.seed 1 -> 2, ...``; empty for the same run.

    Where both fingerprints of the data are known they count instead of its location; the name of a recipe with equal
    values does not count. A setting that one of them lacks is None.
    """
    before, after = _flat(old), _flat(new)
    known = (before.pop("content.data", None), after.pop("content.data", None))
    skipped = {"train.recipe"} if old.get("recipe") == new.get("recipe") else set()
    if None not in known:
        skipped |= {f"{part}.{name}" for part in ("data", "corpus") for name in _LOCATIONS}
    names = [name for name in {**before, **after} if name not in skipped and not name.startswith("content.")]
    changed = [name for name in names if before.get(name) != after.get(name)]
    if not changed and known[0] != known[1] and None not in known:
        return "other data"
    return ", ".join(f"{name} {json.dumps(before.get(name))} -> {json.dumps(after.get(name))}" for name in changed)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def check_same_settings(settings: Mapping[str, Any], fingerprints: Mapping[str, str]) -> None:
    """Collective: make sure that all processes train the same run on the same tokens.

    Raises:
        ConfigError: if one has other settings or data, naming them; in all processes.
    """
    first, *others = all_gather_object({"settings": dict(settings), "tokens": dict(fingerprints)})
    for index, other in enumerate(others, start=1):
        changed = describe_differences(first["settings"], other["settings"])
        if not changed and first["tokens"] != other["tokens"]:
            names = [name for name, value in first["tokens"].items() if other["tokens"].get(name) != value]
            changed = f"other {', '.join(names)}"
        if changed:
            raise ConfigError(
                f"process {index} has other settings or data than process 0 ({changed}); "
                "start all processes of a run with the same command and the same data"
            )


def is_run_finished(output: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> bool:
    """Whether the output holds the result of a run with these settings.

    Raises:
        ConfigError: if it holds something else, unless ``overwrite`` allows another trained model to be replaced.
    """
    output = Path(output)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    record = read_record(output) if output.is_dir() else {}
    if not record:
        raise ConfigError(f"output {output} exists and is not a model trained by Limbert; choose another folder")
    if overwrite:
        return False
    changed = describe_differences(record.get("settings", {}), settings)
    if not changed:
        return True
    raise ConfigError(f"output {output} has other settings ({changed}); choose another folder or --overwrite")


class RunFolder:
    """The work folder of a run. Creating one reads what is there and writes nothing; `create` does.

    Args:
        path: the folder.
        settings: of the run.
        overwrite: let `create` delete an unfinished run with other settings instead of refusing it.

    Raises:
        ConfigError: if an unfinished run with other settings is there.
        StorageError: if its settings cannot be read.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path, self._settings = Path(path), settings
        file = self.path / _SETTINGS_NAME
        try:
            found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot read {file}: {error}") from error
        changed = "" if found is None else describe_differences(found, settings)
        self._stale = bool(changed)
        if changed and not overwrite:
            raise ConfigError(
                f"{self.path} holds an unfinished run with other settings ({changed}); finish it with its own "
                "command and data, delete the folder, choose another output, or use --overwrite"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Collective: keep other runs from writing here, until the block or this process ends, in whatever way.

        Raises:
            ConfigError: if another run is writing here.
            StorageError: if the lock file cannot be created.
        """
        descriptor = run_on_main(self._lock)
        try:
            yield
        finally:
            if descriptor is not None and is_main_process():
                with suppress(OSError):  # a file that stays is locked by no process
                    self._lock_path.unlink()
                os.close(descriptor)

    @property
    def _lock_path(self) -> Path:
        return self.path.with_name(self.path.name + ".lock")  # beside it: the folder comes and goes

    def _lock(self) -> int | None:
        try:
            self._lock_path.parent.mkdir(parents=True, exist_ok=True)
            return try_lock(self._lock_path)
        except BlockingIOError:
            raise ConfigError(
                f"another run is writing to {self.path}; wait until it ends, or choose another output"
            ) from None
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error

    def create(self) -> None:
        """Collective: create the folder with the settings in it, and delete what a killed run left half-written.

        Raises:
            StorageError: if it cannot be written.
        """
        run_on_main(self._create)

    def _create(self) -> None:
        file = self.path / _SETTINGS_NAME
        try:
            if self._stale:
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            for half_written in [*self.path.glob("*/.*.new-*"), *self.path.glob("*/.*.old-*")]:
                shutil.rmtree(half_written, ignore_errors=True)
            if not file.exists():
                write_json(file.with_suffix(".new"), self._settings)
                file.with_suffix(".new").rename(file)
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error
