"""Answers of several sub-networks for one batch, with as few layer runs as they need.

Sub-networks of the same width that begin with the same layers share those: with the depth rule ``first`` one pass a
width serves all depths, with ``spread`` the paths branch where they part.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from limbert.core.subnet import Subnet
from limbert.model.elastic import ElasticModel


@dataclass(frozen=True)
class SharedPass:
    """Sub-networks that run together, none contradicting another about the width of a layer."""

    subnets: tuple[Subnet, ...]

    @property
    def scope(self) -> Subnet:
        """All their layers at their widths: what the model must be set to while they run."""
        widths: dict[int, tuple[int, int]] = {}
        for subnet in self.subnets:
            widths |= subnet.widths()
        layers = sorted(widths)
        return Subnet(
            tuple(layers), tuple(widths[layer][0] for layer in layers), tuple(widths[layer][1] for layer in layers)
        )


@dataclass(frozen=True)
class Answer:
    """What one sub-network says about a batch.

    Attributes:
        logits: ``(batch, outputs)``.
        states: the embedding output and the state after each of its layers, ``(batch, tokens, hidden)``; empty where
            nobody asked.
    """

    logits: Tensor
    states: tuple[Tensor, ...]


def plan_passes(subnets: Iterable[Subnet], *, share: bool = True) -> list[SharedPass]:
    """Group sub-networks that can share layer runs, in the order of the first of each group.

    Args:
        subnets: in any order.
        share: with False, one pass each.
    """
    groups: list[list[Subnet]] = []
    for subnet in subnets:
        for group in groups if share else []:
            if subnet.layers[0] == group[0].layers[0] and all(_agree(subnet, other) for other in group):
                group.append(subnet)
                break
        else:
            groups.append([subnet])
    return [SharedPass(tuple(group)) for group in groups]


def _agree(one: Subnet, other: Subnet) -> bool:
    others = other.widths()
    return all(others.get(layer, widths) == widths for layer, widths in one.widths().items())


def run_pass(
    model: ElasticModel, shared: SharedPass, inputs: dict[str, Tensor], *, keep_states: bool = False
) -> dict[Subnet, Answer]:
    """The answers of one group. Call it, and ``backward()`` on what it returns, inside ``model.at(shared.scope)``.

    Args:
        model: already at the group's scope.
        shared: from `plan_passes`.
        inputs: ``input_ids``, ``attention_mask`` and what else the network takes, without labels.
        keep_states: return the states too.
    """
    if len(shared.subnets) == 1:  # nothing to share: the stock forward as it is
        with model.recorded_states() as recorded:
            logits = model.network(**inputs).logits
        return {shared.subnets[0]: Answer(logits, tuple(recorded) if keep_states else ())}
    layers = model.layers()
    embedding, calls = model.layer_calls(**inputs)
    states: dict[tuple[int, ...], Tensor] = {(): embedding}  # by the layers run so far
    answers = {}
    for subnet in shared.subnets:
        paths = [subnet.layers[:depth] for depth in range(len(subnet.layers) + 1)]
        for path in paths[1:]:
            if path not in states:
                states[path] = calls.run(layers[path[-1]], states[path[:-1]])
        logits = model.read_out(states[subnet.layers], **inputs).logits
        answers[subnet] = Answer(logits, tuple(states[path] for path in paths) if keep_states else ())
    return answers
