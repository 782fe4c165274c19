"""The engine gives each example the logits it would get alone, from the sub-network that its trace names."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.factories.gated_models import BATCH, INPUTS, WIDTHS, make_model
from tests.factories.networks import CONFIGS, LAYERS, make_network
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForTokenClassification

from limbert import ElasticModel, Space, Subnet
from limbert.errors import CheckpointError, ConfigError, UnsupportedModelError
from limbert.inference.engine import Engine
from limbert.inference.policy import OperatingPoint, Policy
from limbert.method.early_exit import ExitRule
from limbert.model.width_gates import GATES_FILENAME

POLICIES = {
    "static": Policy(subnet="0.5x0.5"),
    "width": Policy(gates=True),
    "width, two choices alike": Policy(gates=True, widths=(0.5, 0.5, 0.17, 1.0)),
    "depth by entropy": Policy(exits=ExitRule("entropy", 0.6)),
    "depth by patience": Policy(exits=ExitRule("patience", 1.0), widths=(0.5,)),
    "both by confidence": Policy(gates=True, exits=ExitRule("confidence", 0.7)),
    "both by patience": Policy(gates=True, exits=ExitRule("patience", 1.0)),
}


def single_example(index: int) -> dict[str, Tensor]:
    length = int(INPUTS["attention_mask"][index].sum())
    return {name: tensor[index : index + 1, :length] for name, tensor in INPUTS.items()}


def fitted(model: ElasticModel, policy: Policy) -> Policy:
    """The policy with a threshold that half of the examples pass at the first exit."""
    if policy.exits is None or policy.exits.name == "patience":
        return policy
    exit_logits, _ = Engine(model, policy, task_type="classification").run_all_exits(INPUTS)
    probabilities = exit_logits[0].softmax(dim=-1)
    scores = {"entropy": torch.special.entr(probabilities).sum(dim=-1), "confidence": probabilities.amax(dim=-1)}
    threshold = float(scores[policy.exits.name].sort().values[BATCH // 2 - 1 : BATCH // 2 + 1].mean())
    return replace(policy, exits=ExitRule(policy.exits.name, threshold))


def subnet_of(widths: Tensor) -> Subnet:
    """The sub-network that one row of a trace names."""
    kept = {layer: Subnet.uniform(SHAPE, width=float(width)) for layer, width in enumerate(widths) if width > 0}
    return Subnet(tuple(kept), tuple(s.heads[0] for s in kept.values()), tuple(s.neurons[0] for s in kept.values()))


SHAPE = ElasticModel(make_network("bert")).shape


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
@pytest.mark.parametrize("case", [*CONFIGS, "modernbert, mean of all tokens"])
def test_batch_equals_each_example_alone(case: str, policy: Policy) -> None:
    name, _, pooling = case.partition(", ")
    model = make_model(name, **{"classifier_pooling": "mean"} if pooling else {})
    engine = Engine(model, fitted(model, policy), task_type="classification")
    together = engine.run(INPUTS)
    trace = together.trace
    if policy.gates:
        at_once = [len({*layer[layer > 0].tolist()}) for layer in trace.widths.T]
        assert max(at_once) > 1
    if policy.exits:
        assert int(trace.layers_run.min()) < LAYERS
    for row in range(BATCH):
        alone = engine.run(single_example(row))
        assert torch.equal(alone.trace.widths[0], trace.widths[row])
        torch.testing.assert_close(alone.logits[0], together.logits[row], atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            stock = model.view(subnet_of(trace.widths[row]))(**single_example(row)).logits[0]
        torch.testing.assert_close(stock, together.logits[row], atol=2e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("case", ["bert", "modernbert"])
def test_gates_read_the_state_and_exits_come_first(case: str) -> None:
    """Each choice and each exit, recomputed from the stock sub-network's own states and logits."""
    model = make_model(case)
    policy = fitted(model, Policy(gates=True, exits=ExitRule("entropy", 0.6)))
    trace = Engine(model, policy, task_type="classification").run(INPUTS).trace
    for row in range(BATCH):
        subnet = subnet_of(trace.widths[row])
        with model.at(subnet) as network, model.recorded_states() as states:
            network(**single_example(row))
        for layer in range(len(subnet.layers)):
            choice = int(model.gates.gate[layer](states[layer][:, 0]).argmax())
            assert WIDTHS[choice] == trace.widths[row, layer]
        for layers in (1, 2, 3):
            if layers <= len(subnet.layers):
                cut = Subnet(subnet.layers[:layers], subnet.heads[:layers], subnet.neurons[:layers])
                logits = model.view(cut)(**single_example(row)).logits
                exits = policy.exits.should_exit([logits], task_type="classification")
                assert exits.item() == (layers == trace.layers_run[row])


