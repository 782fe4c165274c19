"""Grafting blends the weak rows with the strong ones, and touches nothing else."""

import copy

import pytest
import torch
from tests.factories.networks import CONFIGS, make_inputs, make_network

from limbert import ElasticModel, Subnet
from limbert.core.config import PhaseConfig
from limbert.errors import ConfigError
from limbert.method.grafting import graft
from limbert.method.importance import ImportanceScores
from limbert.model.families import layer_parts
from limbert.train.callbacks import grafting_steps

RATE = 0.3


def random_scores(model: ElasticModel) -> ImportanceScores:
    generator = torch.Generator().manual_seed(3)
    shape = model.shape
    return ImportanceScores(
        heads=torch.rand(shape.layers, shape.heads, generator=generator),
        neurons=torch.rand(shape.layers, shape.neurons, generator=generator),
    )


def blended(matrix: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The textbook loop: row i of the matrix ``(units, ...)`` belongs to the unit with score i."""
    ranking = sorted(range(len(scores)), key=lambda unit: scores[unit].item())
    result = matrix.clone()
    for place in range(len(scores) // 2):
        weak, strong = ranking[place], ranking[-1 - place]
        result[weak] = RATE * matrix[strong] + (1 - RATE) * matrix[weak]
    return result


@torch.no_grad()
@pytest.mark.parametrize("case", CONFIGS)
def test_every_weight_is_what_the_formula_says(case: str) -> None:
    model = ElasticModel(make_network(case))
    before, scores = copy.deepcopy(model.network.state_dict()), random_scores(model)
    graft(model, scores, rate=RATE, weak_fraction=0.5)
    after = model.network.state_dict()
    names = {id(parameter): name for name, parameter in model.network.named_parameters()}
    touched = set()

    def check(parameter: torch.Tensor, units: torch.Tensor, *, blocks: int = 1, columns: bool = False) -> None:
        name = names[id(parameter)]
        old = before[name].T if columns else before[name]
        by_unit = old.unflatten(0, (blocks, len(units), -1))
        expected = torch.stack([blended(block, units) for block in by_unit]).flatten(0, 2)
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


@torch.no_grad()
def test_equal_heads_and_neurons_do_not_change() -> None:
    """Where weak and strong compute the same, the network's function stays the same."""
    model = ElasticModel(make_network("bert"))
    for layer in model.layers():
        parts = layer_parts(layer, model.family)
        for linear, units in [(linear, model.shape.heads) for linear in parts.attention_in] + [
            (parts.mlp_in, model.shape.neurons)
        ]:
            for parameter in (linear.weight, linear.bias):
                by_unit = parameter.unflatten(0, (units, -1))
                by_unit.copy_(by_unit[:1].expand_as(by_unit).clone())
        for linear, units in ((parts.attention_out, model.shape.heads), (parts.mlp_out, model.shape.neurons)):
            by_unit = linear.weight.unflatten(1, (units, -1))
            by_unit.copy_(by_unit[:, :1].expand_as(by_unit).clone())
    before = model.network(**make_inputs()).logits
    graft(model, random_scores(model), rate=0.5)
    torch.testing.assert_close(model.network(**make_inputs()).logits, before, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_small_share_grafts_only_the_weakest() -> None:
    model = ElasticModel(make_network("bert"))
    scores = ImportanceScores(
        heads=torch.arange(model.shape.heads).float().repeat(model.shape.layers, 1),
        neurons=torch.arange(model.shape.neurons).float().repeat(model.shape.layers, 1),
    )
    query = layer_parts(model.layers()[0], model.family).attention_in[0].weight
    before = query.clone()
    graft(model, scores, weak_fraction=0.2)  # one of six heads
    changed = (query != before).unflatten(0, (model.shape.heads, -1)).any(dim=-1).any(dim=-1)
    assert changed.tolist() == [True] + [False] * (model.shape.heads - 1)
    with model.at(Subnet.uniform(model.shape, width=0.5)):  # weights, not the scope, are what it works on
        graft(model, scores)


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
