"""Runtimes that compute a network's outputs behind one interface: torch, ONNX Runtime and OpenVINO.

A loaded network must not be called from two threads at once.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from limbert.core.config import RuntimePrecision, require
from limbert.errors import CheckpointError, ConfigError, StorageError, first_line, import_optional
from limbert.inference.onnx_graph import input_names, write_onnx
from limbert.inference.quantize import CalibrationLoader, quantize_onnx, quantize_openvino
from limbert.model.inference_mode import autocast

Outputs = dict[str, Tensor]
# OpenVINO compiles kernels for each new shape (about 10 ms for a small network) and keeps a limited number of them.
_OPENVINO_TOKEN_MULTIPLE = 8


@dataclass(frozen=True)
class Runtime:
    """A network loaded in a runtime."""

    input_names: tuple[str, ...]  # names of its inputs
    run: Callable[[Mapping[str, Tensor]], Outputs]  # from these inputs to all outputs by name, float32 on the CPU
    token_multiple: int = 1  # batches padded to a multiple of so many tokens are faster where lengths vary

    def outputs(self, inputs: Mapping[str, Tensor]) -> Outputs:
        """All outputs by name; inputs that the network does not have are ignored, absent token types are zeros."""
        ids = inputs["input_ids"]
        return self.run({name: inputs[name] if name in inputs else torch.zeros_like(ids) for name in self.input_names})

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The first output, for a classifier its logits ``(batch, outputs)``, float32 on the CPU."""
        return next(iter(self.outputs(inputs).values()))


@dataclass(frozen=True)
class RuntimeLibrary:
    """How a runtime loads networks and, if it loads files, how these are written."""

    title: str  # its name for readers
    load: Callable[[PreTrainedModel | Path, int | None, RuntimePrecision], Runtime]
    precisions: tuple[RuntimePrecision, ...]
    libraries: tuple[str, ...] = ()  # of the extra ``export``
    model_name: str = ""  # the file that it loads; empty: it runs the network itself
    weights_name: str = ""  # the file with the weights
    write: Callable[[PreTrainedModel, Path, tuple[str, ...]], None] | None = None  # into a folder, with these inputs
    quantize: Callable[[Path, CalibrationLoader], None] | None = None  # the model file to int8, in place


def load_runtime(
    name: str, source: PreTrainedModel | Path, *, threads: int | None = None, precision: RuntimePrecision = "fp32"
) -> Runtime:
    """Load a network in one of the runtimes in `RUNTIMES`.

    Args:
        name: ``torch``, ``onnxruntime`` or ``openvino``.
        source: a network in evaluation mode, exported to a temporary file if the runtime needs one; or a saved file
            (``.onnx``, for OpenVINO also ``.xml``).
        threads: within one operator; None: the runtime's default.
        precision: see `check_runtime`; ``int8`` needs a quantised file.
    """
    check_runtime(name, precision)
    library = RUNTIMES[name]
    if isinstance(source, Path) or library.write is None:
        return library.load(source, threads, precision)
    if precision == "int8":
        raise ConfigError("a network has no int8 weights; load a quantised file")
    with tempfile.TemporaryDirectory(prefix="limbert-") as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(source, path)
        return library.load(path, threads, precision)


def check_runtime(name: str, precision: str = "fp32") -> None:
    """Raise ConfigError for a runtime that is unknown, not installed, or without this precision here.

    torch has fp32 and bf16 (autocast), ONNX Runtime fp32 and int8, OpenVINO all three, bf16 on CPUs that compute in it.
    """
    require(name in RUNTIMES, "runtime", name, f"one of {', '.join(RUNTIMES)}")
    library = RUNTIMES[name]
    if precision not in library.precisions:
        known = ", ".join(library.precisions)
        raise ConfigError(f"precision {precision!r} is not for runtime {name}; it must be one of {known}")
    for needed in library.libraries:
        import_optional(needed, extra="export")
    if name == "openvino" and precision == "bf16" and "BF16" not in _openvino_capabilities():
        raise ConfigError("this CPU does not compute in bf16; use precision fp32 or int8")


