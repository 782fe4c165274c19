"""Views of twelve sub-networks share all weights and need little memory."""

import gc
import tracemalloc

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification

from limbert import ElasticModel

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