@pytest.mark.parametrize("name", ["static", "both by confidence", "width, two choices alike", "depth by entropy"])
def test_flops_equal_the_counter(name: str) -> None:
    model = make_model("bert", attn_implementation="eager")  # whose products the counter sees
    engine = Engine(model, fitted(model, POLICIES[name]), task_type="classification")
    flops = engine.run(INPUTS).trace.flops
    for row in range(BATCH):
        with FlopCounterMode(display=False) as counter:
            engine.run(single_example(row))
        assert int(flops[row]) == counter.get_total_flops()


@pytest.mark.parametrize("name", ["both by confidence", "both by patience", "depth by patience"])
def test_all_exit_logits_equal_the_exits_taken(name: str) -> None:
    model = make_model("bert")
    engine = Engine(model, fitted(model, POLICIES[name]), task_type="classification")
    exit_logits, trace = engine.run_all_exits(INPUTS)
    assert trace.layers_run.tolist() == [LAYERS] * BATCH
    usual = engine.run(INPUTS)
    for row in range(BATCH):
        index = int(usual.trace.layers_run[row]) - 1  # an exit after every layer
        torch.testing.assert_close(exit_logits[index, row], usual.logits[row], atol=1e-5, rtol=1e-5)


def test_threads_do_not_disturb_each_other() -> None:
    model = make_model("modernbert")
    engines = [Engine(model, policy, task_type="classification") for policy in POLICIES.values()]
    expected = [engine.run(INPUTS).logits for engine in engines]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(15):
            if not torch.allclose(engines[number].run(INPUTS).logits, expected[number], atol=1e-6):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in [*range(len(engines))] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_regression_exits_by_patience() -> None:
    model = make_model("roberta", num_labels=1)
    engine = Engine(model, Policy(gates=True, exits=ExitRule("patience", 0.7)), task_type="regression")
    output = engine.run(INPUTS)
    assert {2} < {*output.trace.layers_run.tolist()} <= {2, 3, LAYERS}  # at the first there is nothing to compare
    for row in range(0, BATCH, 5):
        torch.testing.assert_close(engine.run(single_example(row)).logits[0], output.logits[row], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_bf16_runs_and_stays_close() -> None:
    model = make_model("distilbert")
    policy = Policy(exits=ExitRule("entropy", 0.0))  # no example exits: rounding must not change the path
    whole = Engine(model, policy, task_type="classification").run(INPUTS).logits
    rounded = Engine(model, policy, task_type="classification", precision="bf16").run(INPUTS).logits
    assert not torch.equal(whole, rounded)
    assert (whole - rounded).abs().max() < 0.1 * whole.abs().max()


def test_missing_gates_and_exits_are_named() -> None:
    model = make_model("bert")
    exits = Policy(exits=ExitRule("entropy", 0.1))
    for policy, message in (
        (Policy(gates=True, widths=(0.01, 1.0, 1.0, 1.0)), "width 0.01"),
        (Policy(exits=ExitRule("entropy", 0.1), widths=(0.5, 1.0)), "one width"),
    ):
        with pytest.raises(ValueError, match=message):
            Engine(model, policy, task_type="classification")
    with pytest.raises(ConfigError, match="patience"):
        Engine(model, exits, task_type="regression")
    model.space = Space(widths=WIDTHS, depths=(1.0,), layers="first")
    with pytest.raises(ConfigError, match="full depth"):
        Engine(model, exits, task_type="classification")
    tokens = ElasticModel(make_network("bert", AutoModelForTokenClassification), space=Space(layers="first"))
    with pytest.raises(UnsupportedModelError, match="TokenClassification"):
        Engine(tokens, exits, task_type="classification")


def test_gates_and_operating_points_are_saved(tmp_path: Path) -> None:
    model = make_model("bert")
    model.save_pretrained(tmp_path / "run")
    again = ElasticModel.from_pretrained(tmp_path / "run")
    again.network.eval()
    assert again.gates is not None
    assert again.gates.widths == WIDTHS
    policy = POLICIES["both by confidence"]
    ours, theirs = (Engine(one, policy, task_type="classification").run(INPUTS) for one in (model, again))
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.trace.option_indices, theirs.trace.option_indices)
    point = OperatingPoint(policy, "accuracy", 0.9, 0.4)
    again.record |= {"task": {"kind": "classification"}, "operating_points": {"balanced": point.to_dict()}}
    assert torch.equal(Engine(again, "balanced").run(INPUTS).logits, ours.logits)
    with pytest.raises(ConfigError, match="balanced"):
        Engine(again, "blanced")
    del again.record["task"]
    with pytest.raises(ConfigError, match="task_type"):
        Engine(again, "balanced")
    whole = (tmp_path / "run" / GATES_FILENAME).read_bytes()
    (tmp_path / "run" / GATES_FILENAME).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"gates\.safetensors"):
        ElasticModel.from_pretrained(tmp_path / "run")


