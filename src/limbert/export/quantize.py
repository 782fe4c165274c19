"""Weights in int8 and products of int8: what is quantised, and how, for each format that can be.

Products of attention scores with values are left alone: few operations, and the most is lost there. What was tried and
measured is told in docs/design.md.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from torch import Tensor

from limbert.errors import import_optional

CalibrationLoader = Callable[[], Sequence[dict[str, Tensor]]]  # gives batches of training text when somebody needs them


def quantize_onnx(path: Path) -> None:
    """Turn an ONNX file into int8 in place: products with weights and embedding tables.

    Each column of a weight has its own scale; activations are scaled batch by batch while running (dynamic), so that
    no calibration is needed.
    """
    onnx = import_optional("onnx", extra="export")
    quantization = import_optional("onnxruntime.quantization", extra="export")
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    place = {"MatMul": 1, "Gather": 0}  # which input is the weight
    chosen = [node.name for node in graph.node if node.op_type in place and node.input[place[node.op_type]] in weights]
    fresh = path.with_name(f"{path.stem}-int8.onnx")
    with _silence_quantizer():
        quantization.quantize_dynamic(
            path,
            fresh,
            op_types_to_quantize=[*place],
            nodes_to_quantize=chosen,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
        )
    fresh.replace(path)


def quantize_openvino(path: Path, load_batches: CalibrationLoader) -> None:
    """Turn an OpenVINO model into int8 in place, with activations' scales measured on training text.

    Done by NNCF, which first moves what is hard to quantise from activations into weights (SmoothQuant).
    """
    nncf, openvino = import_optional("nncf", extra="export"), import_optional("openvino", extra="export")
    with _silence_quantizer():
        model = openvino.Core().read_model(str(path))
        names = [given.get_any_name() for given in model.inputs]
        batches = [{name: batch[name].numpy() for name in names} for batch in load_batches()]
        quantized = nncf.quantize(
            model,
            nncf.Dataset(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
        )
        fresh = path.with_name(f"{path.stem}-int8.xml")
        openvino.save_model(quantized, fresh, compress_to_fp16=False)
    for ending in (".bin", ".xml"):  # renamed over, not written over: the files may be mapped by a loaded model
        fresh.with_suffix(ending).replace(path.with_suffix(ending))


@contextmanager
def _silence_quantizer() -> Iterator[None]:
    """Without the libraries' remarks and bars, which would mix with a command's own output."""
    loggers: list[Any] = [logging.getLogger(), logging.getLogger("nncf")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
