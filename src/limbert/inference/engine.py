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

from limbert.core.config import Precision, TaskType
from limbert.deprecation import RenamedAttribute, renamed_arguments
from limbert.inference.encoder_shell import EncoderShell
from limbert.inference.policy import ExecutionPlan, Policy, resolve_policy
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel
from limbert.model.layerwise import LayerCalls


@dataclass(frozen=True)
class Decision:
    """From layer ``layer`` on, these rows of the batch run at an option of the plan; None: they do not run any more."""

    layer: int
    option_index: int | None
    indices: Sequence[int]


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

    plan: ExecutionPlan
    decisions: Sequence[Decision]
    num_layers: int
    attention_mask: Tensor
    cost_model: CostModel

    @cached_property
    def option_indices(self) -> Tensor:
        """``(batch, layers)``, the index of the plan's option that each layer ran at, -1 where it did not run."""
        chosen = torch.full((len(self.attention_mask), self.num_layers), -1)
        chosen[:, list(self.plan.layers)] = torch.tensor(
            [self.plan.static_options.get(layer, 0) for layer in self.plan.layers]
        )
        for decision in self.decisions:
            chosen[list(decision.indices), decision.layer :] = (
                -1 if decision.option_index is None else decision.option_index
            )
        return chosen

    @cached_property
    def widths(self) -> Tensor:
        """``(batch, layers)``, the width that each layer ran at as a fraction, 0 where it did not run."""
        widths = [option.width for option in self.plan.options]
        return torch.tensor([*widths, 0.0], dtype=torch.float64)[self.option_indices]

    @cached_property
    def layers_run(self) -> Tensor:
        """``(batch,)``, layers that ran."""
        return (self.option_indices >= 0).sum(dim=1)

    @cached_property
    def flops(self) -> Tensor:
        """``(batch,)``, floating-point operations of each example, those of gates and off-ramps included.

        2 a multiply-accumulate, at the example's own number of tokens (see ``model/cost.py``).
        """
        tokens = self.attention_mask.sum(dim=1).cpu()
        lengths, place = tokens.unique(return_inverse=True)
        total = torch.tensor([self.cost_model.embedding_flops(length) for length in lengths.tolist()])[place]
        for index, option in enumerate(self.plan.options):
            by_length = [
                self.cost_model.layer_flops(heads=option.heads, neurons=option.neurons, tokens=length)
                for length in lengths.tolist()
            ]
            total = total + (self.option_indices == index).sum(dim=1) * torch.tensor(by_length)[place]
        answers = sum((self.layers_run >= ramp).long() for ramp in {*self.plan.exit_layers, len(self.plan.layers)})
        gates = sum(
            ((self.layers_run > layer).long() for layer in self.plan.gate_before_layer), torch.zeros_like(total)
        )
        return (
            total
            + answers * self.cost_model.head_flops
            + gates * self.cost_model.gate_flops(self.plan.num_gate_choices)
        )


@dataclass(frozen=True)
class EngineOutput:
    """What a policy says about a batch.

    Attributes:
        logits: ``(batch, outputs)``, in the order of the inputs, on the model's device.
        trace: what ran.
    """

    logits: Tensor
    trace: Trace


@dataclass
class _WidthGroup:
    """Examples that run at the same width: ``rows`` of the batch, with their states in this order."""

    indices: list[int]
    option_index: int
    state: Tensor  # (rows, tokens, hidden)
    calls: LayerCalls