def test_exits_and_logits_are_calibrated() -> None:
    model = make_model("bert")
    policy = fitted(model, Policy(exits=ExitRule("confidence", 0.7), widths=(0.5,)))
    raw, _ = Engine(model, policy, task_type="classification").run_all_exits(INPUTS)
    temperatures = (3.0, 0.5, 2.0, 4.0)
    names = [f"0.5x{depth:g}" for depth in (0.25, 0.5, 0.75, 1.0)]
    model.record["temperatures"] = dict(zip(names, temperatures, strict=True))
    by_record = Engine(model, policy, task_type="classification")
    own = Engine(model, replace(policy, temperatures=temperatures), task_type="classification")
    expected = raw / torch.tensor(temperatures)[:, None, None]
    exit_index = (expected.softmax(-1).amax(-1) >= policy.exits.threshold).int()[:-1]
    exit_index = torch.where(exit_index.any(dim=0), exit_index.argmax(dim=0), LAYERS - 1)
    assert len(exit_index.unique()) > 1
    for engine in (by_record, own):
        output = engine.run(INPUTS)
        assert torch.equal(output.trace.layers_run, exit_index + 1)
        torch.testing.assert_close(output.logits, expected[exit_index, range(BATCH)])
    with pytest.raises(ConfigError, match="temperatures"):
        Engine(model, replace(policy, temperatures=(1.0,)), task_type="classification")


def test_cascade_reruns_unsure_examples() -> None:
    model = make_model("bert")
    names = ("0.5x0.25", "0.67x0.5", "1x1")
    model.record["temperatures"] = {"0.5x0.25": 2.0, "1x1": 0.5}
    stages = [Engine(model, Policy(subnet=name), task_type="classification").run(INPUTS) for name in names]
    confidence = torch.stack([stage.logits.softmax(-1).amax(-1) for stage in stages])
    rule = ExitRule("confidence", float(confidence[:2].median()))
    engine = Engine(model, Policy(cascade=names, exits=rule), task_type="classification")
    is_final = confidence >= rule.threshold
    is_final[-1] = True
    chosen = is_final.int().argmax(dim=0)
    assert {*chosen.tolist()} == {0, 1, 2}
    output, rows = engine.run(INPUTS), range(BATCH)
    torch.testing.assert_close(output.logits, torch.stack([stage.logits for stage in stages])[chosen, rows])
    for name in ("layers_run", "widths", "temperatures"):
        values = torch.stack([getattr(stage.trace, name) for stage in stages])[chosen, rows]
        assert torch.equal(getattr(output.trace, name), values)
    costs = torch.stack([stage.trace.flops for stage in stages]).cumsum(dim=0)
    assert torch.equal(output.trace.flops, costs[chosen, rows])
    for row in range(0, BATCH, 5):
        alone = engine.run(single_example(row))
        torch.testing.assert_close(alone.logits[0], output.logits[row], atol=1e-5, rtol=1e-5)
