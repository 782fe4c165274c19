"""Peak memory of a process that loads one sub-network alone and runs one batch.

On the CPU: the maximum resident set size, less the memory in use after the same libraries have run a tiny network. On
CUDA: the most that torch allocated. Each measurement runs in a process of its own, forked from one that has only
imported the libraries (``python -m limbert.evaluation.memory``). Loading is included, and what a runtime does then
(OpenVINO compiles).
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from limbert.errors import LimbertError
from limbert.evaluation.results import ProfileSetup
from limbert.inference.runtimes import load_runtime
from limbert.model.standalone import load_standalone

WEIGHTS_NAME = "model.safetensors"
PEAK_MEMORY_SUPPORTED = sys.platform == "linux"  # elsewhere ru_maxrss has other units, and forking is unsafe


def example_batch(network_config: PretrainedConfig, *, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """Random token ids and a mask ``(batch, tokens)`` without padding; the same for every sub-network."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, network_config.vocab_size, (batch, tokens), generator=generator)
    pad = network_config.pad_token_id
    if pad is not None:
        ids[ids == pad] = 3 if pad != 3 else 4
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def peak_memory_bytes(
    sources: Sequence[Path], setup: ProfileSetup, *, warmup_folder: Path, warmup_file: Path | None = None
) -> list[int | None]:
    """Peak memory of each sub-network, loaded alone in a process of its own; None on systems other than Linux.

    The sources are saved sub-networks for torch, and files for the other runtimes. The warm-up, a tiny
    sub-network, runs first, so that the libraries are initialised: its folder, and for other runtimes also its file.
    """
    if not PEAK_MEMORY_SUPPORTED:
        return [None] * len(sources)
    paths = [str(path) for path in (warmup_file or warmup_folder, *sources)]
    job = {"config": str(warmup_folder), "sources": paths, "setup": vars(setup)}
    done = subprocess.run(
        [sys.executable, "-m", __name__], input=json.dumps(job), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        raise LimbertError(f"measuring peak memory on {setup} failed: {reason}")
    peaks: list[int | None] = json.loads(done.stdout)
    return peaks


def _peak_of_this_process(source: Path, warmup: Path, config: PretrainedConfig, setup: ProfileSetup) -> int:
    """Run the warm-up network, then the sub-network: by how many bytes the second raises the memory in use."""
    import resource  # not on every system, and only needed here

    torch.set_num_threads(setup.threads)
    _load_and_run(warmup, config, replace(setup, batch=1, tokens=8))
    if setup.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _load_and_run(source, config, setup)
        return torch.cuda.max_memory_allocated() - before
    before = psutil.Process().memory_info().rss
    _load_and_run(source, config, setup)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # the warm-up's peak is never higher


def _load_and_run(source: Path, config: PretrainedConfig, setup: ProfileSetup) -> None:
    loaded = load_standalone(source) if setup.backend == "torch" else source
    if setup.device == "cuda":
        assert isinstance(loaded, nn.Module)
        nn.Module.cuda(loaded)
    runtime = load_runtime(setup.backend, loaded, threads=setup.threads, precision=setup.precision)
    runtime(example_batch(config, batch=setup.batch, tokens=setup.tokens))


def main() -> None:
    """Read a job from standard input, measure each source in a forked process, and write the bytes as JSON."""
    job, peaks = json.load(sys.stdin), list[int]()
    warmup, *sources = map(Path, job["sources"])
    setup, config = ProfileSetup(**job["setup"]), AutoConfig.from_pretrained(job["config"])
    for source in sources:
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            peaks.append(pool.submit(_peak_of_this_process, source, warmup, config, setup).result())
    sys.stdout.write(json.dumps(peaks))


if __name__ == "__main__":
    main()
