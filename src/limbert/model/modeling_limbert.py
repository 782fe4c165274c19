"""A stock model with fewer attention heads and neurons in each layer, as listed under ``limbert`` in config.json.

Limbert writes this file beside the weights; it needs transformers only. The class has the stock name, so that pipelines
recognise it.
"""

from typing import Any

import torch
import transformers
from torch import nn


class BertForSequenceClassification(transformers.BertForSequenceClassification):
    """The stock model with the Linears into and out of heads and neurons narrowed before the weights are loaded."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        paths, full_heads = config.limbert["paths"], config.num_attention_heads
        layers: Any = self.base_model.get_submodule(paths["layers"])
        for layer, heads, neurons in zip(layers, config.limbert["heads"], config.limbert["neurons"], strict=True):
            full_neurons = layer.get_submodule(paths["mlp_out"]).in_features
            for path in paths["attention_in"]:
                _narrow(layer, path, rows=(heads, full_heads))
            _narrow(layer, paths["attention_out"], columns=(heads, full_heads))
            _narrow(layer, paths["mlp_in"], rows=(neurons, full_neurons))
            _narrow(layer, paths["mlp_out"], columns=(neurons, full_neurons))
            if paths["head_count"]:  # the attention module stores its number of heads
                module, name = paths["head_count"]
                setattr(layer.get_submodule(module), name, heads)


def _narrow(layer: nn.Module, path: str, *, rows: tuple[int, int] = (1, 1), columns: tuple[int, int] = (1, 1)) -> None:
    """Replace a Linear by one with a fraction (kept, full) of its rows or columns."""
    full: Any = layer.get_submodule(path)
    narrow = nn.Linear(
        full.in_features * columns[0] // columns[1],
        full.out_features * rows[0] // rows[1],
        bias=full.bias is not None,
        device=full.weight.device,
        dtype=full.weight.dtype,
    )
    if narrow.weight.device.type != "meta":  # a new model with random weights, not one that is being loaded
        with torch.no_grad():
            narrow.weight.copy_(full.weight[: narrow.out_features, : narrow.in_features])
            if narrow.bias is not None:
                narrow.bias.copy_(full.bias[: narrow.out_features])
    parent, _, name = path.rpartition(".")
    setattr(layer.get_submodule(parent), name, narrow)
