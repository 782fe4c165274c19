"""Tuning of policies: widths for the gates' choices and thresholds for the exits, and the choice of operating points.

An example's exit changes nothing for the others, nor anything before it. So each choice of widths runs once to the end,
the logits at every exit are recorded, and all thresholds are evaluated from the record.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbert.core.config import Precision, require
from limbert.core.pareto import pareto_front
from limbert.core.subnet import Subnet
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples
from limbert.evaluation.evaluate import Progress, evaluate_policy, no_progress, policy_row, primary_metric
from limbert.evaluation.results import POLICIES_NAME, TUNE_NAME, require_writable_run
from limbert.files import write_json_lines
from limbert.inference.engine import Decision, Engine
from limbert.inference.load import load_checkpoint, load_validation_split, override_data_config
from limbert.inference.policy import (
    OperatingPoint,
    Policy,
    default_exit_rule,
    reject_token_level_task,
    save_operating_points,
)
from limbert.inference.predict import OutputCollector, inference_batches, predict_subnet_logits
from limbert.method.early_exit import EXIT_RULES, ExitRule, ExitRuleName, exit_score
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel

_TOLERANCE = 1e-9  # slack for comparing metrics
_POINT_BATCH_SIZE = 32  # examples per batch when an operating point is evaluated


@dataclass(frozen=True)
class PolicyCandidate:
    """A policy with its metric and FLOPs on the validation split."""

    policy: Policy
    metric_value: float  # the task's primary metric
    flops_share: float  # mean floating-point operations per example, as a fraction of the full model's

    def to_dict(self) -> dict[str, Any]:
        """A JSON row."""
        return self.policy.to_dict() | {"value": self.metric_value, "flops_share": self.flops_share}


@dataclass(frozen=True)
class TuneResult:
    """The policies that were tried, and the operating points chosen from them."""

    candidates: list[PolicyCandidate]  # all policies, the full model first
    operating_points: dict[str, OperatingPoint]  # by name
    metric: str  # the task's primary metric
    num_examples: int  # of the validation split


def tune(
    run: str | Path,
    *,
    widths: Sequence[float] = (),
    exit_rule: ExitRuleName | None = None,
    num_thresholds: int = 12,
    balanced_drop: float = 1.0,
    fast_drop: float = 3.0,
    batch_size: int = 64,
    device: str = "auto",
    progress: Progress = no_progress,
    **data: Any,
) -> TuneResult:
    """Search policies on the validation split of the training data, and save operating points in the run.

    ``accurate`` is the cheapest policy that reaches the full model's metric; ``balanced`` and ``fast`` may lose some of
    it. Written into the run: the points (``limbert.json``), all candidates (``tune.jsonl``) and the points' results on
    the validation split (``policies.jsonl``). The development set is not used.

    Args:
        run: elastic model; without gates and ``layers="first"`` its points are single sub-networks.
        widths: widths that the gates' choices may run at; default: the model's.
        exit_rule: ``entropy``, ``confidence`` or ``patience``; default: entropy, for regression patience.
        num_thresholds: exit thresholds tried for each choice of widths.
        balanced_drop: how much of the metric ``balanced`` may lose to the full model, in points of 100.
        fast_drop: likewise for ``fast``.
        batch_size: examples per batch; the results do not depend on it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        progress: called with what runs, steps done and steps in all.
        data: settings of `DataConfig` (``data=``, ``train=``, ``dev=``) instead of the training's.

    Raises:
        LimbertError: for a setting out of range, a token-level task, or a run that cannot be tuned or written.
    """
    require(0 <= balanced_drop <= 100, "balanced drop", balanced_drop, "between 0 and 100 points")
    require(0 <= fast_drop <= 100, "fast drop", fast_drop, "between 0 and 100 points")
    run = os.path.expanduser(run)
    require_writable_run(run)
    checkpoint = load_checkpoint(run, device=device)
    task, model = checkpoint.trained_task, checkpoint.model
    reject_token_level_task(task.task_type, "tune")
    rule = exit_rule or default_exit_rule(task.task_type)
    require(rule in EXIT_RULES, "exit rule", rule, "one of " + ", ".join(EXIT_RULES))
    for width in widths:
        Subnet.uniform(model.shape, width=width)  # refuses one that keeps no head
    config = override_data_config(checkpoint.data_config, **data)
    validation, source = load_validation_split(checkpoint, config), config.train or config.data or task.name
    examples = checkpoint.tokenize(validation)
    checkpoint.log_inputs(f"validation split of {source}", validation, examples)
    candidates = tune_policies(
        model,
        examples,
        task=task,
        widths=widths or model.space.widths,
        exit_rule=rule,
        num_thresholds=num_thresholds,
        batch_size=batch_size,
        progress=partial(progress, "searching"),
    )
    drops = {"fast": fast_drop / 100, "balanced": balanced_drop / 100, "accurate": 0.0}
    points = choose_operating_points(candidates, metric=task.primary_metric, max_drops=drops)
    rows = [
        policy_row(
            name,
            evaluate_policy(
                model,
                {"validation": examples},
                task=task,
                policy=point.policy,
                batch_size=_POINT_BATCH_SIZE,
                progress=partial(progress, f"evaluating {name}"),
            ),
            split="validation",
            source=source,
            num_examples=len(examples),
            batch_size=_POINT_BATCH_SIZE,
            device=model.network.device.type,
        )
        for name, point in points.items()
    ]
    write_json_lines(Path(run) / POLICIES_NAME, rows)  # earlier rows are of other points
    metric = {"metric": task.primary_metric}
    write_json_lines(Path(run) / TUNE_NAME, [candidate.to_dict() | metric for candidate in candidates])
    save_operating_points(run, points)
    return TuneResult(candidates, points, task.primary_metric, len(examples))


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
    """Evaluate sub-networks, gates and exits on labelled examples, the full model first.

    Every non-decreasing mapping of the gates' choices to ``widths`` is tried, each with ``num_thresholds`` exit
    thresholds at even quantiles of the examples' scores. A model without gates and exits has only its sub-networks.
    """
    reject_token_level_task(task.task_type, "tune")
    subnets, cost = model.subnets(), CostModel(model)
    full_flops = cost.mean_flops(model.full, examples.lengths)
    logits = predict_subnet_logits(model, examples, subnets=subnets, batch_size=batch_size, precision=precision)
    candidates = [
        PolicyCandidate(
            Policy(subnet=name),
            primary_metric(task, logits[name], examples),
            cost.mean_flops(subnet, examples.lengths) / full_flops,
        )
        for name, subnet in subnets.items()
    ]
    policies = list(_dynamic_policies(model, widths, exit_rule))
    for number, policy in enumerate(policies):
        progress(number, len(policies))
        engine = Engine(model, policy, task_type=task.task_type, precision=precision)
        all_exits = _run_all_exits(engine, examples, batch_size=batch_size, device=model.network.device)
        candidates += _evaluate_exits(
            all_exits, policy, examples, full_flops=full_flops, task=task, num_thresholds=num_thresholds
        )
    progress(len(policies), len(policies))
    return candidates


def pareto_policies(candidates: Sequence[PolicyCandidate]) -> list[PolicyCandidate]:
    """The Pareto front of metric and FLOPs, cheapest first."""
    return pareto_front(
        candidates, cost=lambda candidate: candidate.flops_share, value=lambda candidate: candidate.metric_value
    )


def choose_operating_points(
    candidates: Sequence[PolicyCandidate], *, metric: str, max_drops: Mapping[str, float]
) -> dict[str, OperatingPoint]:
    """The cheapest candidates whose metric is at most ``max_drops[name]`` below that of the first, the full model."""
    full = candidates[0]
    points = {}
    for name, drop in max_drops.items():
        lowest = full.metric_value - drop - _TOLERANCE
        allowed = [candidate for candidate in candidates if candidate.metric_value >= lowest]
        best = min(allowed, key=lambda candidate: (candidate.flops_share, -candidate.metric_value))
        points[name] = OperatingPoint(best.policy, metric, best.metric_value, best.flops_share)
    return points


def _dynamic_policies(model: ElasticModel, widths: Sequence[float], exit_rule: ExitRuleName) -> Iterator[Policy]:
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
    """A run without exits, recorded at every exit, the last layer included."""

    logits: np.ndarray  # ``(exits + 1, examples, outputs)``
    flops: np.ndarray  # of an example that leaves at that exit, ``(exits + 1, examples)``
    flops_without_exits: np.ndarray  # of all layers without any exit classifier, ``(examples,)``


def _run_all_exits(engine: Engine, examples: TokenizedExamples, *, batch_size: int, device: torch.device) -> _AllExits:
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
    return _AllExits(logits.values.swapaxes(0, 1), flops.values.T, without_exits.values)


def _evaluate_exits(
    all_exits: _AllExits,
    policy: Policy,
    examples: TokenizedExamples,
    *,
    full_flops: float,
    task: Task,
    num_thresholds: int,
) -> Iterator[PolicyCandidate]:
    """The policy without exits, and with each threshold."""

    def candidate(exits: ExitRule | None, logits: np.ndarray, flops: np.ndarray) -> PolicyCandidate:
        share = float(flops.mean(dtype=np.float64)) / full_flops
        return PolicyCandidate(replace(policy, exits=exits), primary_metric(task, logits, examples), share)

    if policy.gates:
        yield candidate(None, all_exits.logits[-1], all_exits.flops_without_exits)
    if policy.exits is None:
        return
    logits = torch.from_numpy(all_exits.logits)
    example_indices = np.arange(len(examples))
    for rule in _candidate_rules(logits, policy.exits.name, task, count=num_thresholds):
        exit_indices = _exit_indices(logits, rule, task).numpy()
        taken = exit_indices, example_indices
        yield candidate(rule, all_exits.logits[taken], all_exits.flops[taken])


def _exit_indices(logits: torch.Tensor, rule: ExitRule, task: Task) -> torch.Tensor:
    """The index of the exit that each example leaves at, the last layer's if at none, ``(examples,)``."""
    indices = torch.full(logits.shape[1:2], len(logits) - 1)
    for index in reversed(range(len(logits) - 1)):
        should_exit = rule.should_exit(list(logits[: index + 1]), task_type=task.task_type)
        indices = torch.where(should_exit, index, indices)
    return indices


def _candidate_rules(logits: torch.Tensor, name: ExitRuleName, task: Task, *, count: int) -> list[ExitRule]:
    """Rules whose thresholds are even quantiles of the examples' scores."""
    exit_logits = logits[:-1]
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
