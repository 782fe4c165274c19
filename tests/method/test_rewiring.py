"""Rewiring keeps the outputs of the full network; importance equals its definition."""

import copy

import pytest
import torch
from tests.factories.networks import CONFIGS, make_inputs, make_network
from torch.func import functional_call

from limbert import ElasticModel, Subnet
from limbert.method.importance import ImportanceScores, importance_from_micro_batches
from limbert.method.rewiring import rewire
from limbert.model.families import layer_parts


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


def test_equal_scores_keep_their_order() -> None:
    model = ElasticModel(make_network("bert"))
    weights = copy.deepcopy(model.network.state_dict())
    shape = model.shape
    rewire(model, ImportanceScores(torch.ones(shape.layers, shape.heads), torch.ones(shape.layers, shape.neurons)))
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.network.state_dict().items())
