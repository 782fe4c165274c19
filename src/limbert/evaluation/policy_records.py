"""Recorded outputs of policies on labelled examples, from which every exit threshold can be evaluated without a run.

An example's exit changes nothing for the others, nor anything before it. So each choice of widths runs once to the end,
and the logits at every exit are recorded.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, combinations_with_replacement

import numpy as np
import torch

from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples
from limbert.inference.engine import Decision, Engine
from limbert.inference.policy import Policy
from limbert.inference.predict import OutputCollector, inference_batches, predict_subnet_logits
from limbert.method.calibration import fit_temperature
from limbert.method.early_exit import ExitRule, ExitRuleName, exit_score
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel


@dataclass(frozen=True)
class _Record:
    """A run to the end without exits; a stop is an exit or the last layer."""

    policy: Policy  # an exit rule in it means that thresholds are to be tried
    logits: np.ndarray  # without temperatures, ``(stops, examples, outputs)``
    flops: np.ndarray  # of an example that stops there, ``(stops, examples)``
    flops_without_exits: np.ndarray  # of all layers without any exit classifier, ``(examples,)``

    def select(self, indices: np.ndarray) -> "_Record":
        """The record of some of the examples."""
        flops = self.flops_without_exits[indices]
        return _Record(self.policy, self.logits[:, indices], self.flops[:, indices], flops)


class PolicyRecords:
    """The records of all sub-networks, and of all gates and exits with every choice of widths.

    Args:
        model: without gates and exits only its sub-networks are recorded.
        examples: labelled.
        task: of the examples.
        widths: that gates' choices and exits may run at.
        exit_rule: whose thresholds are to be tried.
        batch_size: of the runs; it changes nothing.
        progress: called with the policies done and in all.
    """

    def __init__(
        self,
        model: ElasticModel,
        examples: TokenizedExamples,
        *,
        task: Task,
        widths: Sequence[float],
        exit_rule: ExitRuleName,
        batch_size: int = 64,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        assert examples.labels is not None
        self._cascade_rule: ExitRuleName = "entropy" if exit_rule == "patience" else exit_rule
        self.examples, self.task, self.labels = examples, task, examples.labels.numpy()
        cost, subnets = CostModel(model), model.subnets()
        #: logits of the sub-networks, ``(examples, outputs)``
        self.subnet_logits = predict_subnet_logits(model, examples, subnets=subnets, batch_size=batch_size)
        self._records: dict[object, _Record] = {}
        for name, subnet in subnets.items():
            flops = np.array([cost.flops(subnet, int(length)) for length in examples.lengths])
            self._add(_Record(Policy(subnet=name), self.subnet_logits[name][None], flops[None], flops))
        self.full_flops = cost.mean_flops(model.full, examples.lengths)
        policies = list(_dynamic_policies(model, widths, exit_rule))
        for number, policy in enumerate(policies):
            progress(number, len(policies))
            engine = Engine(model, policy, task_type=task.task_type)
            engine.plan = replace(engine.plan, temperatures={})
            self._add(_run_all_exits(engine, policy, examples, batch_size=batch_size, device=model.network.device))
        progress(len(policies), len(policies))

    def select(self, indices: np.ndarray) -> "PolicyRecords":
        """The records of some of the examples."""
        selected = copy.copy(self)
        selected.examples, selected.labels = self.examples.select(indices), self.labels[indices]
        selected.subnet_logits = {name: logits[indices] for name, logits in self.subnet_logits.items()}
        selected._records = {key: record.select(indices) for key, record in self._records.items()}
        return selected

    def _add(self, record: _Record) -> None:
        self._records[_key(record.policy)] = record

    def policies(self, *, num_thresholds: int) -> Iterator[Policy]:
        """The policies to try, the full model first: temperatures and thresholds are chosen on the examples.

        Thresholds are at even quantiles of the examples' scores.
        """
        for record in self._records.values():
            policy, exits = record.policy, record.policy.exits
            if policy.subnet is not None:
                yield policy
                continue
            temperatures: tuple[float, ...] | None = None
            if self.task.task_type != "regression":
                temperatures = tuple(
                    fit_temperature(logits, self.labels, task_type=self.task.task_type) for logits in record.logits
                )
            if policy.gates:
                yield replace(policy, exits=None, temperatures=temperatures and temperatures[-1:])
            if exits is not None:
                logits = _calibrated(record.logits, temperatures)
                for rule in _candidate_rules(logits[:-1], exits.name, self.task, count=num_thresholds):
                    yield replace(policy, exits=rule, temperatures=temperatures)

    def cascades(self, names: Sequence[str], *, num_thresholds: int) -> Iterator[Policy]:
        """Cascades of two of these sub-networks, cheapest first; none for a regression. Otherwise as `policies`."""
        rule, task_type = self._cascade_rule, self.task.task_type
        if task_type == "regression":
            return
        logits = {name: self.subnet_logits[name] for name in names}
        fitted = {name: fit_temperature(own, self.labels, task_type=task_type) for name, own in logits.items()}
        for first, last in combinations(names, 2):
            calibrated = logits[first][None] / fitted[first]
            for exits in _candidate_rules(calibrated, rule, self.task, count=num_thresholds):
                yield Policy(cascade=(first, last), exits=exits, temperatures=(fitted[first], fitted[last]))

    def outputs(self, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        """Logits ``(examples, outputs)``, not divided, and FLOPs ``(examples,)`` of one of the `policies`."""
        if policy.cascade is not None:
            return self._cascade_outputs(policy, *policy.cascade)
        record = self._records[_key(policy)]
        if policy.exits is None:
            return record.logits[-1], record.flops_without_exits
        logits = torch.from_numpy(_calibrated(record.logits, policy.temperatures))
        taken = _exit_indices(logits, policy.exits, self.task).numpy(), np.arange(len(self.examples))
        return record.logits[taken], record.flops[taken]

    def _cascade_outputs(self, policy: Policy, first: str, last: str) -> tuple[np.ndarray, np.ndarray]:
        assert policy.exits is not None
        assert policy.temperatures is not None
        cheap, dear = (self._records[_key(Policy(subnet=name))] for name in (first, last))
        calibrated = torch.from_numpy(cheap.logits[0] / np.float32(policy.temperatures[0]))
        is_final = policy.exits.should_exit([calibrated], task_type=self.task.task_type).numpy()
        logits = np.where(is_final[:, None], cheap.logits[0], dear.logits[0])
        return logits, cheap.flops[0] + np.where(is_final, 0, dear.flops[0])


def _key(policy: Policy) -> object:
    return policy.subnet, policy.gates, policy.widths


def _calibrated(logits: np.ndarray, temperatures: tuple[float, ...] | None) -> np.ndarray:
    return logits if temperatures is None else logits / np.array(temperatures, dtype=np.float32)[:, None, None]


def _dynamic_policies(model: ElasticModel, widths: Sequence[float], exit_rule: ExitRuleName) -> Iterator[Policy]:
    exits = ExitRule(exit_rule, 1.0) if model.space.layers == "first" and len(model.space.depths) > 1 else None
    for width in sorted(widths) if exits else ():
        yield Policy(widths=(width,), exits=exits)
    if model.gates is not None:
        for mapping in combinations_with_replacement(sorted(widths), len(model.gates.widths)):
            if len({*mapping}) > 1:  # else the gates have nothing to choose
                yield Policy(gates=True, widths=mapping, exits=exits)


def _run_all_exits(
    engine: Engine, policy: Policy, examples: TokenizedExamples, *, batch_size: int, device: torch.device
) -> _Record:
    logits, flops, without_exits = (OutputCollector(examples) for _ in range(3))
    for indices, inputs in inference_batches(examples, batch_size=batch_size, device=device):
        exit_logits, trace = engine.run_all_exits(inputs)
        batch = range(len(indices))
        exit_traces = [
            replace(trace, decisions=[*trace.decisions, Decision(layer, None, batch)])
            for layer in sorted(engine.plan.exit_layers)
        ]
        logits.add(indices, exit_logits.transpose(0, 1))
        flops.add(indices, torch.stack([*(exit_trace.flops for exit_trace in exit_traces), trace.flops], dim=1))
        without_exits.add(indices, replace(trace, plan=replace(trace.plan, exit_layers=frozenset())).flops)
    return _Record(policy, logits.values.swapaxes(0, 1), flops.values.T, without_exits.values)


def _exit_indices(logits: torch.Tensor, rule: ExitRule, task: Task) -> torch.Tensor:
    """The index of the stop of each example, ``(examples,)``."""
    indices = torch.full(logits.shape[1:2], len(logits) - 1)
    for index in reversed(range(len(logits) - 1)):
        should_exit = rule.should_exit(list(logits[: index + 1]), task_type=task.task_type)
        indices = torch.where(should_exit, index, indices)
    return indices


def _candidate_rules(logits: np.ndarray, name: ExitRuleName, task: Task, *, count: int) -> list[ExitRule]:
    """Rules whose thresholds are even quantiles of the scores at all exits, ``(exits, examples, outputs)``."""
    exit_logits = torch.from_numpy(logits)
    if name == "patience":
        if task.task_type != "regression":
            return [ExitRule(name, float(agreeing)) for agreeing in range(1, len(exit_logits))]
        if len(exit_logits) < 2:
            return []
        scores = (exit_logits[1:] - exit_logits[:-1]).abs().flatten()
    else:
        scores = exit_score(exit_logits, name, task_type=task.task_type).flatten()
    levels = np.quantile(scores.numpy(), np.linspace(0, 1, count + 2)[1:-1])
    return [ExitRule(name, level) for level in dict.fromkeys(float(f"{level:.3g}") for level in levels)]
