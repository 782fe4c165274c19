"""Runtimes that compute a network's outputs behind one interface: torch, ONNX Runtime and OpenVINO.

A loaded network computes in fp32 by default and must not be called from two threads at once.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from limbert.core.config import Precision, require
from limbert.errors import CheckpointError, ConfigError, first_line, import_optional
from limbert.inference.onnx_graph import input_names, write_onnx

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Runtime:
    """A network loaded in a runtime.

    Attributes:
        input_names: names of its inputs.
        run: from these inputs to all outputs by name, float32 on the CPU.
    """

    input_names: tuple[str, ...]
    run: Callable[[Mapping[str, Tensor]], Outputs]

    def outputs(self, inputs: Mapping[str, Tensor]) -> Outputs:
        """All outputs by name; inputs that the network does not have are ignored, absent token types are zeros."""
        ids = inputs["input_ids"]
        return self.run({name: inputs[name] if name in inputs else torch.zeros_like(ids) for name in self.input_names})

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The first output, for a classifier its logits ``(batch, outputs)``, float32 on the CPU."""
        return next(iter(self.outputs(inputs).values()))


def load_runtime(
    name: str, source: PreTrainedModel | Path, *, threads: int | None = None, precision: Precision = "fp32"
) -> Runtime:
    """Load a network in one of the runtimes in `RUNTIMES`.

    Args:
        name: ``torch``, ``onnxruntime`` or ``openvino``.
        source: a network in evaluation mode, exported to a temporary file if the runtime needs one; or a saved file
            (``.onnx``, for OpenVINO also ``.xml``).
        threads: within one operator; None: the runtime's default.
        precision: ``fp32``, or ``bf16`` with OpenVINO on CPUs with bf16 arithmetic.
    """
    require(name in RUNTIMES, "runtime", name, f"one of {', '.join(RUNTIMES)}")
    check_precision(precision)
    if precision == "bf16" and name != "openvino":
        raise ConfigError(f"precision {precision!r} is not for runtime {name}; use fp32, or bf16 with openvino")
    loader = RUNTIMES[name]
    if isinstance(source, Path) or name == "torch":
        return loader(source, threads, precision)
    with tempfile.TemporaryDirectory(prefix="limbert-") as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(source, path)
        return loader(path, threads, precision)


def check_precision(precision: str) -> Precision:
    """Raise ConfigError for a precision other than ``fp32`` and ``bf16``; return it."""
    require(precision in ("fp32", "bf16"), "precision", precision, "fp32 or bf16")
    return precision  # type: ignore[return-value]  # checked


def _load_torch(source: PreTrainedModel | Path, threads: int | None, precision: Precision) -> Runtime:
    if isinstance(source, Path):
        raise ConfigError(f"runtime torch runs a network, not the file {source}")
    network = source

    @torch.inference_mode()
    def run(inputs: Mapping[str, Tensor]) -> Outputs:
        before = torch.get_num_threads()
        if threads is not None and threads != before:
            torch.set_num_threads(threads)
        try:
            output = network(**{name: tensor.to(network.device) for name, tensor in inputs.items()})
            return {name: value.float().cpu() for name, value in output.items() if isinstance(value, Tensor)}
        finally:
            if threads is not None and threads != before:
                torch.set_num_threads(before)

    return Runtime(input_names(network), run)


def _load_onnxruntime(source: PreTrainedModel | Path, threads: int | None, precision: Precision) -> Runtime:
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


def _load_openvino(source: PreTrainedModel | Path, threads: int | None, precision: Precision) -> Runtime:
    """A model compiled for low latency on the CPU: one stream."""
    openvino = import_optional("openvino", extra="export")
    settings: dict[str, Any] = {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16"}
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

    return Runtime(tuple(node.get_any_name() for node in compiled.inputs), run)


RUNTIMES: dict[str, Callable[[PreTrainedModel | Path, int | None, Precision], Runtime]] = {
    "torch": _load_torch,
    "onnxruntime": _load_onnxruntime,
    "openvino": _load_openvino,
}
