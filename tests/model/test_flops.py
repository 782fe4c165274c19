"""The cost model equals PyTorch's FLOP counter; views share all weights and need little memory."""

import gc
import tracemalloc

import pytest
import torch
from tests.factories.networks import CONFIGS, HEADS, LAYERS, NEURONS, make_inputs, make_network
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

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


SIZES = {
    "all-MiniLM-L6": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "BERT-base": {},
}


@pytest.mark.parametrize(("size", "limit"), [("all-MiniLM-L6", 0.02), ("BERT-base", 0.01)])
def test_twelve_views_share_all_weights(size: str, limit: float) -> None:
    model = ElasticModel(AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", **SIZES[size])))
    tensors = [*model.network.parameters(), *model.network.buffers()]
    weights = sum(tensor.nbytes for tensor in tensors)
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    gc.collect()
    tracemalloc.start()
    try:
        views = [model.view(subnet) for subnet in model.subnets().values()]
        gc.collect()
        objects, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(views) == 12
    for view in views:
        for tensor in (*view.parameters(), *view.buffers()):
            assert tensor.untyped_storage().data_ptr() in storages
    assert objects < limit * weights, f"{objects / weights:.2%}"
