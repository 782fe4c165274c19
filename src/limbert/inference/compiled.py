"""Sub-networks and policies compiled for ONNX Runtime or OpenVINO: built once, kept in the run directory, verified.

They are verified before use: the outputs of the fp32 graphs are compared with torch's on real texts, in bf16 and int8
also the metric on the development set.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbert.core.config import RuntimeConfig, RuntimePrecision
from limbert.core.subnet import Subnet
from limbert.data.task_registry import compute_task_metrics
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError, DataError, ExportError
from limbert.files import atomic_folder, json_fingerprint, locked
from limbert.inference.load import LoadedCheckpoint
from limbert.inference.parity import (
    calibration_batches,
    compare_outputs,
    labelled_examples,
    parity_batches,
    parity_examples,
    require_parity,
)
from limbert.inference.policy import Policy
from limbert.inference.predict import runtime_logits
from limbert.inference.quantize import CalibrationLoader
from limbert.inference.runtimes import RUNTIMES, Runtime, check_runtime, load_runtime
from limbert.inference.segments import CompiledPolicy, SegmentedPolicy
from limbert.model.checkpoint import library_versions, write_json

COMPILED_FOLDER = "compiled"  # in a run directory
_RECORD_NAME = "compiled.json"
_LABELLED_EXAMPLES = 1000  # at most, to measure the metric on
_AUTO_ROUNDS = 4  # the fastest counts

logger = logging.getLogger(__name__)


class _SubnetFiles:
    """A sub-network to be compiled; attributes and methods are those of `SegmentedPolicy`."""

    def __init__(self, checkpoint: LoadedCheckpoint, subnet: Subnet, runtime: str, threads: int) -> None:
        self._network, self._runtime, self._library = checkpoint.model.view(subnet), runtime, RUNTIMES[runtime]
        self.source = load_runtime("torch", self._network, threads=threads)
        self.identity, self.file_name, self.title = subnet.to_dict(), self._library.model_name, "a sub-network"
        self.networks: tuple[PreTrainedModel, *tuple[nn.Module, ...]] = (self._network,)

    def write(self, folder: Path) -> None:
        assert self._library.write is not None
        self._library.write(self._network, folder, self.source.input_names)

    def open(self, folder: Path, threads: int | None, precision: RuntimePrecision = "fp32") -> Runtime:
        return load_runtime(self._runtime, folder / self.file_name, threads=threads, precision=precision)

    load = open

    def quantize(self, folder: Path, load_batches: CalibrationLoader) -> None:
        assert self._library.quantize is not None
        self._library.quantize(folder / self.file_name, load_batches)


@dataclass(frozen=True)
class CompiledSubnet:
    """A sub-network or policy in the files of a runtime."""

    path: Path  # the file that the runtime loads, of a policy ``policy.json``
    metric_loss: float  # of the primary metric against torch in fp32, as a fraction; 0.0 for fp32
    files: _SubnetFiles | SegmentedPolicy  # what they were written from

    @property
    def file_bytes(self) -> int:
        """Size of all its files."""
        return sum(file.stat().st_size for file in _files(self.path.parent))


class SubnetCompiler:
    """Compiles sub-networks of one checkpoint for one runtime and precision.

    Args:
        checkpoint: on the CPU; its data settings say which texts to verify on. Without data fp32 is verified on
            built-in texts, and other precisions are refused.
        runtime: ``onnxruntime`` or ``openvino``.
        precision: one that the runtime has.
        threads: of the runtime; None: as many as torch.
        cache_dir: default: ``compiled`` in the run directory; a temporary folder if that cannot be written, and for a
            stock model.

    Raises:
        ConfigError: for a runtime that is not installed or lacks the precision.
    """

    def __init__(
        self,
        checkpoint: LoadedCheckpoint,
        *,
        runtime: str,
        precision: RuntimePrecision = "fp32",
        threads: int | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        check_runtime(runtime, precision)
        if checkpoint.model.network.device.type != "cpu":
            raise ConfigError(f"runtime {runtime} computes on the CPU; use --device cpu, or --runtime torch")
        self._checkpoint, self._runtime, self._precision = checkpoint, runtime, precision
        self._library, self._threads = RUNTIMES[runtime], threads or torch.get_num_threads()
        self._cache_dir = cache_dir or Path(checkpoint.path) / COMPILED_FOLDER

    def load(self, subnet: Subnet, *, max_drop: float = 100.0) -> Runtime:
        """The sub-network in the runtime, compiled unless it is in the cache.

        Raises:
            ConfigError: if the precision costs more than ``max_drop`` points of the primary metric, or needs data of
                the run that cannot be read.
            ExportError: if the outputs of the fp32 graph differ from torch's.
        """
        network = self.open(self.compile(subnet, max_drop=max_drop))
        assert isinstance(network, Runtime)
        return network

    def load_policy(self, policy: Policy, *, max_drop: float = 100.0) -> CompiledPolicy:
        """A dynamic policy in the runtime, compiled unless it is in the cache. Errors: as `load`."""
        network = self.open(self.compile(policy, max_drop=max_drop))
        assert isinstance(network, CompiledPolicy)
        return network

    def open(self, compiled: CompiledSubnet) -> Runtime | CompiledPolicy:
        """The compiled files in the runtime."""
        return compiled.files.load(compiled.path.parent, threads=self._threads, precision=self._precision)

    def compile(self, network: Subnet | Policy, *, max_drop: float = 100.0) -> CompiledSubnet:
        """The files of a sub-network or policy; while another process compiles them, this one waits. Errors: `load`."""
        if isinstance(network, Policy) and network.subnet is not None:
            network = self._checkpoint.model.subnet(network.subnet)
        if isinstance(network, Policy):
            compiled = self._cached(SegmentedPolicy(self._checkpoint, network, self._runtime))
        else:
            compiled = self._cached(_SubnetFiles(self._checkpoint, network, self._runtime, self._threads))
        if 100 * compiled.metric_loss > max_drop + 1e-9:
            raise ConfigError(
                f"{self._precision} on {self._runtime} costs {100 * compiled.metric_loss:.2f} points of the metric; "
                f"allowed: {max_drop:g} (--max-drop); use another sub-network or --precision fp32"
            )
        return compiled

    def _cached(self, files: _SubnetFiles | SegmentedPolicy) -> CompiledSubnet:
        key = self._key(files)
        name = f"{self._runtime}-{self._precision}-{json_fingerprint([files.identity, _cpu_flags()])[:12]}"
        compiled = self._read(self._cache_dir / name, key, files)
        if compiled is not None:
            return compiled
        folder = self._writable_dir / name
        with locked(folder.with_name(f".{name}.lock"), wait=True):
            compiled = self._read(folder, key, files)
            if compiled is None:
                again = "; the earlier one is broken, or of other weights or libraries" if folder.exists() else ""
                for half_written in folder.parent.glob(f".{name}.new-*"):  # by a process that was killed
                    shutil.rmtree(half_written, ignore_errors=True)
                logger.warning("compiling %s for %s, %s%s", files.title, self._runtime, self._precision, again)
                compiled = self._build(folder, key, files)
        return compiled

    def parity_seconds(self, runtime: Runtime) -> float:
        """Seconds that a runtime takes for the texts to verify on."""
        start = time.perf_counter()
        for batch in self._parity_batches:
            runtime(batch)
        return time.perf_counter() - start

    @cached_property
    def _writable_dir(self) -> Path:
        try:
            if self._checkpoint.model.record and self._cache_dir.parent.is_dir():  # a run of Limbert
                self._cache_dir.mkdir(exist_ok=True)
            if os.access(self._cache_dir, os.W_OK | os.X_OK):
                return self._cache_dir
        except OSError:
            pass
        self._temporary = tempfile.TemporaryDirectory(prefix="limbert-")  # deleted with this object
        return Path(self._temporary.name)

    def _key(self, files: _SubnetFiles | SegmentedPolicy) -> str:
        """A digest of everything that decides the files and their verification, except their name."""
        digest = hashlib.sha256()
        for network in files.networks:
            for name, tensor in network.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        libraries = (*self._library.libraries, *(["nncf"] if self._precision == "int8" else []))
        config = files.networks[0].config.to_dict() | {"_name_or_path": None}
        versions = library_versions() | {library: version(library) for library in libraries}
        digest.update(json_fingerprint([config, versions, self._precision, _cpu_flags()]).encode())
        return digest.hexdigest()

    def _read(self, folder: Path, key: str, files: _SubnetFiles | SegmentedPolicy) -> CompiledSubnet | None:
        """The files in a folder; None unless they are whole and have this key."""
        try:
            record = json.loads((folder / _RECORD_NAME).read_text(encoding="utf-8"))
            digests = {name: _file_digest(folder / name) for name in record["files"]}
            if record["key"] != key or record["files"] != digests or files.file_name not in digests:
                return None
            return CompiledSubnet(folder / files.file_name, float(record["metric_loss"]), files)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _build(self, folder: Path, key: str, files: _SubnetFiles | SegmentedPolicy) -> CompiledSubnet:
        loss = 0.0
        with atomic_folder(folder) as new:
            files.write(new)
            require_parity(compare_outputs(files.source, files.open(new, self._threads), self._parity_batches))
            if self._precision == "int8":
                files.quantize(new, self._calibration_batches)
            if self._precision != "fp32":
                compiled = files.open(new, self._threads, self._precision)
                loss = self._metric(files.source) - self._metric(compiled)
            digests = {path.relative_to(new).as_posix(): _file_digest(path) for path in _files(new)}
            write_json(new / _RECORD_NAME, {"key": key, "files": digests, "metric_loss": loss})
        return CompiledSubnet(folder / files.file_name, loss, files)

    @cached_property
    def _parity_batches(self) -> list[dict[str, Tensor]]:
        examples = parity_examples(self._checkpoint, self._checkpoint.data_config, required=False).examples
        return list(parity_batches(examples))

    def _calibration_batches(self) -> list[dict[str, Tensor]]:
        with self._data_needed():
            return calibration_batches(self._checkpoint, self._checkpoint.data_config)

    @cached_property
    def _labelled(self) -> TokenizedExamples:
        with self._data_needed():
            config = self._checkpoint.data_config
            return labelled_examples(self._checkpoint, config, use_dev_set=True, limit=_LABELLED_EXAMPLES)

    @contextmanager
    def _data_needed(self) -> Iterator[None]:
        try:
            yield
        except (DataError, ConfigError) as error:
            raise ConfigError(f"{self._precision} is measured on the run's data: {error}; or use fp32") from error

    def _metric(self, runtime: Runtime) -> float:
        task = self._checkpoint.trained_task
        logits = runtime_logits(runtime, self._labelled, batch_size=32)
        return compute_task_metrics(task, logits, self._labelled)[task.primary_metric]


def open_policy(
    checkpoint: LoadedCheckpoint, policy: Policy, config: RuntimeConfig, *, threads: int | None = None
) -> Runtime | CompiledPolicy | None:
    """The policy in the configured runtime; None for torch, where the engine runs it, and dynamic ones in ``auto``.

    Raises:
        LimbertError: as `resolve_runtime` and `SubnetCompiler.load`.
    """
    if policy.subnet is None:
        name = "torch" if config.runtime == "auto" else config.runtime
        check_runtime(name, config.precision)
    else:
        name = resolve_runtime(checkpoint, checkpoint.model.subnet(policy.subnet), config, threads=threads)
    if name == "torch":
        return None
    compiler = SubnetCompiler(checkpoint, runtime=name, precision=config.precision, threads=threads)
    if policy.subnet is None:
        return compiler.load_policy(policy, max_drop=config.max_drop)
    return compiler.load(checkpoint.model.subnet(policy.subnet), max_drop=config.max_drop)


def resolve_runtime(
    checkpoint: LoadedCheckpoint, subnet: Subnet, config: RuntimeConfig, *, threads: int | None = None
) -> str:
    """The configured runtime; for ``auto`` the installed one that runs the sub-network fastest, which is logged.

    Raises:
        ConfigError: as `check_runtime`, or if no installed runtime has the precision.
    """
    if config.runtime != "auto":
        check_runtime(config.runtime, config.precision)
        return config.runtime
    if checkpoint.model.network.device.type != "cpu":
        return "torch"
    runtimes: dict[str, Runtime] = {}
    compiler, refusal = None, None
    for name in RUNTIMES:
        try:
            check_runtime(name, config.precision)
        except ConfigError:  # not installed, or without the precision
            continue
        if name == "torch":
            network = checkpoint.model.view(subnet)
            runtimes[name] = load_runtime(name, network, threads=threads, precision=config.precision)
        else:
            compiler = SubnetCompiler(checkpoint, runtime=name, precision=config.precision, threads=threads)
            try:
                runtimes[name] = compiler.load(subnet, max_drop=config.max_drop)
            except (ConfigError, ExportError) as error:  # it loses too much; another one may not
                logger.warning("%s", error)
                refusal = error
    if refusal is not None and not runtimes:
        raise refusal
    if compiler is None:  # nothing to choose between
        check_runtime("torch", config.precision)
        return "torch"
    seconds = {
        name: min(compiler.parity_seconds(runtime) for _ in range(_AUTO_ROUNDS)) for name, runtime in runtimes.items()
    }
    fastest = min(seconds, key=lambda name: seconds[name])
    measured = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
    logger.warning("runtime auto is %s (48 texts: %s)", fastest, measured)
    return fastest


@cache
def _cpu_flags() -> str:
    """The instruction sets of this CPU, as a digest; they decide how int8 and bf16 are computed."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # other systems than Linux
        lines = []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return json_fingerprint(sorted(flags.partition(":")[2].split()) or torch.backends.cpu.get_cpu_capability())


def _files(folder: Path) -> list[Path]:
    """All files below a folder."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
