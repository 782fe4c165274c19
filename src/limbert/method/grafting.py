"""Neural grafting: blend the strongest heads and neurons into the weakest, so that all of them contribute."""

import torch
from torch import Tensor, nn

from limbert.method.importance import ImportanceScores
from limbert.method.rewiring import head_channels
from limbert.model.elastic import ElasticModel
from limbert.model.families import layer_parts


@torch.no_grad()
def graft(model: ElasticModel, scores: ImportanceScores, *, rate: float = 0.1, weak_fraction: float = 0.5) -> None:
    """In every layer, ``W_weak <- rate * W_strong + (1 - rate) * W_weak``, in place.

    The weakest head is blended with the strongest, the second weakest with the second strongest, and so on; neurons
    likewise. This changes the rows of the projections into attention and feed-forward with their biases, and the
    columns of the projections out of them. (Hu, Meinel, Yang: "A flexible BERT model enabling width- and
    depth-dynamic inference", Computer Speech & Language 2024, section on neural grafting.)

    Args:
        model: changed in place, and with it the outputs of the full network.
        scores: importance of the full network's heads and neurons.
        rate: weight of the strong one, between 0 and 1.
        weak_fraction: fraction of the heads, and of the neurons, that are weak; rounded down, at most a half.
    """
    family = model.family
    for layer, heads, neurons in zip(model.layers(), scores.heads, scores.neurons, strict=True):
        parts = layer_parts(layer, family)
        pairs = _weak_strong_pairs(heads, weak_fraction)
        weak, strong = (head_channels(indices, head_size=model.head_size) for indices in pairs)
        for linear in parts.attention_in:
            _blend_rows(linear, weak, strong, blocks=family.attention_blocks, rate=rate)
        _blend(parts.attention_out.weight.T, weak, strong, rate)
        weak, strong = _weak_strong_pairs(neurons, weak_fraction)
        _blend_rows(parts.mlp_in, weak, strong, blocks=family.mlp_blocks, rate=rate)
        _blend(parts.mlp_out.weight.T, weak, strong, rate)


def _weak_strong_pairs(scores: Tensor, weak_fraction: float) -> tuple[Tensor, Tensor]:
    """Indices of the weak ones, weakest first, and of the strong one for each. Equal scores keep their order."""
    order = scores.argsort(descending=True, stable=True)
    count = int(weak_fraction * len(scores))
    return order.flip(0)[:count], order[:count]


def _blend_rows(linear: nn.Linear, weak: Tensor, strong: Tensor, *, blocks: int, rate: float) -> None:
    for parameter in (linear.weight, linear.bias):
        if parameter is not None:
            for block in parameter.unflatten(0, (blocks, -1)):
                _blend(block, weak, strong, rate)


def _blend(weights: Tensor, weak: Tensor, strong: Tensor, rate: float) -> None:
    """Blend along the first dimension of a view of the weights."""
    weights[weak] = torch.lerp(weights[weak], weights[strong], rate)
