"""The folder of a run that is not finished: its settings, its log, its finished phases, its running state.

It is ``OUTPUT.training`` beside the output, which itself appears only when all is done.
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbert.core.config import DataConfig, TrainConfig
from limbert.core.corpus_config import CorpusConfig
from limbert.errors import ConfigError, StorageError
from limbert.model.checkpoint import read_record, write_json
from limbert.run.lock import locked
from limbert.train.fingerprint import differences

if TYPE_CHECKING:
    from limbert.train.recipes import Recipe

LOG_NAME = "log.jsonl"
_SETTINGS_NAME = "settings.json"
_WITHOUT_EFFECT = ("output", "checkpoint_every", "tensorboard")  # settings that do not change the result


def settings_of(
    config: TrainConfig,
    recipe: "Recipe",
    data_config: DataConfig | CorpusConfig,
    content: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Everything that decides a run's result, as JSON values: see `same_run.differences`.

    Args:
        config, recipe, data_config: as the run has them.
        content: digests of what they name; None where nobody looked.
    """
    train = {name: value for name, value in asdict(config).items() if name not in _WITHOUT_EFFECT}
    source = "data" if isinstance(data_config, DataConfig) else "corpus"
    values = {"train": train, "recipe": recipe.to_dict(), source: asdict(data_config)}
    if content is not None:
        values["content"] = dict(content)
    parsed: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists, as when read back
    return parsed


def is_finished(output: str | Path, settings: dict[str, Any], *, overwrite: bool = False) -> bool:
    """Whether the output holds this very run.

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
    changed = differences(record.get("settings", {}), settings)
    if not changed:  # a setting that is younger than the run is None in both
        return True
    raise ConfigError(f"output {output} has other settings ({changed}); choose another folder or --overwrite")


class Workspace:
    """Keeps a run's unfinished business. Making one looks at what is there and writes nothing; `create` does.

    Args:
        output: the folder that the run will produce.
        settings: from `settings_of`; a work folder with other settings is refused.
        overwrite: let `create` discard a work folder with other settings instead.
        writes: whether this process changes anything on the disk; of several only the main one does.

    Raises:
        ConfigError: if an unfinished run with other settings is there.
        StorageError: if it cannot be read.
    """

    def __init__(
        self, output: str | Path, settings: dict[str, Any], *, overwrite: bool = False, writes: bool = True
    ) -> None:
        output = Path(output)
        self._writes, self._output = writes, output
        self._held: int | None = None  # descriptor of the locked file
        self.folder = output.with_name(output.name + ".training")
        self._lock = output.with_name(output.name + ".training.lock")  # beside it: the folder comes and goes
        self._settings = settings
        path = self.folder / _SETTINGS_NAME
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot read {path}: {error}") from error
        changed = "" if found is None else differences(found, settings)
        self._stale = bool(changed)
        if self._stale and not overwrite:
            raise ConfigError(
                f"{self.folder} holds an unfinished run with other settings ({changed}); finish it with its own "
                "command and data, delete the folder, choose another output, or use --overwrite"
            )

    def hold(self) -> None:
        """Keep other runs from writing here until `release`, or until this process ends, in whatever way.

        Nothing is held where nothing could be written yet (the folder around the output is missing), or on a file
        system without locks.

        Raises:
            ConfigError: if another run is writing here.
            StorageError: if the file to lock cannot be made.
        """
        if not self._writes or self._held is not None or not self._lock.parent.is_dir():
            return
        try:
            self._held = locked(self._lock)
        except BlockingIOError:
            raise ConfigError(
                f"another run is writing to {self._output}; wait until it ends, or choose another output"
            ) from None
        except OSError as error:
            raise StorageError(f"cannot write {self.folder}: {error.strerror}") from error

    def release(self) -> None:
        """Let other runs write here."""
        if self._held is not None:
            with suppress(OSError):  # a file that stays is locked by nobody
                self._lock.unlink()
            os.close(self._held)
            self._held = None

    def create(self) -> None:
        """Make the folder, with the settings in it.

        Raises:
            StorageError: if it cannot be written.
        """
        if not self._writes:
            return
        path = self.folder / _SETTINGS_NAME
        try:
            if self._stale:
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_json(path.with_suffix(".new"), self._settings)
                path.with_suffix(".new").rename(path)
        except OSError as error:
            raise StorageError(f"cannot write {self.folder}: {error.strerror}") from error

    def last_finished(self, phases: list[str]) -> str | None:
        """The last of these phases whose result is here, of a run with these settings."""
        finished = [phase for phase in phases if self.phase_folder(phase).is_dir()]
        return finished[-1] if finished and not self._stale else None

    def phase_folder(self, phase: str) -> Path:
        """Where the result of a finished phase is."""
        return self.folder / f"{phase}-done"

    def forget_before(self, phase: str, phases: list[str]) -> None:
        """Delete what a finished phase makes useless: its own states, and the phases before it."""
        if not self._writes:
            return
        for state in self.folder.glob(f"{phase}-step-*"):
            shutil.rmtree(state, ignore_errors=True)
        for part in self.folder.glob(f"{phase}-*-part-*"):
            part.unlink(missing_ok=True)
        for earlier in phases[: phases.index(phase)]:
            shutil.rmtree(self.phase_folder(earlier), ignore_errors=True)

    def log(self, record: dict[str, object]) -> None:
        """Append one line to the log.

        Raises:
            StorageError: if it cannot be written.
        """
        if not self._writes:
            return
        try:
            with (self.folder / LOG_NAME).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise StorageError(f"cannot write {self.folder / LOG_NAME}: {error.strerror}") from error

    def rewind_log(self, phase: str, step: int) -> None:
        """Drop what the log says of a phase after a step: those steps are done again."""
        path = self.folder / LOG_NAME
        if not self._writes or not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the half of a line that a killed process wrote
            if record.get("phase") != phase or record["step"] <= step:
                kept.append(line + "\n")
        path.write_text("".join(kept), encoding="utf-8")

    def remove(self) -> None:
        """Delete the folder: the run is finished."""
        if self._writes:
            shutil.rmtree(self.folder, ignore_errors=True)
