"""Sparse prediction gives the logits, losses and gradients of the full prediction at those positions."""

import copy

import pytest
import torch
from tests.factories.networks import CONFIGS, make_inputs, make_network, most_different
from transformers import AutoModelForMaskedLM

from limbert import ElasticModel, Subnet
from limbert.model.layerwise import with_expanded_mask
from limbert.model.shared_forward import SharedForward, run_shared_forward
from limbert.model.sparse_prediction import enable_sparse_prediction

POSITIONS = torch.tensor([1, 5, 14, 25, 30])  # in a flattened batch of 3 x 12


def make_pair(case: str) -> tuple[ElasticModel, ElasticModel]:
    """The same masked language model, without and with sparse prediction."""
    plain = ElasticModel(make_network(case, AutoModelForMaskedLM))
    sparse = ElasticModel(copy.deepcopy(plain.network))
    enable_sparse_prediction(sparse.network)
    return plain, sparse


@pytest.mark.parametrize("case", CONFIGS)
def test_masked_positions_equal_the_full_computation(case: str) -> None:
    plain, sparse = make_pair(case)
    inputs, subnet = make_inputs(), Subnet.uniform(plain.shape, width=0.5, depth=0.5)
    labels = torch.tensor([3, 70, 8, 20, 5])
    everywhere = torch.full((36,), -100)
    everywhere[POSITIONS] = labels
    losses = []
    for model in (plain, sparse):
        for part in (model.full, subnet):
            with model.at(part) as network:
                if model is plain:
                    losses.append(network(**inputs, labels=everywhere.view(3, 12)).loss)
                else:
                    losses.append(network(**inputs, positions=POSITIONS, labels=labels).loss)
                losses[-1].backward()
    torch.testing.assert_close(losses[:2], losses[2:], atol=1e-5, rtol=1e-5)
    for (name, parameter), reference in zip(sparse.network.named_parameters(), plain.network.parameters(), strict=True):
        if reference.grad is not None:
            torch.testing.assert_close(parameter.grad, reference.grad, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("case", most_different())
@torch.no_grad()
def test_shared_passes_and_copies_take_positions(case: str) -> None:
    plain, sparse = make_pair(case)
    inputs = make_inputs()
    expanded = with_expanded_mask(inputs, plain.network, plain.family)
    subnets = tuple(Subnet.uniform(plain.shape, depth=depth, layers="first") for depth in (1.0, 0.5))
    for shared in (SharedForward(subnets), SharedForward(subnets[1:])):
        with sparse.at(shared.merged_subnet):
            outputs = run_shared_forward(sparse, shared, expanded | {"positions": POSITIONS}, output_hidden_states=True)
        for subnet, output in outputs.items():
            with plain.at(subnet) as network:
                expected = network(**inputs).logits.flatten(0, 1)[POSITIONS]
            torch.testing.assert_close(output.logits, expected, atol=2e-5, rtol=2e-5)
            assert output.hidden_states[-1].shape == (3, 12, 48)  # the states of all tokens
    teacher = ElasticModel(copy.deepcopy(sparse.network))  # copied right after a pass with positions
    logits = teacher.network(**inputs, positions=POSITIONS).logits
    assert torch.equal(logits, sparse.network(**inputs, positions=POSITIONS).logits)
    everywhere = sparse.network(**inputs).logits  # without positions: the stock model
    assert torch.equal(everywhere, plain.network(**inputs).logits)
    torch.testing.assert_close(everywhere.flatten(0, 1)[POSITIONS], logits, atol=2e-5, rtol=2e-5)
