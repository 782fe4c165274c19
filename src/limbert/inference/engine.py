"""The engine: runs a batch so that each example gets its own width and depth, and the logits it would get alone.

At each layer the examples are grouped by width, and finished ones are removed. It knows neither texts nor tasks, and
makes no choices: those are in the plan, the gates and the exit rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from limbert.core.config import RuntimePrecision, TaskType
from limbert.deprecation import RenamedAttribute, renamed_arguments
from limbert.errors import ConfigError
from limbert.inference.encoder_shell import EncoderShell
from limbert.inference.policy import ExecutionPlan, Policy, named_policy, resolve_policy
from limbert.inference.runtimes import check_runtime
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel
from limbert.model.inference_mode import autocast
from limbert.model.layerwise import LayerCalls


@dataclass(frozen=True)
class Decision:
    """From layer ``layer`` on, these examples of the batch run at an option of the plan; None: they have exited."""

    layer: int
    option_index: int | None
    indices: Sequence[int]


@dataclass(frozen=True)
class Trace:
    """What ran for each example of a batch. Its tensors are on the CPU and computed on first use."""

    plan: ExecutionPlan
    decisions: Sequence[Decision]  # of gates and exits, in the order of the layers
    num_layers: int  # layers of the full model
    attention_mask: Tensor  # of the batch, ``(batch, tokens)``
    cost_model: CostModel

    @cached_property
    def option_indices(self) -> Tensor:
        """The index of the plan's option that each layer ran at, ``(batch, layers)``; -1 where it did not run."""
        chosen = torch.full((len(self.attention_mask), self.num_layers), -1)
        first_options = [self.plan.static_options.get(layer, 0) for layer in self.plan.layers]
        chosen[:, list(self.plan.layers)] = torch.tensor(first_options)
        for decision in self.decisions:
            option_index = -1 if decision.option_index is None else decision.option_index
            chosen[list(decision.indices), decision.layer :] = option_index
        return chosen

    @cached_property
    def widths(self) -> Tensor:
        """The width that each layer ran at, as a fraction, ``(batch, layers)``; 0 where it did not run."""
        widths = [option.width for option in self.plan.options]
        return torch.tensor([*widths, 0.0], dtype=torch.float64)[self.option_indices]

    @cached_property
    def layers_run(self) -> Tensor:
        """Layers that ran, ``(batch,)``."""
        return (self.option_indices >= 0).sum(dim=1)

    @property
    def temperatures(self) -> Tensor:
        """What the logits were divided by, ``(batch,)``."""
        return torch.tensor([self.plan.temperatures.get(layers, 1.0) for layers in self.layers_run.tolist()])

    @cached_property
    def flops(self) -> Tensor:
        """Floating-point operations of each example, gates and exit classifiers included, ``(batch,)``.

        2 per multiply-accumulate, at the example's own number of tokens (see ``model/flops.py``).
        """
        tokens = self.attention_mask.sum(dim=1).cpu()
        lengths, length_index = tokens.unique(return_inverse=True)
        total = torch.tensor([self.cost_model.embedding_flops(length) for length in lengths.tolist()])[length_index]
        for index, option in enumerate(self.plan.options):
            by_length = [
                self.cost_model.layer_flops(heads=option.heads, neurons=option.neurons, tokens=length)
                for length in lengths.tolist()
            ]
            total = total + (self.option_indices == index).sum(dim=1) * torch.tensor(by_length)[length_index]
        head_calls = sum((self.layers_run >= layer).long() for layer in {*self.plan.exit_layers, len(self.plan.layers)})
        gate_calls = sum((self.layers_run > layer).long() for layer in self.plan.gate_before_layer)
        gate_flops = self.cost_model.gate_flops(len(self.plan.gate_options))
        return total + head_calls * self.cost_model.head_flops + gate_calls * gate_flops


@dataclass(frozen=True)
class CascadeTrace:
    """What ran for each example of a batch in a cascade: ``first`` for all, then ``later`` for those at ``indices``.

    Widths and layers are those of the sub-network that predicted; FLOPs are those of all.
    """

    first: "Trace | CascadeTrace"
    later: "Trace | CascadeTrace"
    indices: Tensor

    @property
    def widths(self) -> Tensor:
        """As `Trace.widths`."""
        return self.first.widths.index_copy(0, self.indices, self.later.widths)

    @property
    def layers_run(self) -> Tensor:
        """As `Trace.layers_run`."""
        return self.first.layers_run.index_copy(0, self.indices, self.later.layers_run)

    @property
    def temperatures(self) -> Tensor:
        """As `Trace.temperatures`."""
        return self.first.temperatures.index_copy(0, self.indices, self.later.temperatures)

    @property
    def flops(self) -> Tensor:
        """As `Trace.flops`."""
        return self.first.flops.index_add(0, self.indices, self.later.flops)


