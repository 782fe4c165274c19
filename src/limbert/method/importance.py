"""How much each head and neuron matters to the task: first-order Taylor scores."""

from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbert.model.elastic import ElasticModel
from limbert.model.families import Family, LayerParts, layer_parts

WeightedMicroBatch = tuple[dict[str, Tensor], float]  # rows of a batch, and their share of what its mean loss is over


@dataclass(frozen=True)
class ImportanceScores:
    """Scores of the full network, on the model's device.

    Attributes:
        heads: ``(layers, heads)``, not negative.
        neurons: ``(layers, neurons)``, not negative.
    """

    heads: Tensor
    neurons: Tensor


def compute_importance(model: ElasticModel, batches: Iterable[dict[str, Tensor]]) -> ImportanceScores:
    """Score every head and neuron of the full network by how much the loss would change without it.

    For each batch: a head's score is ``|dL/d gate|``, where the gate multiplies the head's output and equals 1; a
    neuron's is ``|sum_j W1[n,j] dL/dW1[n,j] + b1[n] dL/db1[n]| + |sum_i W2[i,n] dL/dW2[i,n]|``. Absolute values per
    batch are added up; gradients start from zero for every batch. Dropout is off. (DynaBERT, arXiv 2004.04037,
    section 2.1; formulas as its released program computes them. In a gated unit the rows of both halves belong to
    the neuron.)

    Args:
        model: scored at full size; its gradients are cleared.
        batches: labelled batches of the training side, on the model's device.
    """
    return importance_from_micro_batches(model, ([(batch, 1.0)] for batch in batches))


def importance_from_micro_batches(
    model: ElasticModel, batches: Iterable[Iterable[WeightedMicroBatch]]
) -> ImportanceScores:
    """`importance`, with no more than a piece of a batch in memory at a time: a batch stays what is scored.

    Args:
        model: as there.
        batches: the pieces of each, as few as there may be; the shares of a batch add up to 1.
    """
    network, parts = model.network, [layer_parts(layer, model.family) for layer in model.layers()]
    gates = torch.ones(model.shape.layers, model.shape.heads, device=network.device, requires_grad=True)
    heads = torch.zeros_like(gates, requires_grad=False)
    neurons = torch.zeros(model.shape.layers, model.shape.neurons, device=network.device)
    training = network.training
    network.eval()
    try:
        with model.at(model.full), _head_mask_applied(parts, gates):
            for pieces in batches:
                network.zero_grad(set_to_none=True)
                gates.grad = None
                for piece, share in pieces:
                    (share * network(**piece).loss).backward()  # gradients of the batch's mean add up
                if gates.grad is None:
                    continue  # a batch without a label
                heads += gates.grad.abs()
                neurons += torch.stack([_neuron_scores(part, model.family) for part in parts])
    finally:
        network.zero_grad(set_to_none=True)
        network.train(training)
    return ImportanceScores(heads=heads, neurons=neurons)


@contextmanager
def _head_mask_applied(parts: list[LayerParts], head_mask: Tensor) -> Any:
    """Multiply each head's output by its gate, where it enters the projection out of the attention."""

    def hook(index: int) -> Any:
        def multiply(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            by_head = args[0].unflatten(-1, (head_mask.shape[1], -1))  # (batch, tokens, heads, head size)
            return ((by_head * head_mask[index, :, None].to(by_head.dtype)).flatten(-2),)

        return multiply

    handles = [part.attention_out.register_forward_pre_hook(hook(index)) for index, part in enumerate(parts)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _neuron_scores(parts: LayerParts, family: Family) -> Tensor:
    """``(neurons,)`` from the gradients of one batch."""
    into = (parts.mlp_in.weight * _gradient(parts.mlp_in.weight)).sum(dim=1)
    if parts.mlp_in.bias is not None:
        into += parts.mlp_in.bias * _gradient(parts.mlp_in.bias)
    into = into.unflatten(0, (family.mlp_blocks, -1)).sum(dim=0)
    out_of = (parts.mlp_out.weight * _gradient(parts.mlp_out.weight)).sum(dim=0)
    return into.abs() + out_of.abs()


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "the loss does not reach every layer"
    return parameter.grad
