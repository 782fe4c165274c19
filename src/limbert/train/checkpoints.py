"""Checkpoints of a running training: whole or absent, flushed to the disk, and without pickled objects."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from limbert.errors import CheckpointError, ConfigError
from limbert.model.checkpoint import RECORD_FILENAME, write_json
from limbert.model.elastic import ElasticModel
from limbert.model.width_gates import GATES_FILENAME
from limbert.train.base_trainer import UnwrappedTrainer

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
        path = checkpoint_path(output_dir, step)
        names = ("model.safetensors", _TENSORS, _VALUES, _SCHEDULER)
        if all((path / name).exists() for name in names) and _is_json(path / STATE_NAME):
            return path
    return None


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
    state = dict(optimizer.state_dict())
    entries = {(index, key): value for index, part in state["state"].items() for key, value in part.items()}
    tensors = {f"{index}/{key}": value for (index, key), value in entries.items() if isinstance(value, Tensor)}
    state["state"] = [[*key, value] for key, value in entries.items() if not isinstance(value, Tensor)]
    for name, content, owner in ((_VALUES, state, optimizer), (_SCHEDULER, scheduler.state_dict(), scheduler)):
        if not _is_plain(content):
            raise ConfigError(
                f"the state of {type(getattr(owner, 'optimizer', owner)).__name__} holds more than tensors and numbers "
                "and cannot be saved; use another optimizer or scheduler, or save_only_model=True"
            )
        write_json(folder / name, content)
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


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


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


class CheckpointedTrainer(UnwrappedTrainer):
    """A Trainer of an elastic model whose checkpoints are elastic checkpoints with the training's state beside them."""

    elastic: ElasticModel

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            write_into(output_dir or self.args.output_dir, self._save_elastic)

    def _save_elastic(self, folder: Path, add_files: Callable[[Path], None] = lambda folder: None) -> None:
        self.elastic.save_pretrained(folder, tokenizer=self.processing_class, add_files=add_files)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        started, state, output_dir = time.monotonic(), self.state, self.args.output_dir
        folder = checkpoint_path(output_dir, state.global_step)
        if state.best_global_step:
            state.best_model_checkpoint = str(checkpoint_path(output_dir, state.best_global_step))
        if self.args.should_save:
            callbacks: list[Any] = [*self.callback_handler.callbacks, self.control]
            exportable = [callback for callback in callbacks if isinstance(callback, ExportableState)]
            state.stateful_callbacks = TrainerState(stateful_callbacks=exportable).stateful_callbacks  # type: ignore[arg-type]
            self._save_elastic(folder, self._add_training_state)
            rotate_checkpoints(str(output_dir), self.args.save_total_limit, state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()  # others may load the best one next
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        self.speed_since += time.monotonic() - started

    def _add_training_state(self, folder: Path) -> None:
        if not self.args.save_only_model:
            save_optimizer(folder, self.optimizer, self.lr_scheduler)
        self.state.save_to_json(str(folder / STATE_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)
            if self.state.best_global_step:  # beside this one, wherever the folder was when it was saved
                best = checkpoint_path(Path(checkpoint).parent, self.state.best_global_step)
                self.state.best_model_checkpoint = str(best)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: every step seeds itself."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        for name in (RECORD_FILENAME, GATES_FILENAME):  # the stock method copies config and weights
            if self.args.should_save and (Path(checkpoint_folder) / name).exists():
                shutil.copy(Path(checkpoint_folder) / name, str(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)
