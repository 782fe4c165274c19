"""What frozen sub-networks say about every example, computed once and kept: gates train on it for many epochs."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbert.core.config import Precision
from limbert.core.subnet import Subnet
from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.errors import StorageError
from limbert.model.elastic import ElasticModel
from limbert.model.shared_forward import SharedPass, run_pass
from limbert.train.distributed import ALONE, Processes
from limbert.train.trainer import Stopped

_BATCH = 64  # examples a pass
_PART = 32  # batches a file


@dataclass(frozen=True)
class StaticAnswers:
    """Answers of several sub-networks without dropout, on the CPU.

    Attributes:
        logits: ``(examples, subnets, outputs)``.
        first_tokens: ``(examples, subnets, places, hidden)``, the first token's state at each place.
    """

    logits: Tensor
    first_tokens: Tensor


@dataclass(frozen=True)
class Keeping:
    """Where finished parts are kept, so that an interrupted computation goes on.

    Attributes:
        folder: of the running phase.
        name: of the parts, ``NAME-part-3.safetensors``; the same name must mean the same model and examples.
        should_stop: asked after every batch.
        progress: called with batches done and in all.
        processes: those that compute missing parts together; the main one keeps them.
    """

    folder: Path
    name: str
    should_stop: Callable[[], bool] = lambda: False
    progress: Callable[[int, int], None] = lambda done, total: None
    processes: Processes = ALONE


def static_answers(
    model: ElasticModel,
    examples: TokenizedExamples,
    *,
    subnets: Sequence[Subnet],
    places: Sequence[int],
    precision: Precision,
    keeping: Keeping,
) -> StaticAnswers | None:
    """Run every example through every sub-network, one pass each.

    Args:
        model: runs without dropout; its mode is restored.
        examples: in any order.
        subnets: each with as many layers as the places ask for.
        places: after how many layers the first token's state is kept; 0 is the embedding output.
        precision: ``"bf16"`` runs under autocast.
        keeping: where parts are kept and looked for.

    Returns:
        The answers in the main process; None in the others.

    Raises:
        Stopped: when asked to stop; finished parts are kept.
        StorageError: if a part cannot be written.
    """
    processes = keeping.processes
    batches = evaluation_batches(examples.lengths, batch_size=_BATCH)
    parts = []
    for start in range(0, len(batches), _PART):
        path = keeping.folder / f"{keeping.name}-part-{start // _PART}.safetensors"
        part = _read_part(path) if processes.is_main else None
        if not processes.gather(part is not None)[0]:
            numbers = range(start, min(start + _PART, len(batches)))
            done = {}
            for number in numbers[processes.rank :: processes.count]:
                keeping.progress(number, len(batches))
                if keeping.should_stop():
                    break
                done[number] = _answer_batch(
                    model, examples, batches[number], subnets=subnets, places=places, precision=precision
                )
            found = {number: batch for process in processes.gather(done) for number, batch in process.items()}
            if len(found) < len(numbers):
                raise Stopped(f"stopped in {keeping.name} after {start} of {len(batches)} batches of static passes")
            part = {name: torch.cat([found[number][name] for number in numbers]) for name in found[start]}
            if processes.is_main:
                _write_part(path, part)
        if part is not None and processes.is_main:
            parts.append(part)
    if not processes.is_main:
        return None
    order = torch.tensor([index for batch in batches for index in batch])
    back = order.argsort()
    return StaticAnswers(**{name: torch.cat([part[name] for part in parts])[back] for name in parts[0]})


@torch.no_grad()
def _answer_batch(
    model: ElasticModel,
    examples: TokenizedExamples,
    indices: Sequence[int],
    *,
    subnets: Sequence[Subnet],
    places: Sequence[int],
    precision: Precision,
) -> dict[str, Tensor]:
    network, device = model.network, model.network.device
    inputs = {name: tensor.to(device) for name, tensor in examples.collate(indices).items() if name != "labels"}
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    training = network.training
    network.eval()
    logits, first_tokens = [], []
    try:
        for subnet in subnets:
            with model.at(subnet), autocast:
                answer = run_pass(model, SharedPass((subnet,)), inputs, keep_states=True)[subnet]
            logits.append(answer.logits.float())
            first_tokens.append(torch.stack([answer.states[place][:, 0].float() for place in places], dim=1))
    finally:
        network.train(training)
    return {"logits": torch.stack(logits, dim=1).cpu(), "first_tokens": torch.stack(first_tokens, dim=1).cpu()}


def _read_part(path: Path) -> dict[str, Tensor] | None:
    """A finished part; None where there is none or it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _write_part(path: Path, part: dict[str, Tensor]) -> None:
    """Whole or not at all."""
    fresh = path.with_suffix(".new")
    try:
        save_file(part, fresh)
        fresh.rename(path)
    except (OSError, SafetensorError) as error:
        fresh.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error}") from error
