"""Importance of each head and neuron for the task: first-order Taylor scores."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbert.model.elastic import ElasticModel
from limbert.model.families import Family, LayerParts, layer_parts

WeightedMicroBatch = tuple[dict[str, Tensor], float]  # part of a batch, and its weight in the batch's mean loss


@dataclass(frozen=True)
class ImportanceScores:
    """Scores of the full network, on the model's device.

    Attributes:
        heads: ``(layers, heads)``, not negative.
        neurons: ``(layers, neurons)``, not negative.
    """

    heads: Tensor
    neurons: Tensor


def importance_from_micro_batches(
    model: ElasticModel, batches: Iterable[Iterable[WeightedMicroBatch]]
) -> ImportanceScores:
    """Score every head and neuron of the full network by how much the loss would change without it.

    For each batch, a head's score is ``|dL/d gate|``, where the gate multiplies the head's output and equals 1; a
    neuron's is ``|sum_j W1[n,j] dL/dW1[n,j] + b1[n] dL/db1[n]| + |sum_i W2[i,n] dL/dW2[i,n]|``. The scores of the
    batches are added. Dropout is off. (DynaBERT, arXiv 2004.04037, section 2.1; formulas as its released program
    computes them, but gradients start from zero for every batch. In a gated unit the rows of both halves belong to the
    neuron.)

    Args:
        model: scored at full size; its gradients are cleared.
        batches: labelled batches on the model's device, each split into micro-batches so that a whole batch need not
            fit into memory. The weights of a batch add up to 1. Batches without micro-batches are skipped.
    """
    network, parts = model.network, [layer_parts(layer, model.family) for layer in model.layers()]
    gates = torch.ones(model.shape.layers, model.shape.heads, device=network.device, requires_grad=True)
    heads = torch.zeros_like(gates, requires_grad=False)
    neurons = torch.zeros(model.shape.layers, model.shape.neurons, device=network.device)
    training = network.training
    network.eval()
    try:
        with model.at(model.full), _heads_multiplied(parts, gates):
            for micro_batches in batches:
                network.zero_grad(set_to_none=True)
                gates.grad = None
                for inputs, weight in micro_batches:
                    (weight * network(**inputs).loss).backward()
                if gates.grad is None:
                    continue
                heads += gates.grad.abs()
                neurons += torch.stack([_neuron_scores(layer, model.family) for layer in parts])
    finally:
        network.zero_grad(set_to_none=True)
        network.train(training)
    return ImportanceScores(heads=heads, neurons=neurons)


@contextmanager
def _heads_multiplied(parts: list[LayerParts], gates: Tensor) -> Iterator[None]:
    """Multiply each head's output by its gate ``(layers, heads)``, at the input of the attention output projection."""

    def hook(index: int) -> Any:
        def multiply(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            by_head = args[0].unflatten(-1, (gates.shape[1], -1))  # (batch, tokens, heads, head size)
            return ((by_head * gates[index, :, None].to(by_head.dtype)).flatten(-2),)

        return multiply

    handles = [part.attention_out.register_forward_pre_hook(hook(index)) for index, part in enumerate(parts)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _neuron_scores(parts: LayerParts, family: Family) -> Tensor:
    """Scores ``(neurons,)`` from the gradients of one batch."""
    into = (parts.mlp_in.weight * _gradient(parts.mlp_in.weight)).sum(dim=1)
    if parts.mlp_in.bias is not None:
        into += parts.mlp_in.bias * _gradient(parts.mlp_in.bias)
    into = into.unflatten(0, (family.mlp_blocks, -1)).sum(dim=0)
    out_of = (parts.mlp_out.weight * _gradient(parts.mlp_out.weight)).sum(dim=0)
    return into.abs() + out_of.abs()


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "the loss does not depend on every layer"
    return parameter.grad
