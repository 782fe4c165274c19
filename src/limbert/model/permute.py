"""Reorder the heads and neurons of a layer without changing what the layer computes."""

import torch
from torch import Tensor, nn

from limbert.model.families import Family, layer_parts


@torch.no_grad()
def permute_layer(layer: nn.Module, family: Family, *, heads: Tensor, neurons: Tensor) -> None:
    """Put head ``heads[i]`` at place i and neuron ``neurons[i]`` at place i, in place.

    Rows of the projections into attention and feed-forward move with their biases, columns of the projections out
    of them without. The layer's function stays the same, up to the order of floating-point sums.

    Args:
        layer: one layer of the encoder.
        family: its entry in the family table.
        heads: a permutation of the head indices, shape ``(heads,)``.
        neurons: a permutation of the neuron indices, shape ``(neurons,)``.
    """
    parts = layer_parts(layer, family)
    channels = head_channels(heads, head_size=parts.attention_out.in_features // len(heads))
    for linear in parts.attention_in:
        _permute_rows(linear, channels, family.attention_blocks)
    _permute_columns(parts.attention_out, channels)
    _permute_rows(parts.mlp_in, neurons, family.mlp_blocks)
    _permute_columns(parts.mlp_out, neurons)


def head_channels(heads: Tensor, *, head_size: int) -> Tensor:
    """The channels ``(heads * head_size,)`` of these heads, in their order."""
    within = torch.arange(head_size, device=heads.device)
    return (heads[:, None] * head_size + within).flatten()


def _permute_rows(linear: nn.Linear, permutation: Tensor, blocks: int) -> None:
    for parameter in (linear.weight, linear.bias):
        if parameter is not None:
            by_block = parameter.unflatten(0, (blocks, -1))  # (blocks, rows, ...)
            parameter.copy_(by_block[:, permutation].flatten(0, 1))


def _permute_columns(linear: nn.Linear, permutation: Tensor) -> None:
    linear.weight.copy_(linear.weight[:, permutation])
