"""A head that answers at some places says there what it says when it answers everywhere."""

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
    """The same masked-language model, plain and taking positions."""
    plain = ElasticModel(make_network(case, AutoModelForMaskedLM))
    reading = ElasticModel(copy.deepcopy(plain.network))
    enable_sparse_prediction(reading.network)
    return plain, reading


@pytest.mark.parametrize("case", CONFIGS)
def test_masked_positions_only_equals_the_full_computation(case: str) -> None:
    plain, reading = make_pair(case)
    inputs, subnet = make_inputs(), Subnet.uniform(plain.shape, width=0.5, depth=0.5)
    labels = torch.tensor([3, 70, 8, 20, 5])
    everywhere = torch.full((36,), -100)
    everywhere[POSITIONS] = labels
    losses = []
    for model in (plain, reading):
        for size in (model.full, subnet):
            with model.at(size) as network:
                if model is plain:
                    losses.append(network(**inputs, labels=everywhere.view(3, 12)).loss)
                else:
                    losses.append(network(**inputs, positions=POSITIONS, labels=labels).loss)
                losses[-1].backward()
    torch.testing.assert_close(losses[:2], losses[2:], atol=1e-5, rtol=1e-5)
    for (name, ours), theirs in zip(reading.network.named_parameters(), plain.network.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("case", most_different())
@torch.no_grad()
def test_shared_passes_and_copies_take_positions_too(case: str) -> None:
    plain, reading = make_pair(case)
    inputs = make_inputs()
    ready = with_expanded_mask(inputs, plain.network, plain.family)
    subnets = tuple(Subnet.uniform(plain.shape, depth=depth, layers="first") for depth in (1.0, 0.5))
    for shared in (SharedForward(subnets), SharedForward(subnets[1:])):
        with reading.at(shared.merged_subnet):
            answers = run_shared_forward(reading, shared, ready | {"positions": POSITIONS}, output_hidden_states=True)
        for subnet, answer in answers.items():
            with plain.at(subnet) as network:
                expected = network(**inputs).logits.flatten(0, 1)[POSITIONS]
            torch.testing.assert_close(answer.logits, expected, atol=2e-5, rtol=2e-5)
            assert answer.hidden_states[-1].shape == (3, 12, 48)  # states are those of all tokens
    teacher = ElasticModel(copy.deepcopy(reading.network))  # as a phase makes one, right after a pass with positions
    logits = teacher.network(**inputs, positions=POSITIONS).logits
    assert torch.equal(logits, reading.network(**inputs, positions=POSITIONS).logits)
    everywhere = reading.network(**inputs).logits  # without positions it is the stock model
    assert torch.equal(everywhere, plain.network(**inputs).logits)
    torch.testing.assert_close(everywhere.flatten(0, 1)[POSITIONS], logits, atol=2e-5, rtol=2e-5)