def _load_torch(source: PreTrainedModel | Path, threads: int | None, precision: RuntimePrecision) -> Runtime:
    if isinstance(source, Path):
        raise ConfigError(f"runtime torch runs a network, not the file {source}")
    network = source

    @torch.inference_mode()
    def run(inputs: Mapping[str, Tensor]) -> Outputs:
        before = torch.get_num_threads()
        if threads is not None and threads != before:
            torch.set_num_threads(threads)
        try:
            with autocast(network.device, precision):
                output = network(**{name: tensor.to(network.device) for name, tensor in inputs.items()})
            return {name: value.float().cpu() for name, value in output.items() if isinstance(value, Tensor)}
        finally:
            if threads is not None and threads != before:
                torch.set_num_threads(before)

    return Runtime(input_names(network), run)


def _load_onnxruntime(source: PreTrainedModel | Path, threads: int | None, precision: RuntimePrecision) -> Runtime:
    """A session on the CPU whose threads do not spin between calls, so that they take no time from other processes."""
    onnxruntime = import_optional("onnxruntime", extra="export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's own exception classes have no common base
        raise CheckpointError(f"ONNX Runtime cannot load {source}: {first_line(error)}") from error
    names = tuple(output.name for output in session.get_outputs())

    def run(inputs: Mapping[str, Tensor]) -> Outputs:
        arrays = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(array).float() for name, array in zip(names, arrays, strict=True)}

    return Runtime(tuple(node.name for node in session.get_inputs()), run)


def _load_openvino(source: PreTrainedModel | Path, threads: int | None, precision: RuntimePrecision) -> Runtime:
    """A model compiled for low latency on the CPU: one stream."""
    openvino = import_optional("openvino", extra="export")
    settings: dict[str, Any] = {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(str(source)), "CPU", settings)
    except Exception as error:  # RuntimeError, or what a plug-in raises
        raise CheckpointError(f"OpenVINO cannot load {source}: {first_line(error)}") from error
    names = tuple(output.get_any_name() for output in compiled.outputs)

    def run(inputs: Mapping[str, Tensor]) -> Outputs:
        arrays = compiled({name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(arrays[index].copy()).float() for index, name in enumerate(names)}

    return Runtime(tuple(node.get_any_name() for node in compiled.inputs), run, _OPENVINO_TOKEN_MULTIPLE)


def _openvino_capabilities() -> list[str]:
    openvino = import_optional("openvino", extra="export")
    return list(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _write_onnx_file(network: PreTrainedModel, folder: Path, inputs: tuple[str, ...]) -> None:
    write_onnx(network, folder / "model.onnx", inputs=inputs)


def _write_openvino_files(network: PreTrainedModel, folder: Path, inputs: tuple[str, ...]) -> None:
    """Converts the ONNX file. Weights stay fp32: by default OpenVINO saves them as fp16."""
    openvino = import_optional("openvino", extra="export")
    _write_onnx_file(network, folder, inputs)
    onnx_file, path = folder / "model.onnx", folder / "openvino_model.xml"
    try:
        openvino.save_model(openvino.Core().read_model(str(onnx_file)), path, compress_to_fp16=False)
    except RuntimeError as error:  # also raised for a full disk
        raise StorageError(f"OpenVINO cannot write {path}: {error}") from error
    onnx_file.unlink()


RUNTIMES: dict[str, RuntimeLibrary] = {
    "torch": RuntimeLibrary("PyTorch", _load_torch, ("fp32", "bf16")),
    "onnxruntime": RuntimeLibrary(
        "ONNX Runtime",
        _load_onnxruntime,
        ("fp32", "int8"),
        libraries=("onnx", "onnxscript", "onnxruntime"),
        model_name="model.onnx",  # the name that ONNX servers expect
        weights_name="model.onnx",
        write=_write_onnx_file,
        quantize=quantize_onnx,
    ),
    "openvino": RuntimeLibrary(
        "OpenVINO",
        _load_openvino,
        ("fp32", "bf16", "int8"),
        libraries=("onnx", "onnxscript", "openvino"),
        model_name="openvino_model.xml",
        weights_name="openvino_model.bin",
        write=_write_openvino_files,
        quantize=quantize_openvino,
    ),
}
