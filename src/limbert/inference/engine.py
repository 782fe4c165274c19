"""The engine: runs a batch so that every example gets its own width and depth, and the answer that it would get alone.

At each layer the examples are grouped by width, and finished ones are gone. It knows neither texts nor tasks, and
makes no choices: those are in the plan, the gates and the exit rule.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from limbert.core.config import Precision, TaskKind
from limbert.inference.encoder_shell import Frame
from limbert.inference.policy import Plan, Policy, resolve
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel
from limbert.model.layerwise import LayerCalls


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


@dataclass
class _Batch:
    """Where one batch stands."""

    mask: Tensor  # (batch, tokens)
    calls: LayerCalls  # of the whole batch
    groups: list[_Group]
    decisions: list[Decision] = field(default_factory=list)
    finished: list[tuple[list[int], Tensor]] = field(default_factory=list)  # rows, and their logits
    answers: list[Tensor] = field(default_factory=list)  # at the off-ramps so far, of those still running

    @property
    def running(self) -> list[int]:
        return [row for group in self.groups for row in group.rows]

    def logits(self) -> Tensor:
        """All answers in the order of the batch."""
        rows = [row for part, _ in self.finished for row in part]
        logits = torch.cat([logits for _, logits in self.finished]) if len(self.finished) > 1 else self.finished[0][1]
        if rows == list(range(len(rows))):
            return logits
        return logits[torch.tensor(rows, device=logits.device).argsort()]


class Engine:
    """Executes one policy on one model. Safe to call from many threads, as views are.

    Args:
        model: shares its weights; ask for a new engine after training it or moving it.
        policy: how sizes are chosen.
        kind: what the model's outputs mean.
        precision: ``"bf16"`` runs under autocast.

    Raises:
        ConfigError: if the policy does not fit the model or the task.
        UnsupportedModelError: if the task head is none for sequence classification.
    """

    def __init__(self, model: ElasticModel, policy: Policy, *, kind: TaskKind, precision: Precision = "fp32") -> None:
        self.policy = policy
        self.plan = resolve(policy, model, kind=kind)
        self._kind: TaskKind = kind
        self._cost = CostModel(model)
        self._depth = model.shape.layers
        self._device = model.network.device
        self._autocast = precision == "bf16"
        self._gates = None if model.gates is None else model.gates.to(self._device)
        self._frame = Frame(model.new_view(model.full), model.family)
        self._layers = {
            index: [
                self._frame.runner(model.layer_view(index, heads=option.heads, neurons=option.neurons))
                for option in self.plan.options
            ]
            for index in self.plan.layers
        }

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Tensor]) -> DynamicAnswer:
        """Answer a batch.

        Args:
            inputs: ``input_ids`` and ``attention_mask`` ``(batch, tokens)``, padded on the right, and what else the
                network takes; on the model's device, without labels.
        """
        batch = self._run(inputs, leave=True)
        return DynamicAnswer(batch.logits().float(), self._trace(batch))

    @torch.inference_mode()
    def run_to_the_end(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Trace]:
        """Let nobody leave, and say what each off-ramp answers: what a search for thresholds needs.

        Args:
            inputs: as `run`.

        Returns:
            Logits ``(off-ramps + 1, batch, outputs)``, the end's last, and what ran.
        """
        batch = self._run(inputs, leave=False)
        answers = torch.stack([*batch.answers, batch.finished[0][1]]).float()
        return answers[:, torch.tensor(batch.finished[0][0], device=answers.device).argsort()], self._trace(batch)

    def _run(self, inputs: Mapping[str, Tensor], *, leave: bool) -> _Batch:
        plan, mask = self.plan, inputs["attention_mask"]
        with torch.autocast(self._device.type, torch.bfloat16) if self._autocast else nullcontext():
            embedding, calls = self._frame.prepare(dict(inputs))
            batch = _Batch(mask, calls, [_Group(list(range(len(mask))), 0, embedding, calls)])
            for done, index in enumerate(plan.layers):
                if done in plan.ramps and batch.groups:
                    batch.answers.append(self._read_out(batch))
                    if leave:
                        self._exit(batch, layer=index)
                if index in plan.gates and batch.groups:
                    self._regroup(batch, layer=index)
                for group in batch.groups:
                    group.option = plan.fixed.get(index, group.option)
                    group.state = self._layers[index][group.option](group.state, group.calls)
            if batch.groups:
                batch.finished.append((batch.running, self._read_out(batch)))
        return batch

    def _trace(self, batch: _Batch) -> Trace:
        return Trace(self.plan, batch.decisions, self._depth, batch.mask, self._cost)

    def _read_out(self, batch: _Batch) -> Tensor:
        return self._frame.read_out([group.state for group in batch.groups], batch.mask, batch.running)

    def _exit(self, batch: _Batch, *, layer: int) -> None:
        """Let those leave whose answer is good enough before layer ``layer``."""
        assert self.plan.exits is not None
        rows, logits = batch.running, batch.answers[-1]
        leaving = self.plan.exits.leaving(batch.answers, kind=self._kind).tolist()  # waits for the device
        if not any(leaving):
            return
        left = [place for place, leaves in enumerate(leaving) if leaves]
        kept = [place for place, leaves in enumerate(leaving) if not leaves]
        gone = [rows[place] for place in left]
        batch.decisions.append(Decision(layer, None, gone))
        batch.finished.append((gone, logits[left]))
        batch.answers = [answers[kept] for answers in batch.answers]
        groups, gone_rows = batch.groups, {*gone}
        batch.groups = [part for group in groups if (part := self._without(group, gone_rows)) is not None]

    def _without(self, group: _Group, gone: set[int]) -> _Group | None:
        """What is left of a group; None where that is nobody."""
        places = [place for place, row in enumerate(group.rows) if row not in gone]
        if not places or len(places) == len(group.rows):
            return group if places else None
        rows = [group.rows[place] for place in places]
        chosen = torch.tensor(places, device=group.state.device)
        calls = self._frame.select(group.calls, chosen, batch=len(group.rows))
        return _Group(rows, group.option, group.state.index_select(0, chosen), calls)

    def _regroup(self, batch: _Batch, *, layer: int) -> None:
        """Ask the gate before layer ``layer`` and put together the examples that it sends to the same width."""
        assert self._gates is not None
        groups, rows = batch.groups, batch.running
        gate = self._gates.gate[self.plan.gates[layer]]
        first_tokens = [group.state[:, 0] for group in groups]
        logits = gate(first_tokens[0] if len(groups) == 1 else torch.cat(first_tokens))
        options = [self.plan.choices[choice] for choice in logits.argmax(dim=-1).tolist()]  # waits for the device
        if len(groups) == 1 and len({*options}) == 1:  # nobody parts: nothing to copy
            groups[0].option = options[0]
            batch.decisions.append(Decision(layer, options[0], rows))
            return
        state = groups[0].state if len(groups) == 1 else torch.cat([group.state for group in groups])
        batch.groups = []
        order = sorted(range(len(rows)), key=lambda place: options[place])
        batch.answers = [answers[order] for answers in batch.answers]
        for option in sorted({*options}):
            places = [place for place in order if options[place] == option]
            members = [rows[place] for place in places]
            batch.decisions.append(Decision(layer, option, members))
            calls = self._frame.select(batch.calls, torch.tensor(members, device=state.device), batch=len(batch.mask))
            mine = state if len(places) == len(rows) else state[places]
            batch.groups.append(_Group(members, option, mine, calls))
