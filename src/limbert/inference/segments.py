"""Dynamic policies in the files of a runtime, as segments: what runs between two decisions is one graph.

A segment begins with tokens, or with the state that an earlier one returned, and ends in a head where examples may
exit, in a gate, or in both. `PolicyRuntime` runs them on the undecided examples; exports hold a copy of it. Each layer
is stored once, with gates once per width; a head is stored in each segment that ends in one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbert.core.config import RuntimePrecision
from limbert.inference.engine import CascadeTrace, Decision, Engine, EngineOutput, Trace
from limbert.inference.load import LoadedCheckpoint
from limbert.inference.onnx_graph import input_names
from limbert.inference.policy import ExecutionPlan, Policy, resolve_policy
from limbert.inference.policy_runtime import POLICY_NAME, Arrays, Model, PolicyRuntime
from limbert.inference.quantize import CalibrationLoader
from limbert.inference.runtimes import RUNTIMES, Runtime
from limbert.model.checkpoint import write_json
from limbert.model.families import FAMILIES, set_stack
from limbert.model.flops import CostModel
from limbert.model.layerwise import recorded_states


class CompiledPolicy:
    """A policy on its segments; `run` is that of `Engine`. Must not be called from two threads at once."""

    def __init__(self, segmented: "SegmentedPolicy", driver: PolicyRuntime) -> None:
        self._driver, self._input_names, self._plans = driver, segmented.input_names, segmented.plans
        model = segmented.checkpoint.model
        self._num_layers, self._cost_model = model.shape.layers, CostModel(model)
        self.token_multiple = driver.token_multiple  # as of a `Runtime`

    def run(self, inputs: Mapping[str, Tensor]) -> EngineOutput:
        """Run a batch on the CPU: `Engine.run`."""
        ids = inputs["input_ids"]
        tokens = {name: inputs.get(name, torch.zeros_like(ids)).numpy() for name in self._input_names}
        logits, path = self._driver.run(tokens)
        return EngineOutput(torch.from_numpy(logits), self._trace(self._plans, path, inputs["attention_mask"]))

    def _trace(self, plans: Sequence[ExecutionPlan], path: np.ndarray, mask: Tensor) -> Trace | CascadeTrace:
        """What ran, from the option of each segment, ``(batch, segments)``; -1 where it did not run."""
        plan, segments = plans[0], _cut(plans[0])
        decisions = [
            Decision(
                plan.layers[segment.start], None if option < 0 else option, np.flatnonzero(chosen == option).tolist()
            )
            for segment, chosen in zip(segments[1:], path.T[1:], strict=False)
            for option in np.unique(chosen).tolist()
        ]
        trace = Trace(plan, decisions, self._num_layers, mask, self._cost_model)
        later = path[:, len(segments) :]
        rows = np.flatnonzero(later[:, :1] >= 0)  # in the next sub-network of a cascade
        if not len(rows):
            return trace
        indices = torch.as_tensor(rows)
        return CascadeTrace(trace, self._trace(plans[1:], later[rows], mask[indices]), indices)


class SegmentedPolicy:
    """A dynamic policy of a checkpoint, to be written, loaded and quantised in the files of a runtime.

    Args:
        checkpoint: on the CPU.
        policy: with exits, gates or a cascade.
        runtime: ``onnxruntime`` or ``openvino``.

    Attributes:
        plans: of a cascade one for each sub-network, else one.
        input_names: of segments that begin with tokens.
        identity: everything that decides the files except weights, for JSON.
        networks: those with the weights.
        file_name: of the policy in its folder.
        title: of the policy for readers.

    Raises:
        ConfigError: if the policy does not fit the model or the task.
        UnsupportedModelError: if the task head is not one for sequence classification.
    """

    def __init__(self, checkpoint: LoadedCheckpoint, policy: Policy, runtime: str) -> None:
        self.checkpoint, self.policy, self._runtime = checkpoint, policy, runtime
        model, task_type = checkpoint.model, checkpoint.trained_task.task_type
        self._engine = Engine(model, policy, task_type=task_type)
        self.plans: list[ExecutionPlan] = []
        rest: Policy | None = policy
        while rest is not None:
            self.plans.append(resolve_policy(rest, model, task_type=task_type))
            rest = rest.rest
        known = checkpoint.tokenizer.model_input_names
        self.input_names = tuple(name for name in input_names(model.network) if name in known)
        self.identity = [policy.to_dict(), str(self.plans)]
        gates = () if model.gates is None else (model.gates,)
        self.networks: tuple[PreTrainedModel, *tuple[nn.Module, ...]] = (model.network, *gates)
        self.file_name, self.title = POLICY_NAME, f"policy {policy}"

    def write(self, folder: Path) -> None:
        """Write the segments, each into a folder of its own, and ``policy.json``."""
        segments: list[dict[str, Any]] = []
        for plan in self.plans:
            for number, segment in enumerate(_cut(plan)):
                inputs = ("state", "attention_mask") if number else self.input_names
                files: list[str | None] = [None] * len(plan.options)
                for option in segment.options:
                    width = f"-{plan.options[option].width:g}" if len(segment.options) > 1 else ""
                    new = folder / f"segment-{len(segments)}{width}"
                    files[option] = f"{new.name}/{self._write_segment(new, plan, segment, option, inputs)}"
                segments.append(
                    {
                        "layers": plan.layers[segment.start : segment.end],
                        "inputs": inputs,
                        "files": files,  # by option
                        "temperature": plan.temperatures.get(segment.end, 1.0),
                        "gate_options": plan.gate_options if segment.end in plan.gate_before_layer else None,
                    }
                )
        exits, checkpoint = self.policy.exits, self.checkpoint
        values = {
            "policy": str(self.policy),
            "runtime": self._runtime,
            "task_type": checkpoint.trained_task.task_type,
            "labels": checkpoint.trained_task.labels,
            "exits": None if exits is None else {"rule": exits.name, "threshold": exits.threshold},
            "options": [[option.width for option in plan.options] for plan in self.plans],
            "segments": segments,
            "max_length": checkpoint.max_length,
            "max_positions": checkpoint.model.max_input_length,
            "pad_token_id": checkpoint.tokenizer.pad_token_id,
        }
        write_json(folder / POLICY_NAME, values)

    def _write_segment(
        self, folder: Path, plan: ExecutionPlan, segment: "_Segment", option: int, inputs: tuple[str, ...]
    ) -> str:
        """Write the graph of a segment at one option; the name of its file."""
        library, model = RUNTIMES[self._runtime], self.checkpoint.model
        assert library.write is not None
        layers = []
        for index in plan.layers[segment.start : max(segment.end, 1)]:  # at least one, which may be dropped then
            own = plan.options[plan.static_options.get(index, option)]
            layers.append(model.layer_view(index, heads=own.heads, neurons=own.neurons))
        network, gate = model.new_view(model.full), None
        set_stack(network, model.family, nn.ModuleList(layers))
        if segment.end in plan.gate_before_layer and model.gates is not None:
            gate = model.gates.gate[plan.gate_before_layer[segment.end]]
        graph = _SegmentNetwork(
            network,
            gate,
            num_layers=segment.end - segment.start,
            has_head=segment.end in {*plan.exit_layers, len(plan.layers)},
            has_state=segment.end < len(plan.layers),
        )
        folder.mkdir()
        library.write(cast(PreTrainedModel, graph), folder, inputs)  # it has a config, and outputs by name
        return library.model_name

    def load(self, folder: Path, *, threads: int | None = None, precision: RuntimePrecision = "fp32") -> CompiledPolicy:
        """The policy on the segments in a folder."""
        return CompiledPolicy(self, PolicyRuntime(folder, threads=threads, precision=precision))

    def open(self, folder: Path, threads: int | None, precision: RuntimePrecision = "fp32") -> Runtime:
        """The same as a runtime, to be compared with `source`."""
        return self._as_runtime(self.load(folder, threads=threads, precision=precision))

    @property
    def source(self) -> Runtime:
        """The policy on torch as a runtime; besides ``logits`` it returns ``widths``: of each layer, 0 if not run."""
        return self._as_runtime(self._engine)

    def _as_runtime(self, engine: Engine | CompiledPolicy) -> Runtime:
        def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            output = engine.run(inputs)
            return {"logits": output.logits, "widths": output.trace.widths}

        return Runtime(self.input_names, run)

    def quantize(self, folder: Path, load_batches: CalibrationLoader) -> None:
        """Quantise the segments to int8 in place, calibrated on what each receives when no example exits.

        A segment that then receives nothing, because the gates choose other widths, stays fp32.
        """
        quantize, driver = RUNTIMES[self._runtime].quantize, PolicyRuntime(folder)
        assert quantize is not None
        received: dict[str, list[dict[str, Tensor]]] = {file: [] for file in driver.models}
        driver.policy["exits"] = None
        driver.models = {file: _recording(model, received[file]) for file, model in driver.models.items()}
        compiled = CompiledPolicy(self, driver)
        for batch in load_batches():
            compiled.run(batch)
        for file, batches in received.items():
            if batches:
                quantize(folder / file, partial(list, batches))


def _recording(model: Model, received: list[dict[str, Tensor]]) -> Model:
    """The model, which appends its inputs to a list."""

    def run(values: Arrays) -> Arrays:
        received.append({name: torch.from_numpy(value) for name, value in values.items()})
        return model(values)

    return run


class _SegmentNetwork(nn.Module):
    """Some layers of a network as a network of its own."""

    def __init__(
        self, network: PreTrainedModel, gate: nn.Module | None, *, num_layers: int, has_head: bool, has_state: bool
    ) -> None:
        super().__init__()
        self.network, self.gate, self.config = network, gate, network.config
        self._num_layers, self._has_head, self._has_state = num_layers, has_head, has_state

    def forward(self, state: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        if state is not None:  # the exporter drops the embeddings of these ids: nothing depends on them
            inputs["input_ids"] = torch.zeros_like(inputs["attention_mask"])
        with recorded_states(self.network, FAMILIES[self.config.model_type], first_state=state) as states:
            logits = self.network(**inputs).logits
        last = states[self._num_layers]
        outputs = {"logits": logits} if self._has_head else {}
        outputs |= {"next_state": last} if self._has_state else {}
        return outputs if self.gate is None else outputs | {"gate": self.gate(last[:, 0])}


@dataclass(frozen=True)
class _Segment:
    """Consecutive layers of a plan, by their positions in it."""

    start: int
    end: int
    options: tuple[int, ...]  # of the plan, at which the layers may run


def _cut(plan: ExecutionPlan) -> list[_Segment]:
    """The segments of a plan: they end where examples may exit, before gates, and after the last layer."""
    stops = sorted({*plan.exit_layers, *plan.gate_before_layer, len(plan.layers)})
    segments: list[_Segment] = []
    options: tuple[int, ...] = (0,)
    for start, end in zip([0, *stops], stops, strict=False):
        segments.append(_Segment(start, end, options))
        if end in plan.gate_before_layer:
            options = tuple(sorted({*plan.gate_options}))
    return segments
