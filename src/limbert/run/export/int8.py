"""Weights and products in int8: what is quantised, and how.

Only products with weights are: those of attention scores with values hold few operations and lose most. Activations
are scaled batch by batch while running (dynamic), so no calibration data is needed.
"""

from pathlib import Path

from limbert.run.export.libraries import optional_library


def quantize_onnx(path: Path) -> None:
    """Turn the weight products of an ONNX file into int8, each column of a weight with its own scale, in place."""
    onnx = optional_library("onnx")
    quantization = optional_library("onnxruntime.quantization")
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    products = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    fresh = path.with_name(f"{path.stem}-int8.onnx")
    quantization.quantize_dynamic(
        path, fresh, nodes_to_quantize=products, per_channel=True, weight_type=quantization.QuantType.QInt8
    )
    fresh.replace(path)
