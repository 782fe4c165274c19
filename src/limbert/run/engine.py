"""The engine: runs a batch so that every example gets its own width and depth, and the answer that it would get alone.

At each layer the examples are grouped by width, and finished ones are gone. It knows neither texts nor tasks, and
makes no choices: those are in the plan, the gates and the exit rule.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from limbert.core.config import Precision, TaskKind
from limbert.model.cost import CostModel
from limbert.model.elastic import ElasticModel
from limbert.model.states import LayerCalls
from limbert.run.policy import Option, Plan, Policy, resolve


@dataclass(frozen=True)
class Trace:
    """What ran for each example of a batch; on the CPU.

    Attributes:
        options: the widths that could run.
        chosen: ``(batch, layers)``, the index of the option that a layer ran at, -1 where it did not run.
        tokens: ``(batch,)``, tokens that are no padding.
        plan: what was executed.
        cost: the model's cost model.
    """

    options: tuple[Option, ...]
    chosen: Tensor
    tokens: Tensor
    plan: Plan
    cost: CostModel
    gate_choices: int

    @cached_property
    def widths(self) -> Tensor:
        """``(batch, layers)``, the width that each layer ran at as a fraction, 0 where it did not run."""
        return torch.tensor([*(option.width for option in self.options), 0.0])[self.chosen]

    @cached_property
    def layers_run(self) -> Tensor:
        """``(batch,)``, layers that ran."""
        return (self.chosen >= 0).sum(dim=1)

    @cached_property
    def flops(self) -> Tensor:
        """``(batch,)``, floating-point operations of each example, those of gates and off-ramps included.

        2 a multiply-accumulate, at the example's own number of tokens (see ``model/cost.py``).
        """
        total = self.tokens * 0
        for index, option in enumerate(self.options):
            layers = (self.chosen == index).sum(dim=1)
            for tokens in self.tokens.unique().tolist():
                here = self.tokens == tokens
                layer = self.cost.layer_flops(heads=option.heads, neurons=option.neurons, tokens=tokens)
                total[here] += layers[here] * layer
        for tokens in self.tokens.unique().tolist():
            total[self.tokens == tokens] += self.cost.embedding_flops(tokens)
        full = self.chosen.shape[1]
        answers = sum((self.layers_run >= ramp).long() for ramp in self.plan.ramps) + torch.zeros_like(total)
        if self.plan.subnet is None:
            answers += (self.layers_run == full).long()
        else:
            answers += 1
        gates = sum((self.layers_run > layer).long() for layer in self.plan.gates) + torch.zeros_like(total)
        return total + answers * self.cost.head_flops + gates * self.cost.gate_flops(self.gate_choices)


@dataclass(frozen=True)
class DynamicAnswer:
    """What a policy says about a batch.

    Attributes:
        logits: ``(batch, outputs)``, in the order of the inputs, on the model's device.
        trace: what ran.
    """

    logits: Tensor
    trace: Trace


@dataclass
class _Group:
    """Examples that run at the same width: ``rows`` of the batch, with their states in this order."""

    rows: list[int]
    option: int
    state: Tensor  # (rows, tokens, hidden)
    calls: LayerCalls


class Engine:
    """Executes one policy on one model. Safe to call from many threads, as views are.

    Args:
        model: shares its weights; ask for a new engine after training it or moving it.
        policy: how sizes are chosen.
        kind: what the model's outputs mean.
        precision: ``"bf16"`` runs under autocast.

    Raises:
        ConfigError: if the policy does not fit the model or the task.
        UnsupportedModelError: for a dynamic policy on a head that is none for sequence classification.
    """

    def __init__(self, model: ElasticModel, policy: Policy, *, kind: TaskKind, precision: Precision = "fp32") -> None:
        self.policy = policy
        self.plan = plan = resolve(policy, model, kind=kind)
        self._kind: TaskKind = kind
        self._cost = CostModel(model)
        self._layers_of_model = model.shape.layers
        self._device = model.network.device
        self._autocast = precision == "bf16"
        self._gates = model.gates
        if plan.subnet is not None:
            self._static = model.view(plan.subnet)
            return
        self._frame = model.frame()
        self._layers = [
            [model.layer_view(index, heads=option.heads, neurons=option.neurons) for option in plan.options]
            for index in range(model.shape.layers)
        ]

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Tensor]) -> DynamicAnswer:
        """Answer a batch.

        Args:
            inputs: ``input_ids`` and ``attention_mask`` ``(batch, tokens)``, padded on the right, and what else the
                network takes; on the model's device, without labels.
        """
        autocast = torch.autocast(self._device.type, torch.bfloat16) if self._autocast else nullcontext()
        with autocast:
            if self.plan.subnet is not None:
                logits = self._static(**inputs).logits
                chosen = torch.full((len(logits), self._layers_of_model), -1)
                chosen[:, list(self.plan.subnet.layers)] = 0
            else:
                logits, chosen = self._run_dynamic(dict(inputs))
        choices = len(self._gates.widths) if self._gates is not None else 0
        tokens = inputs["attention_mask"].sum(dim=1).cpu()
        return DynamicAnswer(
            logits.float(), Trace(self.plan.options, chosen, tokens, self.plan, self._cost, gate_choices=choices)
        )

    def _run_dynamic(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits ``(batch, outputs)`` and the options chosen ``(batch, layers)``."""
        plan, mask = self.plan, inputs["attention_mask"]
        state, calls = self._frame.prepare(inputs)
        batch = len(state)
        groups = [_Group(list(range(batch)), 0, state, calls)]
        chosen = torch.zeros(batch, self._layers_of_model, dtype=torch.long)
        results: list[tuple[list[int], Tensor]] = []
        history: list[Tensor] = []  # answers at the off-ramps so far, of the examples still running
        for index in range(self._layers_of_model):
            if index in plan.ramps:
                groups = self._exit(groups, history, results, chosen, mask, layer=index)
                if not groups:
                    break
            if index in plan.gates:
                groups = self._regroup(groups, calls, chosen, layer=index, batch=batch)
            for group in groups:
                group.state = group.calls.run(self._layers[index][group.option], group.state)
        if groups:
            rows = _rows(groups)
            results.append((rows, self._frame.read_out([group.state for group in groups], _taken(mask, rows))))
        if len(results) == 1 and results[0][0] == list(range(batch)):
            return results[0][1], chosen
        order = torch.tensor([row for rows, _ in results for row in rows], device=state.device)
        return torch.cat([logits for _, logits in results])[order.argsort()], chosen

    def _exit(
        self,
        groups: list[_Group],
        history: list[Tensor],
        results: list[tuple[list[int], Tensor]],
        chosen: Tensor,
        mask: Tensor,
        *,
        layer: int,
    ) -> list[_Group]:
        """Let those leave whose answer here is good enough, before layer ``layer`` runs; the groups that stay."""
        assert self.plan.exits is not None
        rows = _rows(groups)
        logits = self._frame.read_out([group.state for group in groups], _taken(mask, rows))
        history.append(logits)
        leaving = self.plan.exits.leaving(history, kind=self._kind).tolist()  # waits for the device
        if not any(leaving):
            return groups
        left = [place for place, leaves in enumerate(leaving) if leaves]
        kept = [place for place, leaves in enumerate(leaving) if not leaves]
        results.append(([rows[place] for place in left], logits[left]))
        chosen[[rows[place] for place in left], layer:] = -1
        history[:] = [answers[kept] for answers in history]
        staying, start = [], 0
        for group in groups:
            inside = [place - start for place in kept if start <= place < start + len(group.rows)]
            start += len(group.rows)
            if len(inside) == len(group.rows):
                staying.append(group)
            elif inside:
                places = torch.tensor(inside, device=group.state.device)
                calls = self._frame.select(group.calls, places, batch=len(group.rows))
                rows_inside = [group.rows[place] for place in inside]
                staying.append(_Group(rows_inside, group.option, group.state.index_select(0, places), calls))
        return staying

    def _regroup(
        self, groups: list[_Group], calls: LayerCalls, chosen: Tensor, *, layer: int, batch: int
    ) -> list[_Group]:
        """Ask the gate before layer ``layer`` and put together the examples that it sends to the same width."""
        assert self._gates is not None
        gate = self._gates.gate[self.plan.gates[layer]]
        first_tokens = [group.state[:, 0] for group in groups]
        logits = gate(first_tokens[0] if len(groups) == 1 else torch.cat(first_tokens))
        options = [self.plan.choices[choice] for choice in logits.argmax(dim=-1).tolist()]  # waits for the device
        rows = _rows(groups)
        if len(groups) == 1 and len({*options}) == 1:  # nobody parts: nothing to copy
            groups[0].option = options[0]
            chosen[groups[0].rows, layer:] = options[0]
            return groups
        state = groups[0].state if len(groups) == 1 else torch.cat([group.state for group in groups])
        parted = []
        for option in sorted({*options}):
            places = [place for place, its in enumerate(options) if its == option]
            members = [rows[place] for place in places]
            chosen[members, layer:] = option
            mine = state if len(places) == len(rows) else state[places]
            selected = self._frame.select(calls, torch.tensor(members, device=state.device), batch=batch)
            parted.append(_Group(members, option, mine, selected))
        return parted


def _rows(groups: list[_Group]) -> list[int]:
    return [row for group in groups for row in group.rows]


def _taken(mask: Tensor, rows: list[int]) -> Tensor:
    return mask if rows == list(range(len(mask))) else mask[rows]
