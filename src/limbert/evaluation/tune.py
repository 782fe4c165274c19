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
from limbert.data.task_registry import score
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.errors import ConfigError
from limbert.inference.engine import Decision, Engine
from limbert.inference.policy import OperatingPoint, Policy, refuse_at_tokens
from limbert.inference.predict import subnet_logits
from limbert.method.early_exit import ExitRule, ExitRuleName, sureness
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel

_SLACK = 1e-9  # slack for comparing metrics


@dataclass(frozen=True)
class Candidate:
    """A policy and what it reaches on the examples of the search.

    Attributes:
        policy: what runs.
        value: of the task's primary metric.
        flops: mean floating-point operations an example, as a share of the full model's.
    """

    policy: Policy
    value: float
    flops: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON lines."""
        return self.policy.to_dict() | {"value": self.value, "flops_share": self.flops}


def search(
    model: ElasticModel,
    examples: TokenizedExamples,
    *,
    task: Task,
    widths: Sequence[float],
    exit_rule: ExitRuleName,
    thresholds: int = 12,
    batch_size: int = 64,
    precision: Precision = "fp32",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Candidate]:
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
    refuse_at_tokens(task.kind, "tune")
    candidates = _static(model, examples, task=task, batch_size=batch_size, precision=precision)
    runs = list(_runs(model, widths, exit_rule))
    full = CostModel(model).mean_flops(model.full, examples.lengths)
    for number, policy in enumerate(runs):
        progress(number, len(runs))
        engine = Engine(model, policy, kind=task.kind, precision=precision)
        notes = _run_to_the_end(engine, examples, batch_size=batch_size, device=model.network.device)
        candidates += _judged(notes, policy, examples, full=full, task=task, thresholds=thresholds)
    progress(len(runs), len(runs))
    return candidates


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats at as few FLOPs, cheapest first."""
    return pareto_front(candidates, cost=lambda one: one.flops, value=lambda one: one.value)


def choose_points(
    candidates: Sequence[Candidate], *, metric: str, drops: dict[str, float]
) -> dict[str, OperatingPoint]:
    """For each name the cheapest policy whose metric is at most ``drops[name]`` below the full model's.

    Args:
        candidates: from `search`, the full model first.
        metric: its name.
        drops: allowed losses of the metric, by the name of the point.
    """
    full = candidates[0]
    points = {}
    for name, drop in drops.items():
        good = [one for one in candidates if one.value >= full.value - drop - _SLACK]
        best = min(good, key=lambda one: (one.flops, -one.value))
        points[name] = OperatingPoint(best.policy, metric, best.value, best.flops)
    return points


def _static(
    model: ElasticModel, examples: TokenizedExamples, *, task: Task, batch_size: int, precision: Precision
) -> list[Candidate]:
    subnets, cost = model.subnets(), CostModel(model)
    answers = subnet_logits(model, examples, subnets=subnets, batch_size=batch_size, precision=precision)
    full = cost.mean_flops(model.full, examples.lengths)
    return [
        Candidate(
            Policy(subnet=name),
            _value(task, logits, examples),
            cost.mean_flops(subnets[name], examples.lengths) / full,
        )
        for name, logits in answers.items()
    ]


def _runs(model: ElasticModel, widths: Sequence[float], exit_rule: ExitRuleName) -> Iterator[Policy]:
    """The policies to run to the end; an exit rule in them means that thresholds are to be tried."""
    exits = ExitRule(exit_rule, 1.0) if model.space.layers == "first" and len(model.space.depths) > 1 else None
    for width in sorted(widths) if exits else ():
        yield Policy(widths=(width,), exits=exits)
    if model.gates is not None:
        for mapping in combinations_with_replacement(sorted(widths), len(model.gates.widths)):
            if len({*mapping}) > 1:  # else the gates have nothing to choose
                yield Policy(gates=True, widths=mapping, exits=exits)


@dataclass(frozen=True)
class _Notes:
    """A run to the end: answers ``(places, examples, outputs)`` and FLOPs ``(places, examples)`` of leaving at each
    off-ramp, the end's last, and FLOPs ``(examples,)`` without asking any off-ramp."""

    answers: torch.Tensor
    flops: torch.Tensor
    flops_without: torch.Tensor


def _run_to_the_end(engine: Engine, examples: TokenizedExamples, *, batch_size: int, device: torch.device) -> _Notes:
    order: list[int] = []
    answers, flops, without = [], [], []
    for indices in evaluation_batches(examples.lengths, batch_size=batch_size):
        inputs = {name: tensor.to(device) for name, tensor in examples.collate(indices).items() if name != "labels"}
        places, trace = engine.run_to_the_end(inputs)
        rows = range(len(indices))
        leaving = [
            replace(trace, decisions=[*trace.decisions, Decision(ramp, None, rows)])
            for ramp in sorted(engine.plan.ramps)
        ]
        answers.append(places.cpu())
        flops.append(torch.stack([*(one.flops for one in leaving), trace.flops]))
        without.append(replace(trace, plan=replace(trace.plan, ramps=frozenset())).flops)
        order += indices
    back = torch.tensor(order).argsort()
    return _Notes(torch.cat(answers, dim=1)[:, back], torch.cat(flops, dim=1)[:, back], torch.cat(without)[back])


def _judged(
    notes: _Notes, policy: Policy, examples: TokenizedExamples, *, full: float, task: Task, thresholds: int
) -> Iterator[Candidate]:
    """What the policy reaches without exits, and with each threshold; ``full``: mean FLOPs of the full model."""
    if policy.gates:
        last = notes.answers[-1].numpy()
        yield Candidate(
            replace(policy, exits=None), _value(task, last, examples), float(notes.flops_without.double().mean()) / full
        )
    if policy.exits is None:
        return
    for rule in _rules(notes.answers, policy.exits.name, task, count=thresholds):
        place = _leaving_places(notes.answers, rule, task)
        rows = torch.arange(len(place))
        value = _value(task, notes.answers[place, rows].numpy(), examples)
        yield Candidate(replace(policy, exits=rule), value, float(notes.flops[place, rows].double().mean()) / full)


def _leaving_places(answers: torch.Tensor, rule: ExitRule, task: Task) -> torch.Tensor:
    """For each example the off-ramp that it leaves at, or the end's place."""
    places = torch.full(answers.shape[1:2], len(answers) - 1)
    for ramp in reversed(range(len(answers) - 1)):
        leaving = rule.leaving(list(answers[: ramp + 1]), kind=task.kind)
        places = torch.where(leaving, ramp, places)
    return places


def _rules(answers: torch.Tensor, name: ExitRuleName, task: Task, *, count: int) -> list[ExitRule]:
    """Rules whose thresholds let even shares of the examples leave."""
    ramps = answers[:-1]
    if name == "patience":
        if task.kind != "regression":
            return [ExitRule(name, float(stay)) for stay in range(1, len(ramps))]
        if len(ramps) < 2:
            return []
        scores = (ramps[1:] - ramps[:-1]).abs().flatten()
    else:
        scores = sureness(ramps, name, kind=task.kind).flatten()
    levels = np.quantile(scores.numpy(), np.linspace(0, 1, count + 2)[1:-1])
    return [ExitRule(name, level) for level in dict.fromkeys(float(f"{level:.3g}") for level in levels)]


def _value(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> float:
    if examples.labels is None:
        raise ConfigError("a search needs labelled examples")
    return score(task, logits, examples)[task.primary]
