"""The table of export formats; a new format is one entry."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from limbert.errors import StorageError, import_optional
from limbert.export.huggingface import load_huggingface, save_huggingface, stock_config
from limbert.export.quantize import CalibrationLoader, quantize_onnx, quantize_openvino
from limbert.inference.onnx_graph import input_names, write_onnx
from limbert.inference.runtimes import Runtime, load_runtime

ONNX_NAME = "model.onnx"  # the name that ONNX servers expect
OPENVINO_NAME = "openvino_model.xml"


@dataclass(frozen=True)
class Exporter:
    """One format.

    Attributes:
        runtime_title: name of the runtime for readers.
        libraries: libraries of the extra ``export`` that it needs.
        write: writes the network as files in a folder, for a tokenizer with the named inputs; without the tokenizer.
        load: loads the folder in its own runtime, with a number of threads.
        quantize: quantises the files in a folder to int8 in place; None if the format has no int8.
        weights_name: the file with the weights.
    """

    runtime_title: str
    libraries: tuple[str, ...]
    write: Callable[[PreTrainedModel, Path, tuple[str, ...]], None]
    load: Callable[[Path, int | None], Runtime]
    quantize: Callable[[Path, CalibrationLoader], None] | None
    weights_name: str


def _write_hf(network: PreTrainedModel, folder: Path, inputs: tuple[str, ...]) -> None:
    save_huggingface(network, folder)


def _load_hf(folder: Path, threads: int | None) -> Runtime:
    return load_runtime("torch", load_huggingface(folder), threads=threads)


def _write_onnx(network: PreTrainedModel, folder: Path, inputs: tuple[str, ...]) -> None:
    names = tuple(name for name in input_names(network) if name in inputs)
    write_onnx(network, folder / ONNX_NAME, inputs=names)
    stock_config(network).save_pretrained(folder)


def _load_onnx(folder: Path, threads: int | None) -> Runtime:
    return load_runtime("onnxruntime", folder / ONNX_NAME, threads=threads)


def _quantize_onnx(folder: Path, calibration: CalibrationLoader) -> None:
    quantize_onnx(folder / ONNX_NAME)


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


def _load_openvino(folder: Path, threads: int | None) -> Runtime:
    return load_runtime("openvino", folder / OPENVINO_NAME, threads=threads)


def _quantize_openvino(folder: Path, calibration: CalibrationLoader) -> None:
    quantize_openvino(folder / OPENVINO_NAME, calibration)


EXPORTERS: dict[str, Exporter] = {
    "hf": Exporter("PyTorch with Transformers", (), _write_hf, _load_hf, None, "model.safetensors"),
    "onnx": Exporter(
        "ONNX Runtime", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx, _quantize_onnx, ONNX_NAME
    ),
    "openvino": Exporter(
        "OpenVINO",
        ("onnx", "onnxscript", "openvino"),
        _write_openvino,
        _load_openvino,
        _quantize_openvino,
        "openvino_model.bin",
    ),
}
