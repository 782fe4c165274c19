"""Results equal those of the two released programs, on every folder of conformance vectors.

Folders, sizes and fractions are read from the files.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from limbert import ElasticModel, Space, Subnet
from limbert.inference.engine import Engine, EngineOutput
from limbert.inference.policy import Policy
from limbert.method.early_exit import ExitRule
from limbert.method.importance import ImportanceScores, importance_from_micro_batches
from limbert.method.losses import hidden_loss, logit_loss
from limbert.method.rewiring import rewire
from limbert.model.width_gates import WidthGates, read_gates

ROOT = Path(os.environ.get("LIMBERT_CONFORMANCE", Path(__file__).parents[2].parent / "shared" / "conformance"))
needs_vectors = pytest.mark.skipif(not ROOT.is_dir(), reason=f"no conformance vectors at {ROOT} (LIMBERT_CONFORMANCE)")


def folders(prefix: str) -> list[Path]:
    return sorted(ROOT.glob(f"{prefix}*")) if ROOT.is_dir() else []


class Vectors:
    """One folder: a model, its inputs, and the outputs of the released program."""

    def __init__(self, folder: Path) -> None:
        self.inputs = load_file(folder / "inputs.safetensors")
        self.expected = load_file(folder / "expected.safetensors")
        self.folder = folder

    def model(self, weights: str = "model") -> ElasticModel:
        network = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(self.folder))
        missing, unexpected = network.load_state_dict(load_file(self.folder / f"{weights}.safetensors"), strict=False)
        assert all("pooler" in name for name in unexpected)  # RoBERTa's classifier reads the first token itself
        assert all("position_ids" in name for name in missing)
        return ElasticModel(network.eval())

    def cases(self, prefix: str) -> list[tuple[str, float, float]]:
        """``(key, width, depth)`` of every expected tensor ``PREFIX.wW.dD``."""
        pattern = re.compile(rf"{re.escape(prefix)}\.w([0-9.]+?)(?:\.d([0-9.]+))?")
        matches = [(key, pattern.fullmatch(key)) for key in self.expected]
        return [(key, float(match[1]), float(match[2] or 1)) for key, match in matches if match]


@pytest.fixture(params=folders("dynabert-"), ids=lambda folder: folder.name)
def dynabert(request: pytest.FixtureRequest) -> Vectors:
    return Vectors(request.param)


@pytest.fixture(params=folders("flexible-bert-"), ids=lambda folder: folder.name)
def flexible_bert(request: pytest.FixtureRequest) -> Vectors:
    return Vectors(request.param)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@needs_vectors
@torch.no_grad()
def test_logits_losses_and_states_of_all_subnetworks(dynabert: Vectors) -> None:
    model = dynabert.model()
    tokens = dynabert.inputs["attention_mask"].bool()
    cases = dynabert.cases("logits")
    assert cases
    for key, width, depth in cases:
        suffix = key.removeprefix("logits")
        subnet = Subnet.uniform(model.shape, width=width, depth=depth, layers="spread")
        with model.at(subnet) as network:
            output = network(**dynabert.inputs, output_hidden_states=True)
        close(output.logits, dynabert.expected[key])
        close(output.loss, dynabert.expected["loss" + suffix].squeeze())
        states = torch.stack(output.hidden_states)
        close(states[:, tokens], dynabert.expected["hidden" + suffix][:, tokens])


@needs_vectors
def test_importance_and_rewired_weights(dynabert: Vectors) -> None:
    model = dynabert.model()
    scores = importance_from_micro_batches(model, [[(dynabert.inputs, 1.0)]])
    close(scores.heads, dynabert.expected["importance.heads"])
    close(scores.neurons, dynabert.expected["importance.neurons"])

    # scores within the tolerance may sort either way, so sort by those of the released program
    rewire(model, ImportanceScores(dynabert.expected["importance.heads"], dynabert.expected["importance.neurons"]))
    expected = load_file(dynabert.folder / "rewired.safetensors")
    actual = model.network.state_dict()
    for name, weight in expected.items():
        if name in actual:  # the released RoBERTa has a pooler that its classifier does not use
            close(actual[name], weight)


@needs_vectors
@torch.no_grad()
def test_losses_of_the_width_phase(dynabert: Vectors) -> None:
    teacher, student = dynabert.model(), dynabert.model("rewired")
    inputs = {name: tensor for name, tensor in dynabert.inputs.items() if name != "labels"}
    inputs["input_ids"] = dynabert.expected["unpadded_input_ids"]
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    target = teacher.network(**inputs, output_hidden_states=True)
    cases = dynabert.cases("width_phase.logit_loss")
    assert cases
    for key, width, _ in cases:
        with student.at(Subnet.uniform(student.shape, width=width)) as network:
            output = network(**inputs, output_hidden_states=True)
        logits = logit_loss(output.logits, target.logits, task_type="classification")
        hidden = hidden_loss(output.hidden_states, target.hidden_states, inputs["attention_mask"])
        close(logits, dynabert.expected[key].squeeze())
        close(hidden, dynabert.expected[key.replace("logit_loss", "hidden_loss")].squeeze())


@needs_vectors
@torch.no_grad()
def test_static_logits_one_by_one_and_batched(flexible_bert: Vectors) -> None:
    model = flexible_bert.model()
    cases = flexible_bert.cases("static.logits")
    assert cases
    for key, width, depth in cases:
        network = model.view(Subnet.uniform(model.shape, width=width, depth=depth, layers="first"))
        expected = flexible_bert.expected[key]
        close(network(**flexible_bert.inputs).logits, expected)
        for index, alone in enumerate(expected):
            single = {name: tensor[index : index + 1] for name, tensor in flexible_bert.inputs.items()}
            close(network(**single).logits[0], alone)


def gates_of(vectors: Vectors, model: ElasticModel, widths: tuple[float, ...]) -> WidthGates:
    gates = read_gates(vectors.folder / "gates.safetensors", shape=model.shape, widths=widths)
    assert len(gates) == AutoConfig.from_pretrained(vectors.folder).num_gates
    return gates


def mappings(vectors: Vectors) -> list[tuple[str, tuple[float, ...]]]:
    """Name of every mapping, and the width of each choice; 32-bit floats are rounded."""
    names = [key.removeprefix("mapping.") for key in vectors.expected if key.startswith("mapping.")]
    return [(name, tuple(round(w, 6) for w in vectors.expected[f"mapping.{name}"].tolist())) for name in sorted(names)]


def run_one_by_one(engine: Engine, inputs: dict[str, torch.Tensor]) -> Iterator[tuple[int, EngineOutput]]:
    for index in range(len(inputs["input_ids"])):
        yield index, engine.run({name: tensor[index : index + 1] for name, tensor in inputs.items()})


@needs_vectors
@pytest.mark.parametrize("mode", ["width_dynamic", "width_depth_dynamic"])
def test_dynamic_inference_one_by_one_and_batched(flexible_bert: Vectors, mode: str) -> None:
    model, expected = flexible_bert.model(), flexible_bert.expected
    exit_depths = {float(key.rpartition(".d")[2]) for key, _, _ in flexible_bert.cases("static.logits")} | {1.0}
    model.space = Space(depths=tuple(exit_depths), layers="first")
    cases = mappings(flexible_bert)
    assert cases
    for name, widths in cases:
        model.gates = gates_of(flexible_bert, model, tuple(0.01 * n for n in range(1, len(widths) + 1)))
        exits = ExitRule("entropy", float(expected["exit_threshold"])) if "depth" in mode else None
        policy = Policy(gates=True, widths=widths, exits=exits)
        engine = Engine(model, policy, task_type="classification")
        batched = engine.run(flexible_bert.inputs)
        close(batched.logits, expected[f"{mode}.{name}.logits"])
        close(batched.trace.widths.float(), expected[f"{mode}.{name}.widths"].float())
        if exits:
            assert batched.trace.layers_run.tolist() == expected[f"{mode}.{name}.layers_used"].flatten().tolist()
        for index, alone in run_one_by_one(engine, flexible_bert.inputs):
            close(alone.logits[0], expected[f"{mode}.{name}.logits"][index])
            assert torch.equal(alone.trace.widths[0], batched.trace.widths[index])
