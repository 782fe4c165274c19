"""Rewiring keeps the full outputs, grafting blends weak rows with strong ones, importance equals its definition."""

import copy

import pytest
import torch
from tests.factories.networks import CONFIGS, make_inputs, make_network
from torch.func import functional_call

from limbert import ElasticModel, Subnet
from limbert.core.config import PhaseConfig
from limbert.errors import ConfigError
from limbert.method.grafting import graft
from limbert.method.importance import ImportanceScores, importance_from_micro_batches
from limbert.method.rewiring import rewire
from limbert.model.families import layer_parts
from limbert.train.callbacks import grafting_steps


def importance_of(model: ElasticModel, batches: list[dict[str, torch.Tensor]]) -> ImportanceScores:
    return importance_from_micro_batches(model, [[(batch, 1.0)] for batch in batches])


def labelled(batch: int = 3, tokens: int = 12) -> dict[str, torch.Tensor]:
    return make_inputs(batch=batch, tokens=tokens) | {"labels": torch.arange(batch) % 3}


@pytest.mark.parametrize("case", CONFIGS)
def test_rewiring_keeps_the_full_outputs(case: str) -> None:
    model = ElasticModel(make_network(case))
    inputs = labelled()
    narrow = Subnet.uniform(model.shape, width=0.5)
    with torch.no_grad():
        before, narrow_before = model.network(**inputs).logits, model.view(narrow)(**inputs).logits
    weights = copy.deepcopy(model.network.state_dict())
    rewire(model, importance_of(model, [inputs]))
    with torch.no_grad():
        torch.testing.assert_close(model.network(**inputs).logits, before, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(model.view(narrow)(**inputs).logits, narrow_before, atol=1e-3)
    changed = sum(not torch.equal(weights[name], tensor) for name, tensor in model.network.state_dict().items())
    assert changed >= 3 * model.shape.layers


@pytest.mark.parametrize("case", CONFIGS)
def test_rewiring_sorts_by_falling_score(case: str) -> None:
    model = ElasticModel(make_network(case))
    inputs = labelled()
    rewire(model, importance_of(model, [inputs]))
    scores = importance_of(model, [inputs])
    for row in (*scores.heads, *scores.neurons):
        assert (row[:-1] - row[1:]).min() > -1e-4 * row.max()


@pytest.mark.parametrize("case", CONFIGS)
def test_neuron_score_is_the_derivative_of_scaling(case: str) -> None:
    """``sum_j W1 dL/dW1 + b1 dL/db1`` is dL/ds for a factor s on the neuron's input weights; the output likewise."""
    model = ElasticModel(make_network(case))
    inputs, neuron = labelled(), 4
    parts = layer_parts(model.layers()[1], model.family)
    rows = torch.zeros(parts.mlp_in.out_features).unflatten(0, (model.family.mlp_blocks, -1))
    rows[:, neuron] = 1
    rows = rows.flatten()
    columns = torch.zeros(parts.mlp_out.in_features).index_fill_(0, torch.tensor(neuron), 1)
    scales = torch.zeros(2, requires_grad=True)
    names = {id(parameter): name for name, parameter in model.network.named_parameters()}
    scaled = {
        names[id(parts.mlp_in.weight)]: parts.mlp_in.weight.detach() * (1 + scales[0] * rows)[:, None],
        names[id(parts.mlp_out.weight)]: parts.mlp_out.weight.detach() * (1 + scales[1] * columns),
    }
    if parts.mlp_in.bias is not None:
        scaled[names[id(parts.mlp_in.bias)]] = parts.mlp_in.bias.detach() * (1 + scales[0] * rows)
    functional_call(model.network, scaled, kwargs=inputs).loss.backward()
    expected = scales.grad.abs().sum()
    torch.testing.assert_close(importance_of(model, [inputs]).neurons[1, neuron], expected, rtol=1e-3, atol=1e-6)


def test_batches_are_scored_independently() -> None:
    """Gradients start from zero for each batch (the released program accumulates them)."""
    model = ElasticModel(make_network("bert"))
    first, second = labelled(3, 8), labelled(2, 11)
    sum_of_both = importance_of(model, [first, second])
    alone = [importance_of(model, [batch]) for batch in (first, second)]
    torch.testing.assert_close(sum_of_both.heads, alone[0].heads + alone[1].heads)
    torch.testing.assert_close(sum_of_both.neurons, alone[0].neurons + alone[1].neurons)
    assert all(parameter.grad is None for parameter in model.network.parameters())


RATE = 0.3


def random_scores(model: ElasticModel) -> ImportanceScores:
    generator = torch.Generator().manual_seed(3)
    shape = model.shape
    return ImportanceScores(
        heads=torch.rand(shape.layers, shape.heads, generator=generator),
        neurons=torch.rand(shape.layers, shape.neurons, generator=generator),
    )


def blended(matrix: torch.Tensor, scores: torch.Tensor, share: float) -> torch.Tensor:
    """The textbook loop: row i of the matrix ``(units, ...)`` belongs to the unit with score i."""
    ranking = sorted(range(len(scores)), key=lambda unit: scores[unit].item())
    result = matrix.clone()
    for place in range(int(len(scores) * share)):
        weak, strong = ranking[place], ranking[-1 - place]
        result[weak] = RATE * matrix[strong] + (1 - RATE) * matrix[weak]
    return result


@torch.no_grad()
@pytest.mark.parametrize(("case", "share"), [*((case, 0.5) for case in CONFIGS), ("bert", 0.2)])
def test_every_weight_is_what_the_formula_says(case: str, share: float) -> None:
    model = ElasticModel(make_network(case))
    before, scores = copy.deepcopy(model.network.state_dict()), random_scores(model)
    with model.at(Subnet.uniform(model.shape, width=0.5)):  # weights, not the scope, are what it works on
        graft(model, scores, rate=RATE, weak_fraction=share)
    after = model.network.state_dict()
    names = {id(parameter): name for name, parameter in model.network.named_parameters()}
    touched = set()

    def check(parameter: torch.Tensor, units: torch.Tensor, *, blocks: int = 1, columns: bool = False) -> None:
        name = names[id(parameter)]
        old = before[name].T if columns else before[name]
        by_unit = old.unflatten(0, (blocks, len(units), -1))
        expected = torch.stack([blended(block, units, share) for block in by_unit]).flatten(0, 2)
        torch.testing.assert_close(after[name], expected.T if columns else expected)
        touched.add(name)

    for layer, heads, neurons in zip(model.layers(), scores.heads, scores.neurons, strict=True):
        parts = layer_parts(layer, model.family)
        for linear in parts.attention_in:
            check(linear.weight, heads, blocks=model.family.attention_blocks)
            if linear.bias is not None:
                check(linear.bias, heads, blocks=model.family.attention_blocks)
        check(parts.attention_out.weight, heads, columns=True)
        check(parts.mlp_in.weight, neurons, blocks=model.family.mlp_blocks)
        if parts.mlp_in.bias is not None:
            check(parts.mlp_in.bias, neurons, blocks=model.family.mlp_blocks)
        check(parts.mlp_out.weight, neurons, columns=True)
    assert touched
    for name in before:
        if name not in touched:
            assert torch.equal(after[name], before[name]), name


def test_three_times_an_epoch_until_the_last() -> None:
    assert grafting_steps(3, steps_per_epoch=30, max_steps=90) == {10, 20, 30, 40, 50, 60}
    assert grafting_steps(3, steps_per_epoch=100, max_steps=200) == {33, 67, 100}
    assert grafting_steps(3, steps_per_epoch=30, max_steps=30) == set()
    assert grafting_steps(3, steps_per_epoch=30, max_steps=7) == set()
    assert grafting_steps(0, steps_per_epoch=30, max_steps=90) == set()


@pytest.mark.parametrize(("name", "value"), [("graft_rate", 0.0), ("graft_share", 0.6), ("grafts", -1)])
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name.replace('_', '.')}.* is {value}"):
        PhaseConfig(**{name: value})