@dataclass(frozen=True)
class EngineOutput:
    """The output for a batch."""

    logits: Tensor  # ``(batch, outputs)``, calibrated, in the order of the inputs, on the model's device
    trace: Trace | CascadeTrace


@dataclass
class _WidthGroup:
    """Examples that run at the same width: their indices in the batch, and their states in this order."""

    indices: list[int]
    option_index: int
    state: Tensor  # (examples, tokens, hidden)
    calls: LayerCalls


@dataclass
class _BatchState:
    """The state of one batch between layers."""

    attention_mask: Tensor  # (batch, tokens)
    calls: LayerCalls  # of the whole batch
    groups: list[_WidthGroup]
    decisions: list[Decision] = field(default_factory=list)
    finished: list[tuple[list[int], Tensor]] = field(default_factory=list)  # indices, and their logits
    exit_logits: list[Tensor] = field(default_factory=list)  # at the exits so far, of the running examples

    @property
    def running_indices(self) -> list[int]:
        return [index for group in self.groups for index in group.indices]

    def ordered_logits(self) -> Tensor:
        """All logits in the order of the batch."""
        indices = [index for part, _ in self.finished for index in part]
        logits = torch.cat([logits for _, logits in self.finished]) if len(self.finished) > 1 else self.finished[0][1]
        if indices == list(range(len(indices))):
            return logits
        return logits[torch.tensor(indices, device=logits.device).argsort()]


