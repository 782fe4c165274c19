"""Checkpoints of a running training: whole or absent, flushed to the disk, and without pickled objects."""

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from limbert.errors import CheckpointError, ConfigError
from limbert.model.checkpoint import write_json

STATE_NAME = "trainer_state.json"
_TENSORS, _VALUES, _SCHEDULER = "optimizer.safetensors", "optimizer.json", "scheduler.json"


def checkpoint_path(output_dir: Any, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint from which a training can resume; None if there is none.

    A folder without one of its files (deleted half-way, or written by another program) is passed over.
    """
    steps = [path.name.rpartition("-")[2] for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")]
    for step in sorted((int(step) for step in steps if step.isdecimal()), reverse=True):
        path, names = checkpoint_path(output_dir, step), ("model.safetensors", _TENSORS, _VALUES, _SCHEDULER)
        with suppress(OSError, ValueError):
            json.loads((path / STATE_NAME).read_text(encoding="utf-8"))
            if all((path / name).exists() for name in names):
                return path
    return None


def save_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Write the states of an optimizer and a scheduler: tensors as safetensors, all else as JSON.

    Raises:
        ConfigError: if a state holds anything but tensors, numbers, words and lists of them.
    """
    state = dict(optimizer.state_dict())
    entries = {(index, key): value for index, part in state["state"].items() for key, value in part.items()}
    tensors = {f"{index}/{key}": value for (index, key), value in entries.items() if isinstance(value, Tensor)}
    state["state"] = [[*key, value] for key, value in entries.items() if not isinstance(value, Tensor)]
    for name, content, owner in ((_VALUES, state, optimizer), (_SCHEDULER, scheduler.state_dict(), scheduler)):
        try:
            write_json(folder / name, content)
        except TypeError as error:
            raise ConfigError(
                f"the state of {type(getattr(owner, 'optimizer', owner)).__name__} holds more than tensors and numbers "
                "and cannot be saved; use another optimizer or scheduler, or save_only_model=True"
            ) from error
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, folder / _TENSORS)


def load_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Restore what `save_optimizer` wrote.

    Raises:
        CheckpointError: if the files cannot be read or are of another optimizer.
    """
    try:
        values = json.loads((folder / _VALUES).read_text(encoding="utf-8"))
        state: dict[int, dict[str, Any]] = {}
        for index, key, value in values["state"]:
            state.setdefault(index, {})[key] = value
        for name, tensor in load_file(folder / _TENSORS).items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict(values | {"state": state})
        scheduler.load_state_dict(json.loads((folder / _SCHEDULER).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder} cannot be read; delete it to resume from the one before: {error}") from error


def write_into(directory: Any, save: Callable[[Path], None]) -> None:
    """Add files to a folder, each one whole or not at all; what else is there stays.

    Args:
        directory: created if it is missing.
        save: creates the folder that it is given, with the files.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".new-") as fresh:
        folder = Path(fresh) / (Path(directory).absolute().name or "model")
        save(folder)
        for path in folder.iterdir():
            os.replace(path, Path(directory) / path.name)
