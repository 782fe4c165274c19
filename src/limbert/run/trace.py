"""What ran for each example of a batch, and what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from limbert.model.flops import CostModel
from limbert.inference.policy import Plan


@dataclass(frozen=True)
class Decision:
    """From layer ``layer`` on, these rows of the batch run at an option of the plan; None: they do not run any more."""

    layer: int
    option: int | None
    rows: Sequence[int]


@dataclass(frozen=True)
class Trace:
    """What ran for each example of a batch; its tensors are on the CPU, and computed when first asked for.

    Attributes:
        plan: what was executed.
        decisions: of gates and exits, in the order of the layers.
        depth: layers of the full model.
        mask: the batch's attention mask ``(batch, tokens)``.
        cost: the model's cost model.
    """

    plan: Plan
    decisions: Sequence[Decision]
    depth: int
    mask: Tensor
    cost: CostModel

    @cached_property
    def chosen(self) -> Tensor:
        """``(batch, layers)``, the index of the plan's option that each layer ran at, -1 where it did not run."""
        chosen = torch.full((len(self.mask), self.depth), -1)
        chosen[:, list(self.plan.layers)] = torch.tensor([self.plan.fixed.get(layer, 0) for layer in self.plan.layers])
        for decision in self.decisions:
            chosen[list(decision.rows), decision.layer :] = -1 if decision.option is None else decision.option
        return chosen

    @cached_property
    def widths(self) -> Tensor:
        """``(batch, layers)``, the width that each layer ran at as a fraction, 0 where it did not run."""
        widths = [option.width for option in self.plan.options]
        return torch.tensor([*widths, 0.0], dtype=torch.float64)[self.chosen]

    @cached_property
    def layers_run(self) -> Tensor:
        """``(batch,)``, layers that ran."""
        return (self.chosen >= 0).sum(dim=1)

    @cached_property
    def flops(self) -> Tensor:
        """``(batch,)``, floating-point operations of each example, those of gates and off-ramps included.

        2 a multiply-accumulate, at the example's own number of tokens (see ``model/cost.py``).
        """
        tokens = self.mask.sum(dim=1).cpu()
        lengths, place = tokens.unique(return_inverse=True)
        total = torch.tensor([self.cost.embedding_flops(length) for length in lengths.tolist()])[place]
        for index, option in enumerate(self.plan.options):
            by_length = [
                self.cost.layer_flops(heads=option.heads, neurons=option.neurons, tokens=length)
                for length in lengths.tolist()
            ]
            total = total + (self.chosen == index).sum(dim=1) * torch.tensor(by_length)[place]
        answers = sum((self.layers_run >= ramp).long() for ramp in {*self.plan.ramps, len(self.plan.layers)})
        gates = sum(((self.layers_run > layer).long() for layer in self.plan.gates), torch.zeros_like(total))
        return total + answers * self.cost.head_flops + gates * self.cost.gate_flops(self.plan.gate_choices)
