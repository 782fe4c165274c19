"""The table of export formats; a new format is one entry."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from limbert.errors import StorageError, import_optional
from limbert.export.quantize import CalibrationLoader, quantize_onnx, quantize_openvino
from limbert.inference.onnx_graph import input_names, write_onnx
from limbert.inference.runtimes import Runtime, load_runtime
from limbert.model.standalone import load_standalone, stock_config

ONNX_NAME = "model.onnx"  # the name that ONNX servers expect
OPENVINO_NAME = "openvino_model.xml"


@dataclass(frozen=True)
class Exporter:
    """One format."""

    runtime_title: str  # name of the runtime for readers
    runtime: str  # its key in ``RUNTIMES``
    libraries: tuple[str, ...]  # libraries of the extra ``export`` that it needs
    model_name: str  # the file that the runtime loads; empty if it is the folder
    weights_name: str  # the file with the weights
    write: Callable[[PreTrainedModel, Path, tuple[str, ...]], None]  # into a folder, with these inputs
    quantize: Callable[[Path, CalibrationLoader], None] | None = None  # to int8, in place

    def load(self, folder: Path, threads: int | None) -> Runtime:
        """Load the folder in its own runtime."""
        source = folder / self.model_name if self.model_name else load_standalone(folder)
        return load_runtime(self.runtime, source, threads=threads)


def _write_onnx(network: PreTrainedModel, folder: Path, inputs: tuple[str, ...]) -> None:
    names = tuple(name for name in input_names(network) if name in inputs)
    write_onnx(network, folder / ONNX_NAME, inputs=names)
    stock_config(network).save_pretrained(folder)


def _write_openvino(network: PreTrainedModel, folder: Path, inputs: tuple[str, ...]) -> None:
    """Converts the ONNX file. Weights stay fp32: by default OpenVINO saves them as fp16."""
    openvino = import_optional("openvino", extra="export")
    _write_onnx(network, folder, inputs)
    onnx_file = folder / ONNX_NAME
    try:
        openvino.save_model(openvino.Core().read_model(str(onnx_file)), folder / OPENVINO_NAME, compress_to_fp16=False)
    except RuntimeError as error:  # also raised for a full disk
        raise StorageError(f"OpenVINO cannot write {folder / OPENVINO_NAME}: {error}") from error
    onnx_file.unlink()


_ONNX_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
_OPENVINO_LIBRARIES = ("onnx", "onnxscript", "openvino")
EXPORTERS: dict[str, Exporter] = {
    "hf": Exporter(
        "PyTorch with Transformers",
        "torch",
        (),
        "",
        "model.safetensors",
        lambda network, folder, inputs: network.save_pretrained(folder),
    ),
    "onnx": Exporter("ONNX Runtime", "onnxruntime", _ONNX_LIBRARIES, ONNX_NAME, ONNX_NAME, _write_onnx, quantize_onnx),
    "openvino": Exporter(
        "OpenVINO",
        "openvino",
        _OPENVINO_LIBRARIES,
        OPENVINO_NAME,
        "openvino_model.bin",
        _write_openvino,
        quantize_openvino,
    ),
}