class Engine:
    """Executes one policy on one model. Thread-safe, as views are.

    Args:
        model: shares its weights; make a new engine after training the model or moving it.
        policy: the policy, or its name: an operating point such as ``balanced``, or ``static:0.5x0.75``.
        task_type: what the model's outputs mean; default: the task in the model's record.
        precision: ``"bf16"`` runs under autocast.

    Raises:
        ConfigError: if the policy does not fit the model or the task.
        UnsupportedModelError: if the task head is not one for sequence classification.
    """

    @renamed_arguments(kind="task_type")
    def __init__(
        self,
        model: ElasticModel,
        policy: Policy | str,
        *,
        task_type: TaskType | None = None,
        precision: RuntimePrecision = "fp32",
    ) -> None:
        check_runtime("torch", precision)
        self.policy = named_policy(policy, model.record) if isinstance(policy, str) else policy
        self._task_type = task_type or _recorded_task_type(model)
        self.plan = resolve_policy(self.policy, model, task_type=self._task_type)
        rest = self.policy.rest
        self._next = None if rest is None else Engine(model, rest, task_type=self._task_type, precision=precision)
        self._cost_model = CostModel(model)
        self._num_layers = model.shape.layers
        self._device = model.network.device
        self._precision: RuntimePrecision = precision
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
        """Run a batch: ``input_ids`` and ``attention_mask`` ``(batch, tokens)``, and other inputs but no labels.

        They are padded on the right, on the model's device.
        """
        batch = self._run(inputs, allow_exit=True)
        output = EngineOutput(batch.ordered_logits().float(), self._trace(batch))
        return output if self._next is None else self._rerun_unsure(self._next, inputs, output)

    def _rerun_unsure(self, engine: "Engine", inputs: Mapping[str, Tensor], output: EngineOutput) -> EngineOutput:
        """Run the rest of a cascade for the examples whose prediction is not final."""
        assert self.policy.exits is not None
        is_final = self.policy.exits.should_exit([output.logits], task_type=self._task_type)
        indices = (~is_final).nonzero()[:, 0]  # waits for the device
        if not len(indices):
            return output
        tokens = int(inputs["attention_mask"][indices].sum(dim=1).max())
        later = engine.run({name: tensor[indices, :tokens] for name, tensor in inputs.items()})
        logits = output.logits.index_copy(0, indices, later.logits)
        return EngineOutput(logits, CascadeTrace(output.trace, later.trace, indices.cpu()))

    @torch.inference_mode()
    def run_all_exits(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Trace]:
        """Run a batch to the end: the logits at every exit, the last layer included, and what ran.

        The logits are ``(exits + 1, batch, outputs)``: for a search over thresholds.
        """
        batch = self._run(inputs, allow_exit=False)
        indices, last_logits = batch.finished[0]
        logits = torch.stack([*batch.exit_logits, last_logits]).float()
        return logits[:, torch.tensor(indices, device=logits.device).argsort()], self._trace(batch)

    run_to_the_end = RenamedAttribute("run_all_exits")

    def _run(self, inputs: Mapping[str, Tensor], *, allow_exit: bool) -> _BatchState:
        plan, mask = self.plan, inputs["attention_mask"]
        with autocast(self._device, self._precision):
            embedding, calls = self._encoder_shell.prepare(dict(inputs))
            batch = _BatchState(mask, calls, [_WidthGroup(list(range(len(mask))), 0, embedding, calls)])
            for done, index in enumerate(plan.layers):
                if done in plan.exit_layers and batch.groups:
                    batch.exit_logits.append(self._apply_head(batch, done))
                    if allow_exit:
                        self._apply_exits(batch, layer=index)
                if index in plan.gate_before_layer and batch.groups:
                    self._apply_gate(batch, layer=index)
                for group in batch.groups:
                    group.option_index = plan.static_options.get(index, group.option_index)
                    group.state = self._layers[index][group.option_index](group.state, group.calls)
            if batch.groups:
                batch.finished.append((batch.running_indices, self._apply_head(batch, len(plan.layers))))
        return batch

    def _trace(self, batch: _BatchState) -> Trace:
        return Trace(self.plan, batch.decisions, self._num_layers, batch.attention_mask, self._cost_model)

    def _apply_head(self, batch: _BatchState, layers_run: int) -> Tensor:
        """Calibrated logits of the running examples."""
        states = [group.state for group in batch.groups]
        logits = self._encoder_shell.apply_head(states, batch.attention_mask, batch.running_indices)
        return logits.float() / self.plan.temperatures.get(layers_run, 1.0)

    def _apply_exits(self, batch: _BatchState, *, layer: int) -> None:
        """Remove the examples whose logits satisfy the exit rule before layer ``layer``."""
        assert self.plan.exit_rule is not None
        indices, logits = batch.running_indices, batch.exit_logits[-1]
        exit_mask = self.plan.exit_rule.should_exit(batch.exit_logits, task_type=self._task_type)
        should_exit = exit_mask.tolist()  # waits for the device
        if not any(should_exit):
            return
        exiting = [position for position, exits in enumerate(should_exit) if exits]
        staying = [position for position, exits in enumerate(should_exit) if not exits]
        exited = [indices[position] for position in exiting]
        batch.decisions.append(Decision(layer, None, exited))
        batch.finished.append((exited, logits[exiting]))
        batch.exit_logits = [earlier[staying] for earlier in batch.exit_logits]
        groups = [self._remove_examples(group, {*exited}) for group in batch.groups]
        batch.groups = [group for group in groups if group is not None]

    def _remove_examples(self, group: _WidthGroup, exited: set[int]) -> _WidthGroup | None:
        """The group without the exited examples; None if it is empty then."""
        staying = [position for position, index in enumerate(group.indices) if index not in exited]
        if not staying or len(staying) == len(group.indices):
            return group if staying else None
        selected = torch.tensor(staying, device=group.state.device)
        calls = self._encoder_shell.select_examples(group.calls, selected, batch_size=len(group.indices))
        indices = [group.indices[position] for position in staying]
        return _WidthGroup(indices, group.option_index, group.state.index_select(0, selected), calls)

    def _apply_gate(self, batch: _BatchState, *, layer: int) -> None:
        """Evaluate the gate before layer ``layer`` and regroup the examples by the width it chooses."""
        assert self._gates is not None
        groups, indices = batch.groups, batch.running_indices
        gate = self._gates.gate[self.plan.gate_before_layer[layer]]
        first_tokens = [group.state[:, 0] for group in groups]
        logits = gate(first_tokens[0] if len(groups) == 1 else torch.cat(first_tokens))
        options = [self.plan.gate_options[choice] for choice in logits.argmax(dim=-1).tolist()]  # waits for the device
        if len(groups) == 1 and len({*options}) == 1:  # one group before and after: nothing to copy
            groups[0].option_index = options[0]
            batch.decisions.append(Decision(layer, options[0], indices))
            return
        state = groups[0].state if len(groups) == 1 else torch.cat([group.state for group in groups])
        batch.groups = []
        order = sorted(range(len(indices)), key=lambda position: options[position])
        batch.exit_logits = [logits[order] for logits in batch.exit_logits]
        for option in sorted({*options}):
            positions = [position for position in order if options[position] == option]
            members = [indices[position] for position in positions]
            batch.decisions.append(Decision(layer, option, members))
            calls = self._encoder_shell.select_examples(
                batch.calls, torch.tensor(members, device=state.device), batch_size=len(batch.attention_mask)
            )
            group_state = state if len(positions) == len(indices) else state[positions]
            batch.groups.append(_WidthGroup(members, option, group_state, calls))


def _recorded_task_type(model: ElasticModel) -> TaskType:
    task_type: TaskType | None = model.record.get("task", {}).get("kind")
    if task_type is None:
        raise ConfigError("the model's record names no task; give task_type=, for example 'classification'")
    return task_type
