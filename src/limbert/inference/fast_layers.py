"""Fast execution of plain post-norm layers: their operations are called directly, without the modules around them.

For one short text, much of a narrow layer's time is Python overhead around a dozen operations, which does not shrink
with the width. Where the family table describes the layer as plain (self-attention with absolute positions, residual,
norm, feed-forward, residual, norm), these operations run directly on the same parameters, and so do the embeddings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbert.model.families import Family, layer_parts
from limbert.model.layerwise import LayerCalls, PreparedBatch, _has_fast_path

PrepareBatch = Callable[[dict[str, Tensor]], PreparedBatch | None]  # inputs -> embedding output, and the layers' calls
RunLayer = Callable[[Tensor, LayerCalls], Tensor]  # (state, the batch's calls) -> state, (batch, tokens, hidden)


def fast_layer_runner(layer: nn.Module, network: PreTrainedModel, family: Family) -> RunLayer:
    """A function that computes what the layer computes in evaluation mode, directly where the family is plain.

    Args:
        layer: with plain Linears, as in views.
    """
    if not _has_fast_path(network, family):
        return lambda state, calls: calls.run(layer, state)
    assert family.fast_path is not None
    parts, paths = layer_parts(layer, family), family.fast_path
    head_size = network.config.hidden_size // network.config.num_attention_heads
    query, key, value = (_LinearWeights.from_module(linear) for linear in parts.attention_in)
    attention_out, mlp_in, mlp_out = (
        _LinearWeights.from_module(part) for part in (parts.attention_out, parts.mlp_in, parts.mlp_out)
    )
    activation = layer.get_submodule(paths.activation)
    attention_norm, mlp_norm = layer.get_submodule(paths.attention_norm), layer.get_submodule(paths.mlp_norm)
    heads = query.weight.shape[0] // head_size

    def run(state: Tensor, calls: LayerCalls) -> Tensor:
        batch, tokens, _ = state.shape
        by_head = (batch, tokens, heads, head_size)
        mixed = F.scaled_dot_product_attention(
            query(state).view(by_head).transpose(1, 2),
            key(state).view(by_head).transpose(1, 2),
            value(state).view(by_head).transpose(1, 2),
            attn_mask=calls.attention_mask(layer),
        )
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, heads * head_size)
        state = attention_norm(attention_out(mixed) + state)
        return mlp_norm(mlp_out(activation(mlp_in(state))) + state)

    return run


def fast_preparation(network: PreTrainedModel, family: Family) -> PrepareBatch | None:
    """A function from a batch to its embeddings and the layers' calls; None where only the stock forward can do it.

    The function itself returns None for a batch with other inputs.
    """
    if not _has_fast_path(network, family):
        return None
    assert family.fast_path is not None
    base, names = network.base_model, family.fast_path.embedding_inputs
    embeddings = base.get_submodule("embeddings")
    projection = dict(base.named_children()).get(family.fast_path.embedding_projection or "")

    def prepare(inputs: dict[str, Tensor]) -> PreparedBatch | None:
        mask = inputs.get("attention_mask")
        if mask is None or mask.ndim != 2 or inputs.keys() - {*names, "attention_mask"}:
            return None
        state = embeddings(**{name: inputs[name] for name in names if name in inputs})
        if projection is not None:
            state = projection(state)
        allowed = None if bool(mask.all()) else mask[:, None, None, :].bool()  # (batch, 1, 1, tokens)
        return state, LayerCalls({(): ((), {"attention_mask": allowed})}, family)

    return prepare


@dataclass(frozen=True, slots=True)
class _LinearWeights:
    """The parameters of a Linear, applied without its module."""

    weight: Tensor
    bias: Any

    @classmethod
    def from_module(cls, linear: nn.Linear) -> "_LinearWeights":
        return cls(linear.weight, linear.bias)

    def __call__(self, state: Tensor) -> Tensor:
        return F.linear(state, self.weight, self.bias)
