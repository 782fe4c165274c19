"""Rewiring: sort heads and neurons by importance, so that narrow sub-networks keep the most important ones."""

import torch
from torch import Tensor, nn

from limbert.method.importance import ImportanceScores
from limbert.model.elastic import ElasticModel
from limbert.model.families import layer_parts


@torch.no_grad()
def rewire(model: ElasticModel, scores: ImportanceScores) -> None:
    """Sort the heads and neurons of each layer by falling importance, in place.

    The outputs of the full network stay the same, up to the order of floating-point sums. Equal scores keep their
    order. Rows of the projections into attention and feed-forward move with their biases, columns of the projections
    out of them without. (DynaBERT, arXiv 2004.04037, section 2.1.)
    """
    family = model.family
    for layer, head_scores, neuron_scores in zip(model.layers(), scores.heads, scores.neurons, strict=True):
        parts = layer_parts(layer, family)
        channels = head_channels(head_scores.argsort(descending=True, stable=True), head_size=model.head_size)
        neurons = neuron_scores.argsort(descending=True, stable=True)
        for linear in parts.attention_in:
            _permute_rows(linear, channels, blocks=family.attention_blocks)
        _permute_columns(parts.attention_out, channels)
        _permute_rows(parts.mlp_in, neurons, blocks=family.mlp_blocks)
        _permute_columns(parts.mlp_out, neurons)


def head_channels(heads: Tensor, *, head_size: int) -> Tensor:
    """Channels ``(heads * head_size,)`` of these heads ``(heads,)``, in their order."""
    within_head = torch.arange(head_size, device=heads.device)
    return (heads[:, None] * head_size + within_head).flatten()


def _permute_rows(linear: nn.Linear, permutation: Tensor, *, blocks: int) -> None:
    for parameter in (linear.weight, linear.bias):
        if parameter is not None:
            by_block = parameter.unflatten(0, (blocks, -1))  # (blocks, rows, ...)
            parameter.copy_(by_block[:, permutation].flatten(0, 1))


def _permute_columns(linear: nn.Linear, permutation: Tensor) -> None:
    linear.weight.copy_(linear.weight[:, permutation])
