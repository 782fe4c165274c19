"""Run several sub-networks on one batch, running each shared layer once.

Sub-networks of the same width that start with the same layers share them: with the layer rule ``first`` one pass per
width serves all depths, with ``spread`` the paths branch.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from limbert.core.subnet import Subnet
from limbert.model.elastic import ElasticModel
from limbert.model.layerwise import ArgumentPath, LayerCalls
from limbert.model.outputs import logits_of

LayerPath = tuple[int, ...]  # the layers run so far


@dataclass(frozen=True)
class SharedForward:
    """Sub-networks that run together: they start with the same layer, and every layer has one width."""

    subnets: tuple[Subnet, ...]

    @property
    def merged_subnet(self) -> Subnet:
        """All their layers with their widths: pass it to `ElasticModel.at` while they run."""
        widths: dict[int, tuple[int, int]] = {}
        for subnet in self.subnets:
            widths |= subnet.layer_widths()
        layers = sorted(widths)
        return Subnet(
            tuple(layers), tuple(widths[layer][0] for layer in layers), tuple(widths[layer][1] for layer in layers)
        )


@dataclass(frozen=True)
class SubnetOutput:
    """Outputs of one sub-network for a batch.

    Attributes:
        logits: ``(batch, outputs)``; of token-level heads ``(batch, tokens, outputs)``.
        hidden_states: the embedding output and the output of each of its layers, ``(batch, tokens, hidden)``; empty
            if not requested.
    """

    logits: Tensor
    hidden_states: tuple[Tensor, ...]


def plan_shared_forwards(subnets: Iterable[Subnet]) -> list[SharedForward]:
    """Group sub-networks that can share layer runs, in the order of the first of each group."""
    groups: list[list[Subnet]] = []
    for subnet in subnets:
        for group in groups:
            if subnet.layers[0] == group[0].layers[0] and all(_compatible(subnet, other) for other in group):
                group.append(subnet)
                break
        else:
            groups.append([subnet])
    return [SharedForward(tuple(group)) for group in groups]


def _compatible(subnet: Subnet, other: Subnet) -> bool:
    others = other.layer_widths()
    return all(others.get(layer, widths) == widths for layer, widths in subnet.layer_widths().items())


def run_shared_forward(
    model: ElasticModel, shared: SharedForward, inputs: dict[str, Tensor], *, output_hidden_states: bool = False
) -> dict[Subnet, SubnetOutput]:
    """Outputs of one group of sub-networks. Call it inside ``model.at(shared.merged_subnet)``.

    Args:
        model: inside that block.
        shared: from `plan_shared_forwards`.
        inputs: ``input_ids``, ``attention_mask`` and other inputs of the network, without labels.
        output_hidden_states: return the hidden states too.
    """
    if len(shared.subnets) == 1:  # nothing to share: the stock forward pass
        with model.recorded_states() as recorded:
            logits = logits_of(model.network(**inputs))
        return {shared.subnets[0]: SubnetOutput(logits, tuple(recorded) if output_hidden_states else ())}
    layers = model.layers()
    embedding, calls = model.layer_calls(**inputs)
    states: dict[LayerPath, Tensor] = {(): embedding}
    outputs = {}
    for subnet in shared.subnets:
        paths = _layer_prefixes(subnet)
        for path in paths[1:]:
            if path not in states:
                states[path] = calls.run(layers[path[-1]], states[path[:-1]])
        logits = logits_of(model.apply_head(states[subnet.layers], **inputs))
        outputs[subnet] = SubnetOutput(logits, tuple(states[path] for path in paths) if output_hidden_states else ())
    return outputs


@dataclass(frozen=True)
class SharedEmbedding:
    """The embedding output of a training batch, computed once for all passes of a step.

    Gradients accumulate in a detached copy, so that each pass can run backward on its own, and the backward pass of
    the embeddings, the largest weights of a small encoder, runs once.

    Attributes:
        embedding: ``(batch, tokens, hidden)``, detached.
        calls: the arguments of the layers.
        detached_pairs: tensors with their autograd history, and the detached copies that accumulate their gradients.
    """

    embedding: Tensor
    calls: LayerCalls
    detached_pairs: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def from_inputs(cls, model: ElasticModel, inputs: dict[str, Tensor]) -> Self:
        """Compute the embedding output of a batch.

        Args:
            model: at any sub-network: the embeddings do not depend on it.
            inputs: ``input_ids``, ``attention_mask`` and other inputs of the network, without labels.
        """
        embedding, calls = model.layer_calls(**inputs)
        pairs = [(embedding, _detach_leaf(embedding))]

        def detach_argument(_: ArgumentPath, tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            pairs.append((tensor, _detach_leaf(tensor)))  # DeBERTa: the trained embeddings of relative positions
            return pairs[-1][1]

        return cls(pairs[0][1], calls.map_tensors(detach_argument), tuple(pairs))

    def backward(self) -> None:
        """Backward pass of the embeddings from the accumulated gradients. Call it once, after all passes."""
        trained = [(tensor, detached.grad) for tensor, detached in self.detached_pairs if tensor.requires_grad]
        if trained:
            torch.autograd.backward([tensor for tensor, _ in trained], [gradient for _, gradient in trained])


def train_shared_forward(
    model: ElasticModel,
    shared: SharedForward,
    inputs: dict[str, Tensor],
    *,
    shared_embedding: SharedEmbedding,
    loss_fn: Callable[[Subnet, SubnetOutput], Tensor],
    backward: Callable[[Tensor], None],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Accumulate the gradients of one group's losses. Call it inside ``model.at(shared.merged_subnet)``.

    The tree of layers is traversed depth first, and the activations of a branch are freed before the next branch: at
    any time no more than one sub-network's activations are held, as in plain fine-tuning.

    Args:
        model: inside that block.
        shared: from `plan_shared_forwards`.
        inputs: the inputs that ``shared_embedding`` was made from.
        shared_embedding: accumulates the gradients of the embeddings; call its ``backward`` after all groups.
        loss_fn: loss of one sub-network's outputs, a scalar.
        backward: runs the backward pass of a loss.
        autocast: context manager for forward passes.

    Returns:
        The sum of the losses, a scalar without gradient.
    """
    layers, ends = model.layers(), {subnet.layers: subnet for subnet in shared.subnets}
    states: dict[LayerPath, Tensor] = {(): shared_embedding.embedding}
    total = torch.zeros((), device=shared_embedding.embedding.device)

    def visit(path: LayerPath) -> None:
        nonlocal total
        if path in ends:
            subnet = ends[path]
            with autocast():
                logits = logits_of(model.apply_head(states[path], **inputs))
            loss = loss_fn(subnet, SubnetOutput(logits, tuple(states[part] for part in _layer_prefixes(subnet))))
            backward(loss)
            total = total + loss.detach()
        for child in _child_paths(path, ends):
            with autocast():
                output = shared_embedding.calls.run(layers[child[-1]], states[path])
            states[child] = _detach_leaf(output)
            visit(child)
            output.backward(states.pop(child).grad)

    visit(())
    return total


def _layer_prefixes(subnet: Subnet) -> list[LayerPath]:
    """Prefixes of a sub-network's layers, from none to all."""
    return [subnet.layers[:depth] for depth in range(len(subnet.layers) + 1)]


def _child_paths(path: LayerPath, ends: Iterable[LayerPath]) -> list[LayerPath]:
    longer = (end[: len(path) + 1] for end in ends if len(end) > len(path) and end[: len(path)] == path)
    return list(dict.fromkeys(longer))


def _detach_leaf(state: Tensor) -> Tensor:
    return state.detach().requires_grad_()
