"""Benchmarks of sub-networks on this machine: latency with all of them in turns, peak memory of each loaded alone."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from limbert.core.config import RuntimePrecision, configs_from_options, require, shows_options
from limbert.core.subnet import Subnet
from limbert.core.verb_config import BenchmarkConfig
from limbert.errors import CheckpointError, ConfigError
from limbert.evaluation.evaluate import Progress, count_parameters, no_progress
from limbert.evaluation.hardware import hardware_info
from limbert.evaluation.memory import WEIGHTS_NAME, example_batch, peak_memory_bytes
from limbert.evaluation.policy_passes import dynamic_points, passes_per_round, policy_passes
from limbert.evaluation.results import (
    PROFILE_NAME,
    ProfileRow,
    ProfileSetup,
    profile_row_key,
    read_profile,
    replace_json_lines,
    require_writable_run,
)
from limbert.inference.compiled import CompiledSubnet, SubnetCompiler
from limbert.inference.load import LoadedCheckpoint, load_checkpoint, resolve_device
from limbert.inference.policy import OperatingPoint
from limbert.inference.runtimes import RUNTIMES, Runtime, check_runtime, load_runtime
from limbert.model.checkpoint import library_versions, read_record
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel

MIN_ROUNDS = 5
_WARMUP_ROUNDS = 3  # not counted
_WARMUP_SUBNET = Subnet((0,), (1,), (1,))
_WARMUP, _COMPILED = "warm-up", "compiled files"  # folders beside those of the sub-networks
_DEFAULT_TOKENS = 128

RowsCallback = Callable[[list[ProfileRow]], None]


@shows_options(BenchmarkConfig)
def benchmark(
    run: str | Path,
    *,
    on_setup: RowsCallback = lambda rows: None,
    progress: Progress = no_progress,
    **options: Any,
) -> list[ProfileRow]:
    """Measure parameters, FLOPs, file size, peak memory, latency and throughput of sub-networks on this machine.

    Operating points with gates or exits, and cascades, are measured on torch beside them: on real texts of the setup's
    length, a round's time being the mean over at least 8 texts.

    Every combination of backend, precision, batch size and length is one setup; its rows are saved in the run
    (``profile.jsonl``) as soon as they are measured, in place of earlier ones of the same setup on the same hardware.
    The files of other runtimes than torch are verified as `SubnetCompiler` does, and deleted at the end.

    Args:
        run: elastic model.
        on_setup: called with the rows of each setup.
        progress: called with what runs, steps done and steps in all.
        options: those below; ``subnets`` are named ``WIDTHxDEPTH``, as found by a search, or like operating points.

    Raises:
        LimbertError: for a run, setup or sub-network that cannot be measured or saved; refused before the work.
    """
    (config,) = configs_from_options(options, BenchmarkConfig)
    run, subnets, device = os.path.expanduser(run), config.names, config.device
    if not Path(run).is_dir() or not read_record(run):
        raise CheckpointError(f"{run} is no model trained by Limbert; give the output folder of limbert train")
    require_writable_run(run)
    if (Path(run) / PROFILE_NAME).exists():
        read_profile(Path(run) / PROFILE_NAME)  # refuses a broken one before the work
    points = dynamic_points(read_record(run))
    points = {name: point for name, point in points.items() if not subnets or name in subnets}
    pairs = list(_backend_precisions(config.backends, config.precisions))
    checkpoint = load_checkpoint(run) if points or any(backend != "torch" for backend, _ in pairs) else None
    model = ElasticModel.from_pretrained(run) if checkpoint is None else checkpoint.model
    distinct = dict.fromkeys(
        ProfileSetup(backend, device, torch.get_num_threads(), batch, tokens, precision)
        for backend, precision in pairs
        for batch in config.batch_sizes
        for tokens in config.lengths or (min(_DEFAULT_TOKENS, model.max_input_length),)
    )
    for setup in distinct:
        check_setup(setup, model)
    names = [name for name in subnets if name not in points]
    selected = {name: model.subnet(name) for name in names} if subnets else model.subnets() | model.searched_subnets()
    for subnet in selected.values():
        model.check(subnet)
    setups = [setup for setup in distinct if selected or setup.backend == "torch"]  # operating points run on torch only
    if not setups:
        raise ConfigError("nothing to measure: name a runtime (for operating points torch) and a batch size")
    rows: list[ProfileRow] = []
    with tempfile.TemporaryDirectory(prefix="limbert-") as folder:
        profiler = Profiler(
            model, selected, Path(folder), rounds=config.rounds, max_seconds=config.max_seconds, checkpoint=checkpoint
        )
        for setup in setups:
            own_points = points if setup.backend == "torch" else {}
            measured = profiler.measure(setup, list(selected), points=own_points, progress=progress)
            replace_json_lines(Path(run) / PROFILE_NAME, [row.to_dict() for row in measured], key=profile_row_key)
            on_setup(measured)
            rows += measured
    return rows


def _backend_precisions(backends: Sequence[str], precisions: Sequence[str]) -> Iterator[tuple[str, RuntimePrecision]]:
    """The pairs to measure, for ``all`` those that work here; a precision that no backend has is refused with them."""
    if "all" in backends:
        backends = [name for name in RUNTIMES if _works(name, "fp32")]
    chosen: Sequence[Any] = get_args(RuntimePrecision) if "all" in precisions else precisions
    for precision in chosen:
        known = [name for name in backends if name not in RUNTIMES or precision in _profiled_precisions(name)]
        if "all" in precisions:
            yield from ((name, precision) for name in known if _works(name, precision))
        else:
            yield from ((name, precision) for name in known or backends)


def _works(backend: str, precision: str) -> bool:
    try:
        check_runtime(backend, precision)
    except ConfigError:
        return False
    return True


def _profiled_precisions(backend: str) -> tuple[RuntimePrecision, ...]:
    """Those that its files are compiled in; the autocast of torch is not measured."""
    return ("fp32",) if backend == "torch" else RUNTIMES[backend].precisions


def check_setup(setup: ProfileSetup, model: ElasticModel) -> None:
    """Raise ConfigError for a setup that cannot be measured: no such runtime, library, device or length."""
    require(setup.backend in RUNTIMES, "runtime", setup.backend, f"one of {', '.join(RUNTIMES)}")
    check_runtime(setup.backend, setup.precision)
    if setup.precision not in _profiled_precisions(setup.backend):
        raise ConfigError(f"backend {setup.backend} is profiled in fp32; {setup.precision}: onnxruntime or openvino")
    require(setup.device in ("cpu", "cuda"), "device", setup.device, "cpu or cuda")
    if setup.device == "cuda" and setup.backend != "torch":
        raise ConfigError(f"backend {setup.backend} is measured on the CPU only; on cuda measure torch")
    resolve_device(setup.device)  # refuses a GPU that torch does not find
    require(setup.batch >= 1, "batch", setup.batch, "at least 1")
    longest = model.max_input_length
    require(2 <= setup.tokens <= longest, "tokens", setup.tokens, f"from 2 to the model's longest input, {longest}")


@dataclass
class Profiler:
    """Measures sub-networks of one model on this machine; ``folder`` is for the saved sub-networks, empty at first.

    Other runtimes than torch need the ``checkpoint`` of the model, with texts to verify on.
    """

    model: ElasticModel
    subnets: Mapping[str, Subnet]
    folder: Path
    rounds: int
    max_seconds: float
    checkpoint: LoadedCheckpoint | None = None
    _loaded_for: tuple[str, ...] = field(default=(), init=False)  # backend, device and precision
    _compiler: SubnetCompiler | None = field(default=None, init=False)  # None for torch
    _compiled: dict[str, CompiledSubnet] = field(default_factory=dict, init=False)  # by name; empty for torch
    _runtimes: dict[str, Runtime] = field(default_factory=dict, init=False)

    def measure(
        self,
        setup: ProfileSetup,
        names: Sequence[str],
        *,
        points: Mapping[str, OperatingPoint] = MappingProxyType({}),
        progress: Progress = no_progress,
    ) -> list[ProfileRow]:
        """Rows of the named sub-networks, and on torch of operating points, in a setup that `check_setup` accepted."""
        self._load(setup, names, progress)
        inputs = example_batch(self.model.network.config, batch=setup.batch, tokens=setup.tokens)
        title = f"{setup.backend} {setup.precision} {setup.batch}x{setup.tokens}"
        functions: dict[str, Callable[[], object]] = {name: partial(self._runtimes[name], inputs) for name in names}
        for name, point in points.items():
            assert self.checkpoint is not None
            functions[name] = policy_passes(self.checkpoint, point, setup)
        times = time_interleaved(
            functions,
            rounds=self.rounds,
            max_seconds=self.max_seconds,
            progress=partial(progress, f"{title}: latency"),
        )
        progress(f"{title}: memory", 0, 1)
        sources = [self._compiled[name].path if self._compiled else self._path(name) for name in names]
        warmup_file = self._warmup_file(setup.backend)
        peaks = peak_memory_bytes(sources, setup, warmup_folder=self._path(_WARMUP), warmup_file=warmup_file)
        shared = {
            "setup": setup,
            "hardware": hardware_info(),
            "versions": library_versions() | ({setup.backend: version(setup.backend)} if self._compiled else {}),
            "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        rows = [self._row(name, times[name], peak, shared) for name, peak in zip(names, peaks, strict=True)]
        return rows + [self._point_row(name, point, times[name], shared) for name, point in points.items()]

    def _row(self, name: str, seconds: list[float], peak: int | None, shared: dict[str, Any]) -> ProfileRow:
        subnet, setup, compiled = self.subnets[name], shared["setup"], self._compiled.get(name)
        size = (self._path(name) / WEIGHTS_NAME).stat().st_size if compiled is None else compiled.file_bytes
        return ProfileRow(
            subnet=name,
            params=count_parameters(self.model, subnet),
            flops=CostModel(self.model).flops(subnet, setup.tokens),
            file_bytes=size,
            peak_memory_bytes=peak,
            metric_loss=0.0 if compiled is None else compiled.metric_loss,
            **_speed(seconds, setup.batch),
            **shared,
        )

    def _point_row(self, name: str, point: OperatingPoint, seconds: list[float], shared: dict[str, Any]) -> ProfileRow:
        assert self.checkpoint is not None
        setup, model = shared["setup"], self.model
        return ProfileRow(
            subnet=name,
            params=model.network.num_parameters(),
            flops=round(point.flops_share * CostModel(model).flops(model.full, setup.tokens)),
            file_bytes=(Path(self.checkpoint.path) / WEIGHTS_NAME).stat().st_size,
            peak_memory_bytes=None,
            **_speed([value / passes_per_round(setup) for value in seconds], setup.batch),
            **shared,
        )

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _load(self, setup: ProfileSetup, names: Sequence[str], progress: Progress) -> None:
        """Save or compile the sub-networks that are not loaded yet, and load them into the setup's runtime."""
        loaded_for, on_torch = (setup.backend, setup.device, setup.precision), setup.backend == "torch"
        if self._loaded_for != loaded_for:
            self._runtimes, self._compiled, self._loaded_for, self._compiler = {}, {}, loaded_for, None
            shutil.rmtree(self._path(_COMPILED), ignore_errors=True)
            if not on_torch:
                assert self.checkpoint is not None
                self._compiler = SubnetCompiler(
                    self.checkpoint,
                    runtime=setup.backend,
                    precision=setup.precision,
                    threads=setup.threads,
                    cache_dir=self._path(_COMPILED),
                )
        if setup.device == "cuda":
            nn.Module.cuda(self.model.network)
        for done, name in enumerate((_WARMUP, *names)):
            progress("saving" if on_torch else f"compiling for {setup.backend}", done, len(names) + 1)
            subnet = self.subnets.get(name, _WARMUP_SUBNET)
            if (on_torch or name == _WARMUP) and not self._path(name).exists():
                self.model.extract(subnet).save_pretrained(self._path(name))
            if name in self._runtimes or name == _WARMUP:
                continue
            if self._compiler is None:
                self._runtimes[name] = load_runtime("torch", self.model.view(subnet), threads=setup.threads)
            else:
                self._compiled[name] = compiled = self._compiler.compile(subnet)
                runtime = self._compiler.open(compiled)
                assert isinstance(runtime, Runtime)
                self._runtimes[name] = runtime

    def _warmup_file(self, backend: str) -> Path | None:
        """The tiny network in a file of the runtime."""
        library = RUNTIMES[backend]
        if library.write is None:
            return None
        folder = self._path(f"{_WARMUP} {backend}")
        if not folder.exists():
            folder.mkdir()
            library.write(self.model.view(_WARMUP_SUBNET), folder, ("input_ids", "attention_mask"))
        return folder / library.model_name


def _speed(seconds: Sequence[float], batch: int) -> dict[str, Any]:
    """The values of a row that follow from the seconds of its forward passes."""
    p50, p95 = (1000 * float(np.quantile(seconds, level)) for level in (0.5, 0.95))
    return {
        "latency_p50_ms": p50,
        "latency_p95_ms": p95,
        "throughput": 1000 * batch / p50,
        "rounds": len(seconds),
    }


def time_interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    max_seconds: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[float]]:
    """Seconds of each call; the functions take turns within a round, so that a slow phase of the machine affects all.

    Three rounds are not counted. Fewer than ``rounds`` are made, but at least 5, if judged by the last uncounted one
    they would take longer than ``max_seconds``.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    number = -_WARMUP_ROUNDS
    while number < rounds:
        round_start = time.perf_counter()
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if number >= 0:
                times[name].append(time.perf_counter() - start)
        if number == -1 and max_seconds is not None:
            affordable = int(max_seconds / (time.perf_counter() - round_start))
            rounds = max(min(rounds, MIN_ROUNDS), min(rounds, affordable))
        number += 1
        progress(number + _WARMUP_ROUNDS, rounds + _WARMUP_ROUNDS)
    return times
