"""Measure sub-networks cell by cell: latency with all of them taking turns, memory of each loaded alone."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import nn

from limbert.core.subnet import Subnet
from limbert.errors import ConfigError, import_optional
from limbert.evaluation.hardware import hardware_info
from limbert.evaluation.latency import time_interleaved
from limbert.evaluation.memory import MemoryMeter, example_batch, model_file, save_standalone
from limbert.evaluation.profile_rows import ProfileRow, ProfileSetup
from limbert.evaluation.subnets import count_parameters
from limbert.inference.load import resolve_device
from limbert.inference.runtimes import RUNTIMES, Runtime, load_runtime
from limbert.model.checkpoint import library_versions
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel

_WARMUP_NAME = "tiny"
ProgressCallback = Callable[[str, int, int], None]  # what is done, how much of it, and of how much


class Profiler:
    """Measures sub-networks of one model on this machine; use it in a ``with`` block.

    Args:
        model: trained.
        subnets: by name.
        folder: empty, for the saved sub-networks; they take the space of all of them.
        rounds: passes of each sub-network in a cell.
        seconds: a cell's passes take about so long, with at least five rounds.
    """

    def __init__(
        self, model: ElasticModel, subnets: Mapping[str, Subnet], folder: Path, *, rounds: int, max_seconds: float
    ) -> None:
        self._model, self._subnets, self._folder = model, dict(subnets), folder
        self._rounds, self._max_seconds = rounds, max_seconds
        self._cost_model = CostModel(model)
        self._loaded_setup: tuple[str, str, int] | None = None
        self._runtimes: dict[str, Runtime] = {}
        self._saved_with_onnx: dict[str, bool] = {}  # whether with a graph

    def __enter__(self) -> Self:
        self._meter = MemoryMeter().__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._meter.__exit__(exc_type, exc_value, traceback)

    def measure(
        self,
        setup: ProfileSetup,
        subnet_names: list[str],
        *,
        progress: ProgressCallback = lambda what, done, total: None,
    ) -> list[ProfileRow]:
        """The rows of the named sub-networks in one cell.

        Args:
            cell: how they are run; checked with `check_cell`.
            names: of the profiler's sub-networks.
            advance: told how far it is.

        Raises:
            LimbertError: if a sub-network cannot be run there.
        """
        self._prepare(setup, subnet_names, progress)
        inputs = example_batch(self._model.network.config, batch=setup.batch, tokens=setup.tokens)
        runs = {name: _bind_inputs(self._runtimes[name], inputs) for name in subnet_names}
        title = f"{setup.backend} {setup.batch}x{setup.tokens}"
        times = time_interleaved(
            runs,
            rounds=self._rounds,
            max_seconds=self._max_seconds,
            progress=lambda done, total: progress(f"{title}: latency", done, total),
        )
        memory = {}
        for done, name in enumerate(subnet_names):
            progress(f"{title}: memory", done, len(subnet_names))
            memory[name] = self._meter.peak_bytes(self._folder / name, self._folder / _WARMUP_NAME, setup)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return [self._profile_row(name, setup, times[name], memory[name], measured=now) for name in subnet_names]

    def _profile_row(
        self, name: str, setup: ProfileSetup, seconds: list[float], peak_memory_bytes: int | None, *, measured: str
    ) -> ProfileRow:
        subnet = self._subnets[name]
        p50, p95 = (1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.95))
        runtime = {} if setup.backend == "torch" else {setup.backend: version(setup.backend)}
        return ProfileRow(
            subnet=name,
            params=count_parameters(self._model, subnet),
            flops=self._cost_model.flops(subnet, setup.tokens),
            file_bytes=model_file(self._folder / name, setup.backend).stat().st_size,
            peak_memory_bytes=peak_memory_bytes,
            latency_p50_ms=p50,
            latency_p95_ms=p95,
            throughput=1000 * setup.batch / p50,
            rounds=len(seconds),
            setup=setup,
            hardware=hardware_info(),
            versions=library_versions() | runtime,
            measured=measured,
        )

    def _prepare(self, setup: ProfileSetup, names: list[str], progress: ProgressCallback) -> None:
        """Save what is not saved yet, and load it into the cell's runtime."""
        graph = setup.backend != "torch"
        smallest = Subnet((0,), (1,), (1,))
        for done, (name, subnet) in enumerate(
            [(_WARMUP_NAME, smallest), *((name, self._subnets[name]) for name in names)]
        ):
            progress("saving" + " as ONNX" * graph, done, len(names) + 1)
            if name not in self._saved_with_onnx or (graph and not self._saved_with_onnx[name]):
                save_standalone(self._model, subnet, self._folder / name, with_onnx=graph)
                self._saved_with_onnx[name] = graph
        place = (setup.backend, setup.device, setup.threads)
        if self._loaded_setup != place:
            self._runtimes, self._loaded_setup = {}, place
        if setup.device == "cuda":
            nn.Module.cuda(self._model.network)
        for name in names:
            if name not in self._runtimes:
                view = self._model.view(self._subnets[name])
                source = model_file(self._folder / name, setup.backend) if graph else view
                self._runtimes[name] = load_runtime(setup.backend, source, threads=setup.threads)


def check_setup(setup: ProfileSetup, model: ElasticModel) -> None:
    """Raise ConfigError where a cell cannot be measured: no such runtime, library, device or length."""
    if setup.backend not in RUNTIMES:
        raise ConfigError(f"backend is {setup.backend!r}; it must be one of {', '.join(RUNTIMES)}")
    if setup.backend != "torch":
        for library in ("onnx", "onnxscript", setup.backend):
            import_optional(library, extra="export")
    if setup.device not in ("cpu", "cuda"):
        raise ConfigError(f"device is {setup.device!r}; it must be cpu or cuda")
    if setup.device == "cuda" and setup.backend != "torch":
        raise ConfigError(f"backend {setup.backend} is measured on the CPU only; on cuda measure torch")
    resolve_device(setup.device)  # refuses a GPU that is not there
    if setup.batch < 1:
        raise ConfigError(f"batch is {setup.batch}; it must be at least 1")
    if not 2 <= setup.tokens <= model.max_input_length:
        raise ConfigError(
            f"tokens is {setup.tokens}; it must be from 2 to the model's longest input, {model.max_input_length}"
        )


def _bind_inputs(runtime: Runtime, inputs: dict[str, torch.Tensor]) -> Callable[[], object]:
    return lambda: runtime(inputs)
