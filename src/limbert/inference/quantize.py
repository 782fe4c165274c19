"""Quantisation to int8 (weights and matrix products) for each format that supports it.

Products of attention probabilities with values stay in fp32: they are few operations, and quantising them loses most.
What was tried and measured is in docs/architecture.md.
"""

from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from torch import Tensor

from limbert.errors import import_optional
from limbert.inference.onnx_graph import quiet_loggers

CalibrationLoader = Callable[[], Sequence[dict[str, Tensor]]]  # loads batches of training examples when called
_NOISY_LOGGERS = ("", "nncf")


def quantize_onnx(path: Path, load_batches: CalibrationLoader) -> None:
    """Quantise an ONNX file in place: matrix products with weights, and embedding tables.

    Each column of a weight has its own scale; activations are scaled per batch at run time (dynamic), so
    ``load_batches`` is not called.
    """
    onnx = import_optional("onnx", extra="export")
    quantization = import_optional("onnxruntime.quantization", extra="export")
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    weight_input = {"MatMul": 1, "Gemm": 1, "Gather": 0}  # index of the input that is the weight, by operator
    nodes = [
        node.name + "_MatMul" * (node.op_type == "Gemm")  # the heads: a Gemm becomes a MatMul before it is quantised
        for node in graph.node
        if node.op_type in weight_input and node.input[weight_input[node.op_type]] in weights
    ]
    quantized = path.with_name(f"{path.stem}-int8.onnx")
    with quiet_loggers(*_NOISY_LOGGERS), redirect_stdout(StringIO()):
        quantization.quantize_dynamic(
            path,
            quantized,
            op_types_to_quantize=[*weight_input],
            nodes_to_quantize=nodes,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
        )
    quantized.replace(path)


def quantize_openvino(path: Path, load_batches: CalibrationLoader) -> None:
    """Quantise an OpenVINO model in place, with the activations' scales calibrated on training examples.

    NNCF first moves outliers from activations into weights (SmoothQuant).
    """
    nncf, openvino = import_optional("nncf", extra="export"), import_optional("openvino", extra="export")
    with quiet_loggers(*_NOISY_LOGGERS), redirect_stdout(StringIO()):
        model = openvino.Core().read_model(str(path))
        names = [node.get_any_name() for node in model.inputs]
        batches = [{name: batch[name].numpy() for name in names} for batch in load_batches()]
        quantized = nncf.quantize(
            model, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches)
        )
        temporary = path.with_name(f"{path.stem}-int8.xml")
        openvino.save_model(quantized, temporary, compress_to_fp16=False)
    for suffix in (".bin", ".xml"):  # replaced, not overwritten: a loaded model may have mapped the files
        temporary.with_suffix(suffix).replace(path.with_suffix(suffix))
