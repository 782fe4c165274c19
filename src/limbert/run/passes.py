"""Answers of several sub-networks for one batch, with as few forward passes as their layers allow.

A sub-network whose layers are the first ones of a deeper one of the same widths needs no pass of its own: its last
state is one of the deeper one's. With the depth rule ``first`` one pass a width serves all depths.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from limbert.core.subnet import Subnet
from limbert.model.elastic import ElasticModel


@dataclass(frozen=True)
class SharedPass:
    """One forward pass, and the sub-networks that it serves: the deepest first."""

    subnets: tuple[Subnet, ...]

    @property
    def deepest(self) -> Subnet:
        """The sub-network that is run."""
        return self.subnets[0]


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
    """Group sub-networks by the pass that serves them, in the order of the first of each group.

    Args:
        subnets: in any order.
        share: with False, one pass each.
    """
    groups: list[list[Subnet]] = []
    for subnet in subnets:
        for group in groups if share else []:
            longest, shortest = sorted((group[0], subnet), key=lambda candidate: -len(candidate.layers))
            if _is_start_of(shortest, longest):
                group.insert(0 if subnet is longest else len(group), subnet)
                break
        else:
            groups.append([subnet])
    return [SharedPass(tuple(sorted(group, key=lambda subnet: -len(subnet.layers)))) for group in groups]


def _is_start_of(short: Subnet, long: Subnet) -> bool:
    kept = len(short.layers)
    return (short.layers, short.heads, short.neurons) == (long.layers[:kept], long.heads[:kept], long.neurons[:kept])


def run_pass(
    model: ElasticModel, shared: SharedPass, inputs: dict[str, Tensor], *, keep_states: bool = False
) -> dict[Subnet, Answer]:
    """Run one pass and read every sub-network's answer off it.

    Call it, and ``backward()`` on what it returns, inside ``model.at(shared.deepest)``.

    Args:
        model: already at the pass's deepest sub-network.
        shared: from `plan_passes`.
        inputs: ``input_ids``, ``attention_mask`` and what else the network takes, without labels.
        keep_states: return the states too.
    """
    with model.recorded_states() as states:
        logits = model.network(**inputs).logits
    answers = {}
    for subnet in shared.subnets:
        depth = len(subnet.layers)
        if subnet is not shared.deepest:
            logits = model.read_out(states[depth], **inputs).logits
        answers[subnet] = Answer(logits, tuple(states[: depth + 1]) if keep_states else ())
    return answers
