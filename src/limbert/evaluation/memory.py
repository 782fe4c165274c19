"""Peak memory of a process that loads one sub-network alone and answers one batch.

On the CPU: by how much the resident memory rises at most, over that of a process that has imported the same libraries
and run a tiny network in them. Each measurement is made in a fresh process, forked from one that has done no more than
import the libraries (``python -m limbert.evaluation.memory``, which reads jobs from standard input). On CUDA: what
torch allocated at most. Loading is part of it, and what a runtime does then (OpenVINO compiles).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import transformers
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from limbert.core.subnet import Subnet
from limbert.errors import LimbertError
from limbert.evaluation.profile_rows import ProfileSetup
from limbert.inference.onnx_graph import write_onnx
from limbert.model.checkpoint import write_json
from limbert.model.elastic import ElasticModel
from limbert.model.families import family_of, stack_of
from limbert.model.views import ViewFactory

WEIGHTS_NAME = "model.safetensors"
ONNX_NAME = "model.onnx"
_SUBNET_NAME = "subnet.json"


def save_standalone(model: ElasticModel, subnet: Subnet, folder: Path, *, with_onnx: bool) -> None:
    """Write a sub-network's weights and what is needed to load them into a new folder; with ``graph`` as ONNX too."""
    folder.mkdir(parents=True, exist_ok=True)
    model.network.config.save_pretrained(folder)
    write_json(folder / _SUBNET_NAME, subnet.to_dict() | {"class": type(model.network).__name__})
    weights = {name: tensor.contiguous().clone() for name, tensor in model.view(subnet).state_dict().items()}
    save_file(weights, folder / WEIGHTS_NAME)
    if with_onnx:
        write_onnx(model.view(subnet), folder / ONNX_NAME)


def model_file(folder: Path, backend: str) -> Path:
    """What a runtime loads of a saved sub-network."""
    return folder / (WEIGHTS_NAME if backend == "torch" else ONNX_NAME)


def load_standalone(folder: Path) -> PreTrainedModel:
    """The network that `save_alone` wrote, in evaluation mode; of the full model there is only an empty outline."""
    values = json.loads((folder / _SUBNET_NAME).read_text(encoding="utf-8"))
    network_class = getattr(transformers, values["class"])
    with init_empty_weights(include_buffers=False):
        outline = network_class(AutoConfig.from_pretrained(folder))
    family = family_of(outline)
    network = ViewFactory(outline, list(stack_of(outline, family)), family).build(Subnet.from_dict(values))
    network.load_state_dict(load_file(folder / WEIGHTS_NAME), assign=True)
    return network.requires_grad_(False).eval()


def example_batch(network_config: PretrainedConfig, *, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """Token ids and a mask ``(batch, tokens)`` without padding; the same for every sub-network."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, network_config.vocab_size, (batch, tokens), generator=generator)
    pad = network_config.pad_token_id
    if pad is not None:
        ids[ids == pad] = 3 if pad != 3 else 4
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


PEAK_MEMORY_SUPPORTED = sys.platform == "linux"  # elsewhere the kernel does not say what is needed


class MemoryMeter:
    """Keeps the process that measurements are forked from; use it in a ``with`` block."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has imported: else that would disturb what is timed meanwhile
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def peak_bytes(self, source: Path, warmup_source: Path, setup: ProfileSetup) -> int | None:
        """Bytes; None where this system cannot say.

        Args:
            source: folder of `save_alone`.
            tiny: the same of a sub-network as small as can be, to wake the libraries with.
            cell: how it runs.

        Raises:
            LimbertError: if the process dies, for example for lack of memory.
        """
        if not PEAK_MEMORY_SUPPORTED:
            return None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"source": str(source), "tiny": str(warmup_source), "setup": vars(setup)}
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline() or '{"error": "the process ended"}')
        except OSError as error:
            answer = {"error": str(error)}
        if "error" in answer:
            raise LimbertError(f"measuring the memory of {source.name} failed: {answer['error']}")
        return int(answer["bytes"])


def _measurement_server() -> None:
    """Answer jobs, each in a process of its own that is forked before anything has run."""
    import limbert.inference.runtimes  # noqa: F401 - imported here, so that no measurement pays for it

    _write_reply({"ready": True})
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run_job(json.loads(line))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status != 0:
            _write_reply({"error": f"the process ended with status {status}"})


def _run_job(job: dict[str, Any]) -> None:
    try:
        _write_reply(
            {"bytes": _measure_peak_bytes(Path(job["source"]), Path(job["tiny"]), ProfileSetup(**job["setup"]))}
        )
    except Exception as error:
        _write_reply({"error": f"{type(error).__name__}: {error}"})


def _write_reply(reply: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


def _measure_peak_bytes(source: Path, warmup_source: Path, setup: ProfileSetup) -> int:
    torch.set_num_threads(setup.threads)
    _load_and_run(warmup_source, setup, batch=1, tokens=8)
    if setup.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _load_and_run(source, setup, batch=setup.batch, tokens=setup.tokens)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest so far is what is resident now
    before = _resident_bytes("VmRSS")
    _load_and_run(source, setup, batch=setup.batch, tokens=setup.tokens)
    return _resident_bytes("VmHWM") - before


def _load_and_run(source: Path, setup: ProfileSetup, *, batch: int, tokens: int) -> None:
    """Load and answer one batch."""
    from limbert.inference.runtimes import load_runtime

    loaded = load_standalone(source) if setup.backend == "torch" else model_file(source, setup.backend)
    if setup.device == "cuda":
        assert isinstance(loaded, nn.Module)
        nn.Module.cuda(loaded)
    runtime = load_runtime(setup.backend, loaded, threads=setup.threads)
    runtime(example_batch(AutoConfig.from_pretrained(source), batch=batch, tokens=tokens))


def _resident_bytes(field: str) -> int:
    """Bytes of ``VmRSS``, resident now, or ``VmHWM``, at most so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    _measurement_server()
