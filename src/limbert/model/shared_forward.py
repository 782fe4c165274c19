"""Answers of several sub-networks for one batch, with as few layer runs as they need.

Sub-networks of the same width that begin with the same layers share those: with the depth rule ``first`` one pass a
width serves all depths, with ``spread`` the paths branch where they part.
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
    """Sub-networks that run together, none contradicting another about the width of a layer."""

    subnets: tuple[Subnet, ...]

    @property
    def merged_subnet(self) -> Subnet:
        """All their layers at their widths: what the model must be set to while they run."""
        widths: dict[int, tuple[int, int]] = {}
        for subnet in self.subnets:
            widths |= subnet.layer_widths()
        layers = sorted(widths)
        return Subnet(
            tuple(layers), tuple(widths[layer][0] for layer in layers), tuple(widths[layer][1] for layer in layers)
        )


@dataclass(frozen=True)
class SubnetOutput:
    """What one sub-network says about a batch.

    Attributes:
        logits: ``(batch, outputs)``; of heads that answer at tokens ``(batch, tokens, outputs)``.
        states: the embedding output and the state after each of its layers, ``(batch, tokens, hidden)``; empty where
            nobody asked.
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


def _compatible(one: Subnet, other: Subnet) -> bool:
    others = other.layer_widths()
    return all(others.get(layer, widths) == widths for layer, widths in one.layer_widths().items())


def run_shared_forward(
    model: ElasticModel, shared: SharedForward, inputs: dict[str, Tensor], *, output_hidden_states: bool = False
) -> dict[Subnet, SubnetOutput]:
    """The answers of one group, to be called inside ``model.at(shared.scope)``.

    Args:
        model: already at the group's scope.
        shared: from `plan_passes`.
        inputs: ``input_ids``, ``attention_mask`` and what else the network takes, without labels.
        keep_states: return the states too.
    """
    if len(shared.subnets) == 1:  # nothing to share: the stock forward as it is
        with model.recorded_states() as recorded:
            logits = logits_of(model.network(**inputs))
        return {shared.subnets[0]: SubnetOutput(logits, tuple(recorded) if output_hidden_states else ())}
    layers = model.layers()
    embedding, calls = model.layer_calls(**inputs)
    states: dict[LayerPath, Tensor] = {(): embedding}
    answers = {}
    for subnet in shared.subnets:
        paths = _layer_prefixes(subnet)
        for path in paths[1:]:
            if path not in states:
                states[path] = calls.run(layers[path[-1]], states[path[:-1]])
        logits = logits_of(model.apply_head(states[subnet.layers], **inputs))
        answers[subnet] = SubnetOutput(logits, tuple(states[path] for path in paths) if output_hidden_states else ())
    return answers


@dataclass(frozen=True)
class SharedEmbedding:
    """A training batch made ready for the layers once, for all the passes of a step.

    Gradients of the embeddings gather in states without history, so that the passes can go backward one by one and the
    embeddings, the largest weights of a small encoder, once.

    Attributes:
        embedding: ``(batch, tokens, hidden)``, cut off from what made it.
        calls: how the layers are called with it.
        gathered: tensors with their history, and those in which their gradients gather.
    """

    embedding: Tensor
    calls: LayerCalls
    detached_pairs: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def from_inputs(cls, model: ElasticModel, inputs: dict[str, Tensor]) -> Self:
        """Prepare a batch.

        Args:
            model: at any width: what comes before the layers does not depend on it.
            inputs: ``input_ids``, ``attention_mask`` and what else the network takes, without labels.
        """
        embedding, calls = model.layer_calls(**inputs)
        gathered = [(embedding, _detach_leaf(embedding))]

        def cut_argument(_: ArgumentPath, tensor: Tensor) -> Tensor:
            """DeBERTa hands all layers one tensor of relative positions that has weights behind it."""
            if not tensor.requires_grad:
                return tensor
            gathered.append((tensor, _detach_leaf(tensor)))
            return gathered[-1][1]

        return cls(gathered[0][1], calls.map_tensors(cut_argument), tuple(gathered))

    def backward(self) -> None:
        """Hand the gathered gradients on to the embeddings. Called once, after all passes."""
        trained = [(tensor, cut.grad) for tensor, cut in self.detached_pairs if tensor.requires_grad]
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
    """Add the gradients of one group's losses, to be called inside ``model.at(shared.scope)``.

    The tree of layer runs is walked branch by branch, and what a branch keeps for its backward pass is freed before
    the next one begins: no more than one sub-network's activations are held, as in plain fine-tuning.

    Args:
        model: already at the group's scope.
        shared: from `plan_passes`.
        inputs: what ``start`` was made of.
        start: gathers the gradients of the embeddings; its own ``backward`` hands them on.
        loss: of one sub-network's answer, a scalar.
        backward: runs the backward pass of a loss.
        precision: a scope for forward passes, such as autocast.

    Returns:
        The sum of the losses, a scalar without gradient.
    """
    layers, ends = model.layers(), {subnet.layers: subnet for subnet in shared.subnets}
    cut: dict[LayerPath, Tensor] = {(): shared_embedding.embedding}
    total = torch.zeros((), device=shared_embedding.embedding.device)

    def visit(path: LayerPath) -> None:
        nonlocal total
        if path in ends:
            subnet = ends[path]
            with autocast():
                logits = logits_of(model.apply_head(cut[path], **inputs))
            value = loss_fn(subnet, SubnetOutput(logits, tuple(cut[part] for part in _layer_prefixes(subnet))))
            backward(value)
            total = total + value.detach()
        for child in _child_paths(path, ends):
            with autocast():
                output = shared_embedding.calls.run(layers[child[-1]], cut[path])
            cut[child] = _detach_leaf(output)
            visit(child)
            output.backward(cut.pop(child).grad)

    visit(())
    return total


def _layer_prefixes(subnet: Subnet) -> list[LayerPath]:
    """From no layer to all of a sub-network's layers."""
    return [subnet.layers[:depth] for depth in range(len(subnet.layers) + 1)]


def _child_paths(path: LayerPath, ends: Iterable[LayerPath]) -> list[LayerPath]:
    """The paths one layer longer."""
    longer = (end[: len(path) + 1] for end in ends if len(end) > len(path) and end[: len(path)] == path)
    return list(dict.fromkeys(longer))


def _detach_leaf(state: Tensor) -> Tensor:
    return state.detach().requires_grad_()
