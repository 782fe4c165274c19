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
from limbert.train.distributed import all_gather_object, rank, run_on_main

_SETTINGS_NAME = "settings.json"
_IGNORED = ("output", "checkpoint_every", "tensorboard", "device")  # settings that do not change the result
_LOCATIONS = ("data", "train", "dev", "augmented", "corpus", "fingerprints")  # replaced by the fingerprint of the data


def run_settings(
    config: TrainConfig,
    recipe: Mapping[str, Any],
    data_config: DataConfig | CorpusConfig,
    *,
    fingerprint: str | None = None,
) -> dict[str, Any]:
    """Everything that decides a run's result, as JSON values; ``fingerprint`` is that of the data, if it is known."""
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
        nested = isinstance(value, Mapping) and name != "fingerprints"
        found |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return found


def is_run_finished(output: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> bool:
    """Whether the output holds the result of a run with these settings.

    ConfigError if it holds something else, unless ``overwrite`` allows another trained model to be replaced.
    """
    output = Path(output)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    record = read_record(output) if output.is_dir() else {}
    if not record:
        raise ConfigError(f"output {output} exists and is not a model trained by Limbert; choose another folder")
    changed = "" if overwrite else describe_differences(record.get("settings", {}), settings)
    if changed:
        raise ConfigError(f"output {output} has other settings ({changed}); choose another folder or --overwrite")
    return not overwrite


class RunFolder:
    """The work folder of a run. Creating one reads what is there and writes nothing; `opened` does.

    Args:
        path: the folder.
        settings: of the run.
        overwrite: delete an unfinished run with other settings instead of refusing it.

    Raises:
        ConfigError: if an unfinished run with other settings is there, or another process has other settings.
        StorageError: if the settings there cannot be read.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path, self._settings, self._file = Path(path), settings, Path(path) / _SETTINGS_NAME
        first, *others = all_gather_object(dict(settings))
        for index, other in enumerate(others, start=1):
            if changed := describe_differences(first, other):
                raise ConfigError(
                    f"process {index} has other settings or data than process 0 ({changed}); "
                    "start all processes of a run with the same command and the same data"
                )
        try:
            found = json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else settings
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot read {self._file}: {error}") from error
        changed = describe_differences(found, settings)
        self._stale = bool(changed)
        if changed and not overwrite:
            raise ConfigError(
                f"{self.path} holds an unfinished run with other settings ({changed}); finish it with its own "
                "command and data, delete the folder, choose another output, or use --overwrite"
            )

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Collective: create the folder with the settings in it, and keep other runs from writing there.

        The lock ends with the block, or with this process in whatever way. What a killed run left half-written is
        deleted. ConfigError if another run is writing here, StorageError if the folder cannot be written.
        """
        lock = self.path.with_name(self.path.name + ".lock")  # beside the folder, which comes and goes
        descriptor = run_on_main(lambda: self._create(lock))
        try:
            yield
        finally:
            if descriptor is not None and rank() == 0:
                with suppress(OSError):  # a file that stays is locked by no process
                    lock.unlink()
                os.close(descriptor)

    def _create(self, lock: Path) -> int | None:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = try_lock(lock)
            if self._stale:
                shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True, exist_ok=True)
            for half_written in [*self.path.glob("*/.*.new-*"), *self.path.glob("*/.*.old-*")]:
                shutil.rmtree(half_written, ignore_errors=True)
            if not self._file.exists():
                write_json(self._file.with_suffix(".new"), self._settings)
                self._file.with_suffix(".new").rename(self._file)
        except BlockingIOError:
            raise ConfigError(f"another run is writing to {self.path}; wait until it ends, or choose another") from None
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error
        return descriptor
