"""The cost model equals PyTorch's FLOP counter."""

import pytest
import torch
from tests.factories.networks import CONFIGS, HEADS, LAYERS, NEURONS, make_inputs, make_network
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from limbert import ElasticModel, Subnet
from limbert.model.flops import CostModel

SUBNETS = [
    Subnet(tuple(range(LAYERS)), (HEADS,) * LAYERS, (NEURONS,) * LAYERS),
    Subnet((0, 1, 3), (5, 1, 3), (7, NEURONS, 31)),
]


@pytest.mark.parametrize("auto_class", [AutoModelForSequenceClassification, AutoModelForMaskedLM])
@pytest.mark.parametrize("case", CONFIGS)
@torch.no_grad()
def test_flops_equal_the_counter_of_pytorch(case: str, auto_class: type) -> None:
    model = ElasticModel(make_network(case, auto_class, attn_implementation="eager"))
    cost = CostModel(model)
    for subnet in SUBNETS:
        for tokens in (5, 12):
            inputs = {name: tensor[:1, :tokens] for name, tensor in make_inputs().items()}
            with FlopCounterMode(display=False) as counter:
                model.view(subnet)(**inputs)
            assert cost.flops(subnet, tokens) == counter.get_total_flops()


def test_mean_flops_uses_the_length_of_each_example() -> None:
    cost = CostModel(ElasticModel(make_network("bert")))
    flops = [cost.flops(SUBNETS[1], tokens) for tokens in (3, 9, 9)]
    assert cost.mean_flops(SUBNETS[1], [3, 9, 9]) == sum(flops) / 3