@dataclass
class _BatchState:
    """Where one batch stands."""

    attention_mask: Tensor  # (batch, tokens)
    calls: LayerCalls  # of the whole batch
    groups: list[_WidthGroup]
    decisions: list[Decision] = field(default_factory=list)
    finished: list[tuple[list[int], Tensor]] = field(default_factory=list)  # rows, and their logits
    exit_logits: list[Tensor] = field(default_factory=list)  # at the off-ramps so far, of those still running

    @property
    def running_indices(self) -> list[int]:
        return [row for group in self.groups for row in group.indices]

    def ordered_logits(self) -> Tensor:
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

    @renamed_arguments(kind="task_type")
    def __init__(
        self, model: ElasticModel, policy: Policy, *, task_type: TaskType, precision: Precision = "fp32"
    ) -> None:
        self.policy = policy
        self.plan = resolve_policy(policy, model, task_type=task_type)
        self._task_type: TaskType = task_type
        self._cost_model = CostModel(model)
        self._num_layers = model.shape.layers
        self._device = model.network.device
        self._autocast = precision == "bf16"
        self._gates = None if model.gates is None else model.gates.to(self._device)
        self._encoder_shell = EncoderShell(model.new_view(model.full), model.family)
        self._layers = {
            index: [
                self._encoder_shell.layer_runner(model.layer_view(index, heads=option.heads, neurons=option.neurons))
                for option in self.plan.options
            ]
            for index in self.plan.layers
        }

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Tensor]) -> EngineOutput:
        """Answer a batch.

        Args:
            inputs: ``input_ids`` and ``attention_mask`` ``(batch, tokens)``, padded on the right, and what else the
                network takes; on the model's device, without labels.
        """
        batch = self._run(inputs, allow_exit=True)
        return EngineOutput(batch.ordered_logits().float(), self._trace(batch))

    @torch.inference_mode()
    def run_all_exits(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Trace]:
        """Let nobody leave, and say what each off-ramp answers: what a search for thresholds needs.

        Args:
            inputs: as `run`.

        Returns:
            Logits ``(off-ramps + 1, batch, outputs)``, the end's last, and what ran.
        """
        batch = self._run(inputs, allow_exit=False)
        answers = torch.stack([*batch.exit_logits, batch.finished[0][1]]).float()
        return answers[:, torch.tensor(batch.finished[0][0], device=answers.device).argsort()], self._trace(batch)

    run_to_the_end = RenamedAttribute("run_all_exits")

    def _run(self, inputs: Mapping[str, Tensor], *, allow_exit: bool) -> _BatchState:
        plan, mask = self.plan, inputs["attention_mask"]
        with torch.autocast(self._device.type, torch.bfloat16) if self._autocast else nullcontext():
            embedding, calls = self._encoder_shell.prepare(dict(inputs))
            batch = _BatchState(mask, calls, [_WidthGroup(list(range(len(mask))), 0, embedding, calls)])
            for done, index in enumerate(plan.layers):
                if done in plan.exit_layers and batch.groups:
                    batch.exit_logits.append(self._apply_head(batch))
                    if allow_exit:
                        self._apply_exits(batch, layer=index)
                if index in plan.gate_before_layer and batch.groups:
                    self._apply_gate(batch, layer=index)
                for group in batch.groups:
                    group.option_index = plan.static_options.get(index, group.option_index)
                    group.state = self._layers[index][group.option_index](group.state, group.calls)
            if batch.groups:
                batch.finished.append((batch.running_indices, self._apply_head(batch)))
        return batch

    def _trace(self, batch: _BatchState) -> Trace:
        return Trace(self.plan, batch.decisions, self._num_layers, batch.attention_mask, self._cost_model)

    def _apply_head(self, batch: _BatchState) -> Tensor:
        return self._encoder_shell.apply_head(
            [group.state for group in batch.groups], batch.attention_mask, batch.running_indices
        )

    def _apply_exits(self, batch: _BatchState, *, layer: int) -> None:
        """Let those leave whose answer is good enough before layer ``layer``."""
        assert self.plan.exit_rule is not None
        rows, logits = batch.running_indices, batch.exit_logits[-1]
        leaving = self.plan.exit_rule.should_exit(
            batch.exit_logits, task_type=self._task_type
        ).tolist()  # waits for the device
        if not any(leaving):
            return
        left = [place for place, leaves in enumerate(leaving) if leaves]
        kept = [place for place, leaves in enumerate(leaving) if not leaves]
        gone = [rows[place] for place in left]
        batch.decisions.append(Decision(layer, None, gone))
        batch.finished.append((gone, logits[left]))
        batch.exit_logits = [answers[kept] for answers in batch.exit_logits]
        groups, gone_rows = batch.groups, {*gone}
        batch.groups = [part for group in groups if (part := self._remove_examples(group, gone_rows)) is not None]

    def _remove_examples(self, group: _WidthGroup, exited: set[int]) -> _WidthGroup | None:
        """What is left of a group; None where that is nobody."""
        places = [place for place, row in enumerate(group.indices) if row not in exited]
        if not places or len(places) == len(group.indices):
            return group if places else None
        rows = [group.indices[place] for place in places]
        chosen = torch.tensor(places, device=group.state.device)
        calls = self._encoder_shell.select_examples(group.calls, chosen, batch_size=len(group.indices))
        return _WidthGroup(rows, group.option_index, group.state.index_select(0, chosen), calls)

    def _apply_gate(self, batch: _BatchState, *, layer: int) -> None:
        """Ask the gate before layer ``layer`` and put together the examples that it sends to the same width."""
        assert self._gates is not None
        groups, rows = batch.groups, batch.running_indices
        gate = self._gates.gate[self.plan.gate_before_layer[layer]]
        first_tokens = [group.state[:, 0] for group in groups]
        logits = gate(first_tokens[0] if len(groups) == 1 else torch.cat(first_tokens))
        options = [self.plan.gate_options[choice] for choice in logits.argmax(dim=-1).tolist()]  # waits for the device
        if len(groups) == 1 and len({*options}) == 1:  # nobody parts: nothing to copy
            groups[0].option_index = options[0]
            batch.decisions.append(Decision(layer, options[0], rows))
            return
        state = groups[0].state if len(groups) == 1 else torch.cat([group.state for group in groups])
        batch.groups = []
        order = sorted(range(len(rows)), key=lambda place: options[place])
        batch.exit_logits = [answers[order] for answers in batch.exit_logits]
        for option in sorted({*options}):
            places = [place for place in order if options[place] == option]
            members = [rows[place] for place in places]
            batch.decisions.append(Decision(layer, option, members))
            calls = self._encoder_shell.select_examples(
                batch.calls, torch.tensor(members, device=state.device), batch_size=len(batch.attention_mask)
            )
            mine = state if len(places) == len(rows) else state[places]
            batch.groups.append(_WidthGroup(members, option, mine, calls))
