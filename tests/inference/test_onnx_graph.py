"""The ONNX file computes the sub-network's outputs: every family and head, any batch size and length, with padding."""

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers
from tests.factories.networks import make_inputs, make_network, most_different
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from limbert import ElasticModel, Subnet
from limbert.errors import CheckpointError, ConfigError, ExportError, UnsupportedModelError
from limbert.inference.onnx_graph import input_names, write_onnx
from limbert.inference.parity import compare_outputs, require_parity
from limbert.inference.runtimes import Runtime, load_runtime
from limbert.model.checkpoint import TASK_HEADS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
RUNTIMES = ("onnxruntime", "openvino")
UNEVEN = Subnet((0, 2), (2, 6), (17, 60))  # of ModernBERT, a layer of each kind of attention


def small(case: str, auto_class: type = AutoModelForSequenceClassification, **changes: object) -> PreTrainedModel:
    """A sub-network with other widths in every layer."""
    return ElasticModel(make_network(case, auto_class, **changes)).extract(UNEVEN).eval()


def inputs_for(network: PreTrainedModel, *, batch: int, tokens: int) -> dict[str, Tensor]:
    """Rows of different lengths, with both token types where the network tells them apart."""
    inputs = {name: tensor[:batch] for name, tensor in make_inputs(batch=max(batch, 2), tokens=tokens).items()}
    lengths = torch.arange(batch) % tokens + 1
    inputs["attention_mask"] = (torch.arange(tokens) < lengths[:, None]).long()
    pad = network.config.pad_token_id or 0
    inputs["input_ids"] = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], pad)
    if "token_type_ids" in input_names(network):
        inputs["token_type_ids"] = (torch.arange(tokens) >= tokens // 2).long().expand(batch, tokens).contiguous()
    return inputs


@pytest.mark.parametrize("case", most_different())
def test_every_family_outputs_the_same(case: str, tmp_path: Path) -> None:
    network = small(case)
    write_onnx(network, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]  # the weights are inside
    source = load_runtime("torch", network)
    for name in RUNTIMES:
        pytest.importorskip(name)
        exported = load_runtime(name, tmp_path / "model.onnx", threads=1)
        for batch, tokens in ((1, 1), (1, 2), (2, 1), (3, 17), (33, 60)):  # 7 tokens in 2 rows were traced
            inputs = inputs_for(network, batch=batch, tokens=tokens)
            found, expected = exported(inputs), source(inputs)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


OTHER_HEADS = [head for head in TASK_HEADS if head != "sequence-classification"]


@pytest.mark.parametrize("head", most_different(OTHER_HEADS, quick=("question-answering",)))
def test_every_head_outputs_the_same(head: str, tmp_path: Path) -> None:
    network = small("bert", getattr(transformers, TASK_HEADS[head]), num_labels=2)
    write_onnx(network, tmp_path / "model.onnx")
    inputs = make_inputs(batch=4, tokens=9)
    pytest.importorskip("onnxruntime")
    found = load_runtime("onnxruntime", tmp_path / "model.onnx", threads=1).outputs(inputs)
    expected = load_runtime("torch", network).outputs(inputs)
    assert [*found] == [*expected]
    real = inputs["attention_mask"].bool()
    for name, value in expected.items():  # outputs at padding have no meaning
        compared = real if value.shape[:2] == real.shape else ...
        torch.testing.assert_close(found[name][compared], value[compared], rtol=1e-4, atol=1e-5)


def test_graph_has_standard_operators_and_no_metadata(tmp_path: Path) -> None:
    network = small("bert")
    attention = network.config._attn_implementation
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    write_onnx(network, tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(proto)
    assert {node.domain for node in proto.graph.node} == {""}
    parts = [*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]
    assert not any(part.metadata_props or part.doc_string for part in parts)  # no paths of this machine
    assert not proto.graph.value_info
    assert [value.name for value in proto.graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [value.name for value in proto.graph.output] == ["logits"]
    shapes = [[size.dim_param for size in value.type.tensor_type.shape.dim] for value in proto.graph.input]
    assert shapes == [["batch", "tokens"]] * 3
    assert network.config._attn_implementation == attention
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_networks_are_exported_and_threads_restored() -> None:
    network = small("distilbert").bfloat16()  # whose weights become fp32
    inputs = inputs_for(network, batch=2, tokens=9) | {"token_type_ids": torch.zeros(2, 9, dtype=torch.long)}
    before = torch.get_num_threads()
    expected = load_runtime("torch", copy.deepcopy(network).float(), threads=before + 1)(inputs)
    assert torch.get_num_threads() == before
    for name in RUNTIMES:
        pytest.importorskip(name)
        torch.testing.assert_close(load_runtime(name, network)(inputs), expected, rtol=1e-4, atol=1e-5)


def test_refusals_name_the_value(tmp_path: Path) -> None:
    network = small("bert")
    with pytest.raises(ConfigError, match="tflite"):
        load_runtime("tflite", network)
    with pytest.raises(ConfigError, match="bf16"):
        load_runtime("onnxruntime", network, precision="bf16")
    (tmp_path / "broken.onnx").write_text("nothing")
    for name in RUNTIMES:
        pytest.importorskip(name)
        with pytest.raises(CheckpointError, match=r"broken\.onnx"):
            load_runtime(name, tmp_path / "broken.onnx")
    network.config.model_type = "mpnet"
    with pytest.raises(UnsupportedModelError, match="mpnet"):
        write_onnx(network, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])
BATCHES = [{"input_ids": torch.tensor([[5, 6, 7], [8, 0, 0]]), "attention_mask": MASK}]
LOGITS = torch.tensor([[1.0, -2.0], [0.5, 4.0]])


def runtime_with(**outputs: Tensor) -> Runtime:
    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return outputs

    return Runtime(("input_ids", "attention_mask"), run)


def test_largest_difference_is_found() -> None:
    source = runtime_with(logits=LOGITS)
    comparison = compare_outputs(source, runtime_with(logits=LOGITS), BATCHES)
    assert (comparison.examples, comparison.max_relative_difference, comparison.agreement) == (2, 0.0, 1.0)
    require_parity(comparison)
    other = LOGITS.clone()
    other[1, 0] += 0.4
    comparison = compare_outputs(source, runtime_with(logits=other), BATCHES)
    assert comparison.max_relative_difference == pytest.approx(0.1)
    with pytest.raises(ExportError, match=r"0\.1 of the largest"):
        require_parity(comparison)
    assert compare_outputs(source, runtime_with(logits=LOGITS.flip(1)), BATCHES).agreement == 0
    with pytest.raises(ExportError, match="not finite"):
        compare_outputs(source, runtime_with(logits=LOGITS * float("nan")), BATCHES)


@pytest.mark.parametrize(("name", "trailing"), [("logits", (2,)), ("start_logits", ())])
def test_padding_is_not_compared(name: str, trailing: tuple[int, ...]) -> None:
    outputs = torch.randn(2, 3, *trailing, generator=torch.Generator().manual_seed(1))
    other = outputs.clone()
    runtimes = runtime_with(**{name: outputs}), runtime_with(**{name: other})
    other[1, 2] += 5
    assert compare_outputs(*runtimes, BATCHES).max_relative_difference == 0
    other[1, 0] += 5
    assert compare_outputs(*runtimes, BATCHES).max_relative_difference > 1
