"""Search the policies of a trained model: widths for the gates' choices, and thresholds for the exits.

Whether an example leaves changes nothing for the others, and nothing before it leaves. So each choice of widths is run
once to the end, with every off-ramp's answer noted, and all thresholds are judged from the notes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch

from limbert.core.config import Precision
from limbert.core.pareto import pareto_front
from limbert.data.task_registry import compute_task_metrics
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.errors import ConfigError
from limbert.inference.engine import Decision, Engine
from limbert.inference.policy import OperatingPoint, Policy, reject_token_level_task
from limbert.inference.predict import predict_subnet_logits
from limbert.method.early_exit import ExitRule, ExitRuleName, exit_score
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel

_TOLERANCE = 1e-9  # slack for comparing metrics


@dataclass(frozen=True)
class PolicyCandidate:
    """A policy and what it reaches on the examples of the search.

    Attributes:
        policy: what runs.
        value: of the task's primary metric.
        flops: mean floating-point operations an example, as a share of the full model's.
    """

    policy: Policy
    metric_value: float
    flops_share: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON lines."""
        return self.policy.to_dict() | {"value": self.metric_value, "flops_share": self.flops_share}


def tune_policies(
    model: ElasticModel,
    examples: TokenizedExamples,
    *,
    task: Task,
    widths: Sequence[float],
    exit_rule: ExitRuleName,
    num_thresholds: int = 12,
    batch_size: int = 64,
    precision: Precision = "fp32",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[PolicyCandidate]:
    """Judge static sub-networks, gates and exits on labelled examples.

    Args:
        model: with gates, or with depths that keep the first layers, or with neither: then only static ones are judged.
        examples: of the training side, not used for training.
        task: its primary metric is what counts.
        widths: that gates' choices may run at; every mapping that does not fall is tried.
        exit_rule: of the off-ramps.
        thresholds: how many are tried for each choice of widths, at even shares of the examples.
        batch_size: examples a batch.
        precision: ``"bf16"`` runs under autocast.
        progress: called with runs over the examples done and in all.

    Returns:
        All candidates, the full model first.

    Raises:
        ConfigError: for a task whose answers stand at tokens.
    """
    reject_token_level_task(task.task_type, "tune")
    candidates = _evaluate_static(model, examples, task=task, batch_size=batch_size, precision=precision)
    runs = list(_policies_to_run(model, widths, exit_rule))
    full = CostModel(model).mean_flops(model.full, examples.lengths)
    for number, policy in enumerate(runs):
        progress(number, len(runs))
        engine = Engine(model, policy, task_type=task.task_type, precision=precision)
        notes = _run_all_exits(engine, examples, batch_size=batch_size, device=model.network.device)
        candidates += _evaluate_exits(
            notes, policy, examples, full_flops=full, task=task, num_thresholds=num_thresholds
        )
    progress(len(runs), len(runs))
    return candidates


def pareto_policies(candidates: Sequence[PolicyCandidate]) -> list[PolicyCandidate]:
    """Those that no other beats at as few FLOPs, cheapest first."""
    return pareto_front(candidates, cost=lambda one: one.flops_share, value=lambda one: one.metric_value)


def choose_operating_points(
    candidates: Sequence[PolicyCandidate], *, metric: str, max_drops: dict[str, float]
) -> dict[str, OperatingPoint]:
    """For each name the cheapest policy whose metric is at most ``drops[name]`` below the full model's.

    Args:
        candidates: from `search`, the full model first.
        metric: its name.
        drops: allowed losses of the metric, by the name of the point.
    """
    full = candidates[0]
    points = {}
    for name, drop in max_drops.items():
        good = [one for one in candidates if one.metric_value >= full.metric_value - drop - _TOLERANCE]
        best = min(good, key=lambda one: (one.flops_share, -one.metric_value))
        points[name] = OperatingPoint(best.policy, metric, best.metric_value, best.flops_share)
    return points


def _evaluate_static(
    model: ElasticModel, examples: TokenizedExamples, *, task: Task, batch_size: int, precision: Precision
) -> list[PolicyCandidate]:
    subnets, cost = model.subnets(), CostModel(model)
    answers = predict_subnet_logits(model, examples, subnets=subnets, batch_size=batch_size, precision=precision)
    full = cost.mean_flops(model.full, examples.lengths)
    return [
        PolicyCandidate(
            Policy(subnet=name),
            _metric_value(task, logits, examples),
            cost.mean_flops(subnets[name], examples.lengths) / full,
        )
        for name, logits in answers.items()
    ]


def _policies_to_run(model: ElasticModel, widths: Sequence[float], exit_rule: ExitRuleName) -> Iterator[Policy]:
    """The policies to run to the end; an exit rule in them means that thresholds are to be tried."""
    exits = ExitRule(exit_rule, 1.0) if model.space.layers == "first" and len(model.space.depths) > 1 else None
    for width in sorted(widths) if exits else ():
        yield Policy(widths=(width,), exits=exits)
    if model.gates is not None:
        for mapping in combinations_with_replacement(sorted(widths), len(model.gates.widths)):
            if len({*mapping}) > 1:  # else the gates have nothing to choose
                yield Policy(gates=True, widths=mapping, exits=exits)


@dataclass(frozen=True)
class _AllExits:
    """A run to the end: answers ``(places, examples, outputs)`` and FLOPs ``(places, examples)`` of leaving at each
    off-ramp, the end's last, and FLOPs ``(examples,)`` without asking any off-ramp."""

    logits: torch.Tensor
    flops: torch.Tensor
    flops_without_exits: torch.Tensor


def _run_all_exits(engine: Engine, examples: TokenizedExamples, *, batch_size: int, device: torch.device) -> _AllExits:
    order: list[int] = []
    answers, flops, without = [], [], []
    for indices in evaluation_batches(examples.lengths, batch_size=batch_size):
        inputs = {name: tensor.to(device) for name, tensor in examples.collate(indices).items() if name != "labels"}
        places, trace = engine.run_all_exits(inputs)
        rows = range(len(indices))
        leaving = [
            replace(trace, decisions=[*trace.decisions, Decision(ramp, None, rows)])
            for ramp in sorted(engine.plan.exit_layers)
        ]
        answers.append(places.cpu())
        flops.append(torch.stack([*(one.flops for one in leaving), trace.flops]))
        without.append(replace(trace, plan=replace(trace.plan, exit_layers=frozenset())).flops)
        order += indices
    back = torch.tensor(order).argsort()
    return _AllExits(torch.cat(answers, dim=1)[:, back], torch.cat(flops, dim=1)[:, back], torch.cat(without)[back])


def _evaluate_exits(
    all_exits: _AllExits,
    policy: Policy,
    examples: TokenizedExamples,
    *,
    full_flops: float,
    task: Task,
    num_thresholds: int,
) -> Iterator[PolicyCandidate]:
    """What the policy reaches without exits, and with each threshold; ``full``: mean FLOPs of the full model."""
    if policy.gates:
        last = all_exits.logits[-1].numpy()
        yield PolicyCandidate(
            replace(policy, exits=None),
            _metric_value(task, last, examples),
            float(all_exits.flops_without_exits.double().mean()) / full_flops,
        )
    if policy.exits is None:
        return
    for rule in _candidate_rules(all_exits.logits, policy.exits.name, task, count=num_thresholds):
        place = _exit_indices(all_exits.logits, rule, task)
        rows = torch.arange(len(place))
        value = _metric_value(task, all_exits.logits[place, rows].numpy(), examples)
        yield PolicyCandidate(
            replace(policy, exits=rule), value, float(all_exits.flops[place, rows].double().mean()) / full_flops
        )


def _exit_indices(logits: torch.Tensor, rule: ExitRule, task: Task) -> torch.Tensor:
    """For each example the off-ramp that it leaves at, or the end's place."""
    places = torch.full(logits.shape[1:2], len(logits) - 1)
    for ramp in reversed(range(len(logits) - 1)):
        leaving = rule.should_exit(list(logits[: ramp + 1]), task_type=task.task_type)
        places = torch.where(leaving, ramp, places)
    return places


def _candidate_rules(logits: torch.Tensor, name: ExitRuleName, task: Task, *, count: int) -> list[ExitRule]:
    """Rules whose thresholds let even shares of the examples leave."""
    ramps = logits[:-1]
    if name == "patience":
        if task.task_type != "regression":
            return [ExitRule(name, float(stay)) for stay in range(1, len(ramps))]
        if len(ramps) < 2:
            return []
        scores = (ramps[1:] - ramps[:-1]).abs().flatten()
    else:
        scores = exit_score(ramps, name, task_type=task.task_type).flatten()
    levels = np.quantile(scores.numpy(), np.linspace(0, 1, count + 2)[1:-1])
    return [ExitRule(name, level) for level in dict.fromkeys(float(f"{level:.3g}") for level in levels)]


def _metric_value(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> float:
    if examples.labels is None:
        raise ConfigError("a search needs labelled examples")
    return compute_task_metrics(task, logits, examples)[task.primary_metric]
