"""Gates learn what can be learnt, from static passes that are computed once and survive a kill."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.factories.networks import CONFIGS, LAYERS, make_network
from tests.factories.phases import WIDTHS, make_examples, make_model, make_work

from limbert import ElasticModel, Space, Subnet
from limbert.core.config import GatesConfig
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError, TrainingInterrupted
from limbert.model.width_gates import WidthGates
from limbert.train.gates import CachedFeatures, FeatureCache, GateDataset, GatePhase, _train_gates, cached_features
from limbert.train.run_folder import LOG_NAME


@torch.no_grad()
@pytest.mark.parametrize("case", CONFIGS)
def test_static_answers_are_those_of_each_example_alone(case: str, tmp_path: Path) -> None:
    model, examples = make_model(case), make_examples(9, seed=3)
    subnets = [Subnet.uniform(model.shape, width=width) for width in WIDTHS]
    keeping = FeatureCache(cache_dir=tmp_path, name="gates-train")
    found = cached_features(model, examples, subnets=subnets, layer_indices=[0, 2], precision="fp32", cache=keeping)
    assert found.first_tokens.shape == (9, 3, 2, 48)
    for row in range(9):
        inputs = {name: tensor for name, tensor in examples.collate([row]).items() if name != "labels"}
        for column, subnet in enumerate(subnets):
            with model.at(subnet) as network, model.recorded_states() as states:
                logits = network(**inputs).logits[0]
            torch.testing.assert_close(found.logits[row, column], logits, atol=1e-5, rtol=1e-5)
            for place, layers in enumerate([0, 2]):
                first_token = states[layers][0, 0]
                torch.testing.assert_close(found.first_tokens[row, column, place], first_token, atol=1e-5, rtol=1e-5)


def test_passes_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    model, examples = make_model(), make_examples(32 * 64 + 200, seed=3)  # more than one part
    subnets = [model.full]
    asked = 0

    def stop_after_the_first_part() -> bool:
        nonlocal asked
        asked += 1
        return asked > 33

    def answers(**keeping: object) -> torch.Tensor:
        kept = FeatureCache(cache_dir=tmp_path, name="gates-train", **keeping)
        found = cached_features(model, examples, subnets=subnets, layer_indices=[0], precision="fp32", cache=kept)
        return found.logits

    with pytest.raises(TrainingInterrupted, match="stopped in gates-train after 32 of 36 batches"):
        answers(should_stop=stop_after_the_first_part)
    begun: list[int] = []
    resumed = answers(progress=lambda done, total: begun.append(done))
    assert begun == [32, 33, 34, 35]
    for part in tmp_path.iterdir():
        part.unlink()
    assert torch.equal(answers(), resumed)


def test_interrupted_gates_end_as_uninterrupted_ones(tmp_path: Path) -> None:
    config = GatesConfig(count=2, epochs=3.0, batch_size=16)
    whole = make_work(tmp_path / "whole")
    GatePhase(help="", defaults={}).train(whole, config)
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls == 8

    stopped = make_work(tmp_path / "stopped", should_stop=stop)
    with pytest.raises(TrainingInterrupted):
        GatePhase(help="", defaults={}).train(stopped, config)
    assert stopped.model.gates is None
    resumed = make_work(tmp_path / "stopped")
    GatePhase(help="", defaults={}).train(resumed, config)
    assert whole.model.gates is not None
    assert resumed.model.gates is not None
    for name, tensor in whole.model.gates.state_dict().items():
        assert torch.equal(tensor, resumed.model.gates.state_dict()[name])
    logs = [(work.context.run_dir.path / LOG_NAME).read_text().splitlines() for work in (whole, resumed)]
    assert len(logs[0]) == len(logs[1])


def test_gates_learn_which_width_each_example_needs(tmp_path: Path) -> None:
    """Labels such that the narrowest width is wrong exactly where the first word is another."""
    work = make_work(tmp_path, rows=1500)
    model = work.model
    subnets = [Subnet.uniform(model.shape, width=width) for width in WIDTHS]

    def answers(examples: TokenizedExamples, part: str) -> CachedFeatures:
        firsts = 6 + np.arange(len(examples)) % 2  # two first words
        examples.tokens.ids[examples.tokens.offsets[:-1]] = firsts
        keeping = FeatureCache(tmp_path, part)
        return cached_features(model, examples, subnets=subnets, layer_indices=[0], precision="fp32", cache=keeping)

    for part, examples in (("train", work.train_dataset), ("validation", work.eval_dataset)):
        narrow = answers(examples, part).logits.argmax(dim=-1)[:, 0]
        wrong = torch.arange(len(examples)) % 2 == 1
        examples.labels.copy_(torch.where(wrong, (narrow + 1) % 3, narrow))
    GatePhase(help="", defaults={}).train(work, GatesConfig(count=1, epochs=6.0, learning_rate=3e-3))
    assert model.gates is not None
    choices = model.gates(answers(make_examples(40, seed=9), "fresh").first_tokens[:, 0])[:, 0].argmax(dim=-1)
    assert (choices[0::2] == 0).float().mean() > 0.9
    assert (choices[1::2] > 0).float().mean() > 0.9


def test_the_encoder_stays_as_it_is(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    before = {name: tensor.clone() for name, tensor in work.model.network.state_dict().items()}
    GatePhase(help="", defaults={}).train(work, GatesConfig(epochs=1.0, target="agreement", cost=0.2, max_rows=100))
    assert work.model.gates is not None
    assert len(work.model.gates) == LAYERS  # the largest divisor up to 4
    for name, tensor in work.model.network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_impossible_gates_are_refused_before_anything_is_written() -> None:
    phase = GatePhase(help="", defaults={})
    with pytest.raises(ConfigError, match="number of gates is 3; it must be a divisor of the 4 layers: 1, 2, 4"):
        phase.check(make_model(), GatesConfig(count=3))
    with pytest.raises(ConfigError, match="this model has 1; train it with two or more"):
        phase.check(ElasticModel(make_network("bert"), space=Space(widths=(1.0,))), GatesConfig())


def test_a_gate_learns_from_the_states_of_every_width_below_it(tmp_path: Path) -> None:
    """Each width leaves its hint in another channel; a gate must know them all."""
    targets = torch.arange(600) % 2
    first_tokens = torch.zeros(600, 2, 1, 8)
    for width in range(2):
        first_tokens[:, width, 0, width] = 2.0 * targets - 1
    lessons = GateDataset(first_tokens, targets)
    torch.manual_seed(0)
    gates = WidthGates(num_gates=1, hidden_size=8, widths=(0.5, 1.0))
    config = GatesConfig(epochs=10.0, learning_rate=1e-2)
    gates = _train_gates(gates, lessons, lessons, setup=make_work(tmp_path), config=config)
    for width in range(2):
        assert torch.equal(gates(first_tokens[:, width])[:, 0].argmax(dim=-1), targets)
