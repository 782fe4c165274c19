"""Checkpoints of a running training: whole or absent, flushed to the disk, and without pickled objects."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from limbert.errors import CheckpointError, ConfigError
from limbert.model.checkpoint import write_json

STATE_NAME = "trainer_state.json"
OPTIMIZER_NAME, SETTINGS_NAME, SCHEDULER_NAME = "optimizer.safetensors", "optimizer.json", "scheduler.json"
_REQUIRED = ("model.safetensors", OPTIMIZER_NAME, SETTINGS_NAME, SCHEDULER_NAME, STATE_NAME)


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint from which a training can resume; None if there is none.

    A folder without one of its files (deleted half-way, or written by another program) is passed over.
    """
    found = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step(path) is not None]
    for path in sorted(found, key=lambda path: _step(path) or 0, reverse=True):
        if all((path / name).exists() for name in _REQUIRED) and _is_json(path / STATE_NAME):
            return path
    return None


def _step(path: Path) -> int | None:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def save_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Write the states of an optimizer and a scheduler: tensors as safetensors, all else as JSON.

    Raises:
        ConfigError: if a state holds anything but tensors, numbers, words and lists of them.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{key}"] = value.detach().contiguous().clone()
            else:
                values.setdefault(str(index), {})[key] = value
    others = {"state": values, "param_groups": state["param_groups"]}
    for name, content, owner in (
        (SETTINGS_NAME, others, optimizer),
        (SCHEDULER_NAME, scheduler.state_dict(), scheduler),
    ):
        unsupported = {*state} - {"state", "param_groups"} if content is others else set()
        if unsupported or not _is_plain(content):
            kind = type(getattr(owner, "optimizer", owner) if content is others else owner).__name__
            raise ConfigError(
                f"the state of {kind} holds more than tensors and numbers and cannot be saved; "
                "use another optimizer or scheduler, or save_only_model=True"
            )
        write_json(folder / name, content)
    save_file(tensors, folder / OPTIMIZER_NAME)


def load_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Restore what `save_optimizer` wrote.

    Raises:
        CheckpointError: if the files cannot be read or are of another optimizer.
    """
    try:
        values = json.loads((folder / SETTINGS_NAME).read_text(encoding="utf-8"))
        state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in values["state"].items()}
        for name, tensor in load_file(folder / OPTIMIZER_NAME).items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = tensor
        groups = [{key: _as_tuple(value, key) for key, value in group.items()} for group in values["param_groups"]]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        scheduler.load_state_dict(json.loads((folder / SCHEDULER_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder} cannot be read; delete it to resume from the one before: {error}") from error


def _as_tuple(value: Any, key: str) -> Any:
    return tuple(value) if isinstance(value, list) and key != "params" else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(part) for part in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str)


def write_into(directory: str | Path, save: Callable[[Path], None]) -> None:
    """Add files to a folder, each one whole or not at all; what else is there stays.

    Args:
        directory: created if it is missing.
        save: writes the files into the folder that it is given.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".new-") as fresh:
        folder = Path(fresh) / (target.absolute().name or "model")  # the name is in the model card
        save(folder)
        for path in sorted(folder.iterdir()):
            os.replace(path, target / path.name)
