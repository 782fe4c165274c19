"""Policies on segments equal the engine: the same path for each example, and the same logits, in batches and alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.factories.gated_models import BATCH, INPUTS, make_model
from tests.factories.networks import LAYERS
from tests.factories.runs import ENCODER, needs_encoder
from transformers import AutoTokenizer

from limbert import Space
from limbert.core.config import DataConfig, TaskType
from limbert.data.tasks import custom_task
from limbert.inference.engine import Engine
from limbert.inference.load import LoadedCheckpoint
from limbert.inference.policy import Policy
from limbert.inference.policy_runtime import is_final
from limbert.inference.segments import SegmentedPolicy
from limbert.method.early_exit import EXIT_RULES, ExitRule, ExitRuleName

WIDTHS = (0.5, 1.0)
POLICIES = {
    "exits": Policy(exits=ExitRule("confidence", 0.5), widths=(0.5,), temperatures=(0.7, 2.0)),
    "gates and exits": Policy(gates=True, exits=ExitRule("confidence", 0.5)),
    "cascade": Policy(cascade=("0.5x0.5", "1x0.5", "1x1"), exits=ExitRule("confidence", 0.5)),
}


def make_checkpoint(case: str) -> LoadedCheckpoint:
    """A model with exits after two of four layers, and gates before the first and the third."""
    model = make_model(case)
    gates = model.gates
    assert gates is not None
    gates.gate, gates.widths = gates.gate[::2], WIDTHS
    for gate in gates.gate:
        gate.dense_out.weight.data, gate.dense_out.bias.data = gate.dense_out.weight[:2], gate.dense_out.bias[:2]
    model.space = Space(WIDTHS, (0.5, 1.0), "first")
    task = custom_task("classification", ("a", "b", "c"))
    return LoadedCheckpoint(model, AutoTokenizer.from_pretrained(ENCODER), task, DataConfig(), 64)


def fitted(checkpoint: LoadedCheckpoint, policy: Policy) -> Policy:
    """The policy with a threshold that about half of the examples pass at the first exit."""
    first = replace(policy, exits=None, subnet="0.5x0.5", cascade=None, temperatures=None) if policy.cascade else policy
    engine = Engine(checkpoint.model, first, task_type="classification")
    logits = engine.run(INPUTS).logits if policy.cascade else engine.run_all_exits(INPUTS)[0][0]
    confidence = logits.softmax(-1).amax(-1).sort().values
    threshold = float(confidence[BATCH // 2 - 1 : BATCH // 2 + 1].mean())
    return replace(policy, exits=ExitRule("confidence", threshold))


@needs_encoder
@pytest.mark.parametrize(
    ("runtime", "case", "name"),
    [
        *(("onnxruntime", "bert", name) for name in POLICIES),
        ("openvino", "bert", "exits"),
        pytest.param("onnxruntime", "modernbert", "gates and exits", marks=pytest.mark.slow),
        pytest.param("openvino", "deberta-v2", "gates and exits", marks=pytest.mark.slow),
        pytest.param("openvino", "roberta", "cascade", marks=pytest.mark.slow),
    ],
)
def test_segments_equal_the_engine(runtime: str, case: str, name: str, tmp_path: Path) -> None:
    for library in ("onnx", "onnxscript", runtime):
        pytest.importorskip(library)
    checkpoint = make_checkpoint(case)
    policy = fitted(checkpoint, POLICIES[name])
    segmented = SegmentedPolicy(checkpoint, policy, runtime)
    segmented.write(tmp_path)
    compiled = segmented.load(tmp_path, threads=1)
    expected, actual = Engine(checkpoint.model, policy, task_type="classification").run(INPUTS), compiled.run(INPUTS)
    assert len({*expected.trace.layers_run.tolist()}) > 1
    if policy.gates:
        assert len(expected.trace.widths.unique()) == 3
    for value in ("widths", "layers_run", "flops", "temperatures"):
        assert torch.equal(getattr(actual.trace, value), getattr(expected.trace, value)), value
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-4, rtol=0)
    for row in range(0, BATCH, 3):
        length = int(INPUTS["attention_mask"][row].sum())
        alone = compiled.run({key: tensor[row : row + 1, :length] for key, tensor in INPUTS.items()})
        assert torch.equal(alone.trace.widths[0], actual.trace.widths[row])
        torch.testing.assert_close(alone.logits[0], actual.logits[row], atol=1e-4, rtol=0)
    stored = sum(file.stat().st_size for file in tmp_path.rglob("*.onnx"))
    assert stored < 3 * 4 * sum(parameter.numel() for parameter in checkpoint.model.parameters())


@pytest.mark.parametrize("task_type", ["classification", "multi-label", "regression"])
@pytest.mark.parametrize("rule", EXIT_RULES)
def test_exit_rules_equal_those_of_torch(rule: ExitRuleName, task_type: TaskType) -> None:
    if task_type == "regression" and rule != "patience":
        pytest.skip("no rule for regression")
    outputs = 1 if task_type == "regression" else 3
    logits = [*torch.randn(LAYERS, 200, outputs, generator=torch.Generator().manual_seed(3))]
    logits[2][:100] = logits[1][:100] = logits[0][:100]
    logits[3][0] = 1000.0  # a probability of 1 has entropy 0
    for threshold in (0.0, 0.4, 0.7, 1.0, 2.0):
        if rule == "confidence" and threshold > 1:
            continue
        for exits in range(1, LAYERS + 1):
            expected = ExitRule(rule, threshold).should_exit(logits[:exits], task_type=task_type)
            arrays = [part.numpy() for part in logits[:exits]]
            actual = is_final(arrays, task_type=task_type, rule=rule, threshold=threshold)
            assert actual.tolist() == expected.tolist()
