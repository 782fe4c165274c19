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
from torch import nn
from transformers import AutoConfig

from limbert.errors import LimbertError
from limbert.evaluation.profile_rows import Cell
from limbert.run.profile.standalone import example_batch, file_of, load_alone

SUPPORTED = sys.platform == "linux"  # elsewhere the kernel does not say what is needed


class MemoryMeter:
    """Keeps the process that measurements are forked from; use it in a ``with`` block."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has imported: else that would disturb what is timed meanwhile
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def peak(self, source: Path, tiny: Path, cell: Cell) -> int | None:
        """Bytes; None where this system cannot say.

        Args:
            source: folder of `save_alone`.
            tiny: the same of a sub-network as small as can be, to wake the libraries with.
            cell: how it runs.

        Raises:
            LimbertError: if the process dies, for example for lack of memory.
        """
        if not SUPPORTED:
            return None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"source": str(source), "tiny": str(tiny), "cell": vars(cell)}
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline() or '{"error": "the process ended"}')
        except OSError as error:
            answer = {"error": str(error)}
        if "error" in answer:
            raise LimbertError(f"measuring the memory of {source.name} failed: {answer['error']}")
        return int(answer["bytes"])


def _serve() -> None:
    """Answer jobs, each in a process of its own that is forked before anything has run."""
    import limbert.inference.runtimes  # noqa: F401 - imported here, so that no measurement pays for it

    _say({"ready": True})
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _answer(json.loads(line))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status != 0:
            _say({"error": f"the process ended with status {status}"})


def _answer(job: dict[str, Any]) -> None:
    try:
        _say({"bytes": _peak(Path(job["source"]), Path(job["tiny"]), Cell(**job["cell"]))})
    except Exception as error:
        _say({"error": f"{type(error).__name__}: {error}"})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _peak(source: Path, tiny: Path, cell: Cell) -> int:
    torch.set_num_threads(cell.threads)
    _run(tiny, cell, batch=1, tokens=8)
    if cell.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _run(source, cell, batch=cell.batch, tokens=cell.tokens)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest so far is what is resident now
    before = _resident("VmRSS")
    _run(source, cell, batch=cell.batch, tokens=cell.tokens)
    return _resident("VmHWM") - before


def _run(source: Path, cell: Cell, *, batch: int, tokens: int) -> None:
    """Load and answer one batch."""
    from limbert.inference.runtimes import load_runtime

    loaded = load_alone(source) if cell.backend == "torch" else file_of(source, cell.backend)
    if cell.device == "cuda":
        assert isinstance(loaded, nn.Module)
        nn.Module.cuda(loaded)
    runtime = load_runtime(cell.backend, loaded, threads=cell.threads)
    runtime(example_batch(AutoConfig.from_pretrained(source), batch=batch, tokens=tokens))


def _resident(what: str) -> int:
    """Bytes of ``VmRSS``, resident now, or ``VmHWM``, at most so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


if __name__ == "__main__":
    _serve()
