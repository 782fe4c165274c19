"""The folder of a run that is not finished: its settings, its log, its finished phases, its running state.

It is ``OUTPUT.training`` beside the output, which itself appears only when all is done.
"""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbert.errors import CheckpointError, ConfigError, StorageError
from limbert.files import atomic_folder, try_lock
from limbert.model.checkpoint import read_record, write_json
from limbert.train.fingerprint import describe_differences

if TYPE_CHECKING:
    pass

LOG_NAME = "log.jsonl"
_SETTINGS_NAME = "settings.json"


def is_run_finished(output: str | Path, settings: dict[str, Any], *, overwrite: bool = False) -> bool:
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
    changed = describe_differences(record.get("settings", {}), settings)
    if not changed:  # a setting that is younger than the run is None in both
        return True
    raise ConfigError(f"output {output} has other settings ({changed}); choose another folder or --overwrite")


class RunDirectory:
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
        self, output: str | Path, settings: dict[str, Any], *, overwrite: bool = False, can_write: bool = True
    ) -> None:
        output = Path(output)
        self._can_write, self._output = can_write, output
        self._lock_descriptor: int | None = None  # descriptor of the locked file
        self.path = output.with_name(output.name + ".training")
        self._lock_path = output.with_name(output.name + ".training.lock")  # beside it: the folder comes and goes
        self._settings = settings
        path = self.path / _SETTINGS_NAME
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot read {path}: {error}") from error
        changed = "" if found is None else describe_differences(found, settings)
        self._stale = bool(changed)
        if self._stale and not overwrite:
            raise ConfigError(
                f"{self.path} holds an unfinished run with other settings ({changed}); finish it with its own "
                "command and data, delete the folder, choose another output, or use --overwrite"
            )

    def lock(self) -> None:
        """Keep other runs from writing here until `release`, or until this process ends, in whatever way.

        Nothing is held where nothing could be written yet (the folder around the output is missing), or on a file
        system without locks.

        Raises:
            ConfigError: if another run is writing here.
            StorageError: if the file to lock cannot be made.
        """
        if not self._can_write or self._lock_descriptor is not None or not self._lock_path.parent.is_dir():
            return
        try:
            self._lock_descriptor = try_lock(self._lock_path)
        except BlockingIOError:
            raise ConfigError(
                f"another run is writing to {self._output}; wait until it ends, or choose another output"
            ) from None
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error

    def unlock(self) -> None:
        """Let other runs write here."""
        if self._lock_descriptor is not None:
            with suppress(OSError):  # a file that stays is locked by nobody
                self._lock_path.unlink()
            os.close(self._lock_descriptor)
            self._lock_descriptor = None

    def create(self) -> None:
        """Make the folder, with the settings in it.

        Raises:
            StorageError: if it cannot be written.
        """
        if not self._can_write:
            return
        path = self.path / _SETTINGS_NAME
        try:
            if self._stale:
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_json(path.with_suffix(".new"), self._settings)
                path.with_suffix(".new").rename(path)
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error

    def last_finished_phase(self, phases: list[str]) -> str | None:
        """The last of these phases whose result is here, of a run with these settings."""
        finished = [phase for phase in phases if self.phase_dir(phase).is_dir()]
        return finished[-1] if finished and not self._stale else None

    def phase_dir(self, phase: str) -> Path:
        """Where the result of a finished phase is."""
        return self.path / f"{phase}-done"

    def delete_obsolete(self, phase: str, phases: list[str]) -> None:
        """Delete what a finished phase makes useless: its own states, and the phases before it."""
        if not self._can_write:
            return
        for state in self.path.glob(f"{phase}-step-*"):
            shutil.rmtree(state, ignore_errors=True)
        for part in self.path.glob(f"{phase}-*-part-*"):
            part.unlink(missing_ok=True)
        for earlier in phases[: phases.index(phase)]:
            shutil.rmtree(self.phase_dir(earlier), ignore_errors=True)

    def append_log(self, record: dict[str, object]) -> None:
        """Append one line to the log.

        Raises:
            StorageError: if it cannot be written.
        """
        if not self._can_write:
            return
        try:
            with (self.path / LOG_NAME).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise StorageError(f"cannot write {self.path / LOG_NAME}: {error.strerror}") from error

    def truncate_log(self, phase: str, step: int) -> None:
        """Drop what the log says of a phase after a step: those steps are done again."""
        path = self.path / LOG_NAME
        if not self._can_write or not path.exists():
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
        if self._can_write:
            shutil.rmtree(self.path, ignore_errors=True)


_OPTIMIZER_TENSORS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW remembers of each parameter


@dataclass
class TrainingState:
    """Where a phase stands.

    Attributes:
        phase: its name.
        step: optimizer steps done.
        best_score: the highest validation score so far.
        best: the weights that reached it.
    """

    phase: str
    step: int = 0
    best_score: float | None = None
    best_weights: dict[str, Tensor] | None = None


def save_state(folder: Path, state: TrainingState, *, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the state beside earlier ones, whole or not at all, then delete the earlier ones.

    Raises:
        StorageError: if it cannot be written; earlier states stay.
    """
    target = folder / f"{state.phase}-step-{state.step}"
    with atomic_folder(target) as fresh:
        save_file(_cloned(network.state_dict()), fresh / "model.safetensors")
        save_file(_optimizer_tensors(network, optimizer), fresh / "optimizer.safetensors")
        if state.best_weights is not None:
            save_file(_cloned(state.best_weights), fresh / "best.safetensors")
        write_json(fresh / "state.json", {"phase": state.phase, "step": state.step, "best_score": state.best_score})
    for earlier in _state_dirs(folder, state.phase):
        if earlier != target:
            shutil.rmtree(earlier, ignore_errors=True)


def restore_latest_state(
    folder: Path, phase: str, *, network: nn.Module, optimizer: torch.optim.Optimizer
) -> TrainingState | None:
    """Restore the newest state of a phase into the network and the optimizer; None where there is none.

    Raises:
        CheckpointError: if the state cannot be read.
    """
    states = _state_dirs(folder, phase)
    if not states:
        return None
    newest = states[-1]
    try:
        values = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        network.load_state_dict(load_file(newest / "model.safetensors"))
        _restore_optimizer(load_file(newest / "optimizer.safetensors"), network, optimizer)
        best = load_file(newest / "best.safetensors") if values["best_score"] is not None else None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"the saved state {newest} cannot be read; delete it to begin the phase anew") from error
    return TrainingState(phase, step=values["step"], best_score=values["best_score"], best_weights=best)


def _state_dirs(folder: Path, phase: str) -> list[Path]:
    """Complete states, oldest first: a folder has this name only once it is whole."""
    found = folder.glob(f"{phase}-step-*")
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _cloned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no storage, as the file format wants them (tied weights do)."""
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}


def _optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {}
    for name, parameter in network.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            found[f"{key}/{name}"] = tensor
    return _cloned(found)


def _restore_optimizer(tensors: dict[str, Tensor], network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for name, parameter in network.named_parameters():
        if f"step/{name}" in tensors:
            optimizer.state[parameter] = {
                key: tensors[f"{key}/{name}"].to(parameter.device) for key in _OPTIMIZER_TENSORS
            }
