"""The saved state of a running phase: enough to go on bit for bit, in safetensors and JSON."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbert.errors import CheckpointError
from limbert.model.checkpoint import write_json
from limbert.files import replaced_folder

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
    best: dict[str, Tensor] | None = None


def save_state(folder: Path, state: TrainingState, *, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the state beside earlier ones, whole or not at all, then delete the earlier ones.

    Raises:
        StorageError: if it cannot be written; earlier states stay.
    """
    target = folder / f"{state.phase}-step-{state.step}"
    with replaced_folder(target) as fresh:
        save_file(_owned(network.state_dict()), fresh / "model.safetensors")
        save_file(_optimizer_tensors(network, optimizer), fresh / "optimizer.safetensors")
        if state.best is not None:
            save_file(_owned(state.best), fresh / "best.safetensors")
        write_json(fresh / "state.json", {"phase": state.phase, "step": state.step, "best_score": state.best_score})
    for earlier in _states(folder, state.phase):
        if earlier != target:
            shutil.rmtree(earlier, ignore_errors=True)


def latest_state(
    folder: Path, phase: str, *, network: nn.Module, optimizer: torch.optim.Optimizer
) -> TrainingState | None:
    """Restore the newest state of a phase into the network and the optimizer; None where there is none.

    Raises:
        CheckpointError: if the state cannot be read.
    """
    states = _states(folder, phase)
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
    return TrainingState(phase, step=values["step"], best_score=values["best_score"], best=best)


def _states(folder: Path, phase: str) -> list[Path]:
    """Complete states, oldest first: a folder has this name only once it is whole."""
    found = folder.glob(f"{phase}-step-*")
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _owned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no storage, as the file format wants them (tied weights do)."""
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}


def _optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {}
    for name, parameter in network.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            found[f"{key}/{name}"] = tensor
    return _owned(found)


def _restore_optimizer(tensors: dict[str, Tensor], network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for name, parameter in network.named_parameters():
        if f"step/{name}" in tensors:
            optimizer.state[parameter] = {
                key: tensors[f"{key}/{name}"].to(parameter.device) for key in _OPTIMIZER_TENSORS
            }
