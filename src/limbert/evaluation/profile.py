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
from limbert.errors import ConfigError
from limbert.evaluation.hardware import hardware
from limbert.evaluation.latency import interleaved_seconds
from limbert.evaluation.memory import MemoryMeter, example_batch, file_of, save_alone
from limbert.evaluation.profile_rows import Cell, ProfileRow
from limbert.evaluation.subnets import count_parameters
from limbert.inference.load import device_of
from limbert.inference.onnx_graph import optional_library
from limbert.inference.runtimes import RUNTIMES, Runtime, load_runtime
from limbert.model.checkpoint import versions
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel

_TINY = "tiny"
Advance = Callable[[str, int, int], None]  # what is done, how much of it, and of how much


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
        self, model: ElasticModel, subnets: Mapping[str, Subnet], folder: Path, *, rounds: int, seconds: float
    ) -> None:
        self._model, self._subnets, self._folder = model, dict(subnets), folder
        self._rounds, self._seconds = rounds, seconds
        self._cost = CostModel(model)
        self._loaded: tuple[str, str, int] | None = None
        self._runtimes: dict[str, Runtime] = {}
        self._saved: dict[str, bool] = {}  # whether with a graph

    def __enter__(self) -> Self:
        self._meter = MemoryMeter().__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._meter.__exit__(kind, error, at)

    def measure(
        self, cell: Cell, names: list[str], *, advance: Advance = lambda what, done, total: None
    ) -> list[ProfileRow]:
        """The rows of the named sub-networks in one cell.

        Args:
            cell: how they are run; checked with `check_cell`.
            names: of the profiler's sub-networks.
            advance: told how far it is.

        Raises:
            LimbertError: if a sub-network cannot be run there.
        """
        self._prepare(cell, names, advance)
        inputs = example_batch(self._model.network.config, batch=cell.batch, tokens=cell.tokens)
        runs = {name: _runner(self._runtimes[name], inputs) for name in names}
        title = f"{cell.backend} {cell.batch}x{cell.tokens}"
        times = interleaved_seconds(
            runs,
            rounds=self._rounds,
            seconds=self._seconds,
            progress=lambda done, total: advance(f"{title}: latency", done, total),
        )
        memory = {}
        for done, name in enumerate(names):
            advance(f"{title}: memory", done, len(names))
            memory[name] = self._meter.peak(self._folder / name, self._folder / _TINY, cell)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return [self._row(name, cell, times[name], memory[name], now=now) for name in names]

    def _row(self, name: str, cell: Cell, seconds: list[float], memory: int | None, *, now: str) -> ProfileRow:
        subnet = self._subnets[name]
        p50, p95 = (1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.95))
        runtime = {} if cell.backend == "torch" else {cell.backend: version(cell.backend)}
        return ProfileRow(
            subnet=name,
            params=count_parameters(self._model, subnet),
            flops=self._cost.flops(subnet, cell.tokens),
            file_bytes=file_of(self._folder / name, cell.backend).stat().st_size,
            peak_memory_bytes=memory,
            latency_p50_ms=p50,
            latency_p95_ms=p95,
            throughput=1000 * cell.batch / p50,
            rounds=len(seconds),
            cell=cell,
            hardware=hardware(),
            versions=versions() | runtime,
            measured=now,
        )

    def _prepare(self, cell: Cell, names: list[str], advance: Advance) -> None:
        """Save what is not saved yet, and load it into the cell's runtime."""
        graph = cell.backend != "torch"
        smallest = Subnet((0,), (1,), (1,))
        for done, (name, subnet) in enumerate([(_TINY, smallest), *((name, self._subnets[name]) for name in names)]):
            advance("saving" + " as ONNX" * graph, done, len(names) + 1)
            if name not in self._saved or (graph and not self._saved[name]):
                save_alone(self._model, subnet, self._folder / name, graph=graph)
                self._saved[name] = graph
        place = (cell.backend, cell.device, cell.threads)
        if self._loaded != place:
            self._runtimes, self._loaded = {}, place
        if cell.device == "cuda":
            nn.Module.cuda(self._model.network)
        for name in names:
            if name not in self._runtimes:
                view = self._model.view(self._subnets[name])
                source = file_of(self._folder / name, cell.backend) if graph else view
                self._runtimes[name] = load_runtime(cell.backend, source, threads=cell.threads)


def check_cell(cell: Cell, model: ElasticModel) -> None:
    """Raise ConfigError where a cell cannot be measured: no such runtime, library, device or length."""
    if cell.backend not in RUNTIMES:
        raise ConfigError(f"backend is {cell.backend!r}; it must be one of {', '.join(RUNTIMES)}")
    if cell.backend != "torch":
        for library in ("onnx", "onnxscript", cell.backend):
            optional_library(library)
    if cell.device not in ("cpu", "cuda"):
        raise ConfigError(f"device is {cell.device!r}; it must be cpu or cuda")
    if cell.device == "cuda" and cell.backend != "torch":
        raise ConfigError(f"backend {cell.backend} is measured on the CPU only; on cuda measure torch")
    device_of(cell.device)  # refuses a GPU that is not there
    if cell.batch < 1:
        raise ConfigError(f"batch is {cell.batch}; it must be at least 1")
    if not 2 <= cell.tokens <= model.longest_input:
        raise ConfigError(
            f"tokens is {cell.tokens}; it must be from 2 to the model's longest input, {model.longest_input}"
        )


def _runner(runtime: Runtime, inputs: dict[str, torch.Tensor]) -> Callable[[], object]:
    return lambda: runtime(inputs)
