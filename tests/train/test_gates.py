"""Gates learn what can be learnt, from features that are cached once and survive a kill."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.factories.networks import CONFIGS, LAYERS, most_different
from tests.factories.phases import WIDTHS, make_examples, make_model, make_trainer, train_phase
from transformers import TrainerCallback

from limbert import ElasticModel, Subnet
from limbert.core.config import GatesConfig
from limbert.data.tokenize import TokenizedExamples
from limbert.model.width_gates import WidthGates
from limbert.train.gates import GateExamples, GateFeatures, cached_features, fit_gates


def features(model: ElasticModel, examples: TokenizedExamples, folder: Path, **options: Any) -> GateFeatures:
    subnets = [Subnet.uniform(model.shape, width=width) for width in WIDTHS]
    defaults = {"subnets": subnets, "layer_indices": [0], "name": "gates-train"}
    return cached_features(make_trainer(folder, model), examples, **defaults | options)


@torch.no_grad()
@pytest.mark.parametrize("case", most_different(CONFIGS))
def test_features_are_those_of_each_example_alone(case: str, tmp_path: Path) -> None:
    model, examples = make_model(case), make_examples(9, seed=3)
    found = features(model, examples, tmp_path, layer_indices=[0, 2])
    assert found.first_tokens.shape == (9, 3, 2, 48)
    assert torch.equal(found.labels, examples.labels)
    for row in range(9):
        inputs = {name: tensor for name, tensor in examples.collate([row]).items() if name != "labels"}
        for column, width in enumerate(WIDTHS):
            with model.at(Subnet.uniform(model.shape, width=width)) as network, model.recorded_states() as states:
                logits = network(**inputs).logits[0]
            torch.testing.assert_close(found.logits[row, column], logits, atol=1e-5, rtol=1e-5)
            for gate, layers in enumerate([0, 2]):
                first_token = states[layers][0, 0]
                torch.testing.assert_close(found.first_tokens[row, column, gate], first_token, atol=1e-5, rtol=1e-5)


def test_a_kill_while_caching_loses_one_shard(tmp_path: Path) -> None:
    model, examples = make_model(), make_examples(32 * 64 + 200, seed=3)  # more than one shard

    def interrupt(description: str, done: int, total: int) -> None:
        assert total == 36
        if done == 33:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features(model, examples, tmp_path, progress=interrupt)
    batches: list[int] = []
    resumed = features(model, examples, tmp_path, progress=lambda description, done, total: batches.append(done))
    assert batches == [32, 33, 34, 35]
    (tmp_path / "gates-train-shard-0.safetensors").write_bytes(b"half")
    assert torch.equal(features(model, examples, tmp_path).logits, resumed.logits)


def test_interrupted_gates_end_as_uninterrupted_ones(tmp_path: Path) -> None:
    config = GatesConfig(count=2, epochs=3.0, batch_size=16)
    whole = train_phase("gates", config, tmp_path / "whole")

    def interrupt(description: str, done: int, total: int) -> None:
        if "validation" in description:
            raise KeyboardInterrupt

    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        train_phase("gates", config, tmp_path / "stopped", model, progress=interrupt)
    assert model.gates is None
    resumed = train_phase("gates", config, tmp_path / "stopped")
    for name, tensor in whole.gates.state_dict().items():
        assert torch.equal(tensor, resumed.gates.state_dict()[name])


def test_gates_learn_which_width_each_example_needs(tmp_path: Path) -> None:
    """Labels such that the narrowest width is wrong exactly where the first word is another."""
    model = make_model()
    data = {"train_dataset": make_examples(1500, seed=1), "eval_dataset": make_examples(60, seed=2)}

    def compute(examples: TokenizedExamples, part: str) -> GateFeatures:
        examples.tokens.ids[examples.tokens.offsets[:-1]] = 6 + np.arange(len(examples)) % 2  # two first words
        return features(model, examples, tmp_path, name=part)

    for part, examples in data.items():
        narrow = compute(examples, part).logits.argmax(dim=-1)[:, 0]
        wrong = torch.arange(len(examples)) % 2 == 1
        examples.labels.copy_(torch.where(wrong, (narrow + 1) % 3, narrow))
    config = GatesConfig(count=1, epochs=6.0, learning_rate=3e-3)
    model = train_phase("gates", config, tmp_path / "run", model, **data)
    choices = model.gates(compute(make_examples(40, seed=9), "fresh").first_tokens[:, 0])[:, 0].argmax(dim=-1)
    assert (choices[0::2] == 0).float().mean() > 0.9
    assert (choices[1::2] > 0).float().mean() > 0.9


def test_the_encoder_stays_as_it_is(tmp_path: Path) -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    config = GatesConfig(epochs=1.0, target="agreement", cost=0.2, max_rows=100)
    model = train_phase("gates", config, tmp_path, model)
    assert len(model.gates) == LAYERS  # the largest divisor up to 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())


def test_a_gate_learns_from_every_width_below(tmp_path: Path) -> None:
    """Each width leaves its hint in another channel; a gate must know them all."""
    targets = torch.arange(600) % 2
    first_tokens = torch.zeros(600, 2, 1, 8)
    for width in range(2):
        first_tokens[:, width, 0, width] = 2.0 * targets - 1
    data = GateExamples(first_tokens, targets)
    torch.manual_seed(0)
    gates = WidthGates(num_gates=1, hidden_size=8, widths=(0.5, 1.0))
    seen: list[dict[str, float]] = []

    class Logs(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.append(logs)

    trainer = make_trainer(tmp_path, callbacks=[Logs()], phase="gates")
    fit_gates(trainer, gates, GatesConfig(epochs=10, learning_rate=1e-2), data, data)
    losses = [values["eval_loss"] for values in seen if "eval_loss" in values]
    assert losses[-1] < losses[0]
    for width in range(2):
        assert torch.equal(gates(first_tokens[:, width])[:, 0].argmax(dim=-1), targets)
