"""Tuning of policies: widths for the gates' choices, thresholds for the exits, and the choice of operating points."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from limbert.core.config import require, shows_options, take_config
from limbert.core.pareto import pareto_front
from limbert.core.subnet import Subnet
from limbert.core.verb_config import TuneConfig
from limbert.data.metrics import compute_metrics, predictions
from limbert.errors import ConfigError
from limbert.evaluation.evaluate import Progress, evaluate_policy, no_progress, policy_row, record_temperatures
from limbert.evaluation.guarantee import examples_needed, last_passing
from limbert.evaluation.policy_records import PolicyRecords
from limbert.evaluation.results import (
    POLICIES_NAME,
    PROFILE_NAME,
    TUNE_NAME,
    profile_row_key,
    replace_json_lines,
    require_writable_run,
)
from limbert.files import write_json_lines
from limbert.inference.load import load_checkpoint, load_validation_split, override_data_config
from limbert.inference.policy import (
    OperatingPoint,
    Policy,
    default_exit_rule,
    operating_points,
    reject_token_level_task,
    save_operating_points,
)
from limbert.method.calibration import TEMPERATURES_KEY
from limbert.method.early_exit import EXIT_RULES
from limbert.model.checkpoint import update_record

GUARANTEED = "guaranteed"  # name of the operating point with a guarantee
_TOLERANCE = 1e-9  # slack for comparing metrics
_POINT_BATCH_SIZE = 32  # examples per batch when an operating point is evaluated
_CHOOSING_PART = 3  # with a guarantee every third example chooses the candidates, the others test them
_RESAMPLINGS = 200  # bootstrap samples for standard errors

_logger = logging.getLogger(__name__)


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
    standard_errors: dict[str, float] = field(default_factory=dict)  # of the metric, by operating point


@shows_options(TuneConfig)
def tune(
    run: str | Path,
    *,
    batch_size: int = 64,
    device: str = "auto",
    progress: Progress = no_progress,
    **options: Any,
) -> TuneResult:
    """Search policies on the validation split of the training data, and save operating points in the run.

    ``accurate`` is the cheapest policy that reaches the full model's metric; ``balanced`` and ``fast`` may lose some of
    it. With ``max_drop`` there is also ``guaranteed``: with probability ``confidence`` over the draw of the validation
    examples, its accuracy on new data from the same distribution is at most that many points below the full model's.
    With too few validation examples there is a warning that says how many it needs.

    Written into the run: the points and the temperatures of all sub-networks (``limbert.json``), all candidates
    (``tune.jsonl``) and the points' results on the validation split (``policies.jsonl``). The development set is not
    used.

    Args:
        run: elastic model; without gates and exits only static sub-networks and cascades are tried.
        batch_size: examples per batch; the results do not depend on it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        progress: called with what runs, steps done and steps in all.
        options: those below; settings of `DataConfig` (``data=``, ``train=``, ``dev=``) instead of the training's.

    Raises:
        LimbertError: for a setting out of range, a token-level task, or a run that cannot be tuned or written.
    """
    config, data = take_config(TuneConfig, options)
    run = os.path.expanduser(run)
    require_writable_run(run)
    checkpoint = load_checkpoint(run, device=device)
    task, model = checkpoint.trained_task, checkpoint.model
    reject_token_level_task(task.task_type, "tune")
    if config.max_drop is not None and task.task_type == "regression":
        raise ConfigError("--max-drop guarantees a share of correct predictions; a regression has none, leave it out")
    rule: Any = config.exit_rule or default_exit_rule(task.task_type)
    require(rule in EXIT_RULES, "exit rule", rule, "one of " + ", ".join(EXIT_RULES))
    for width in config.widths:
        Subnet.uniform(model.shape, width=width)  # refuses one that keeps no head
    data_config = override_data_config(checkpoint.data_config, **data)
    validation = load_validation_split(checkpoint, data_config)
    source = data_config.train or data_config.data or task.name
    examples = checkpoint.tokenize(validation)
    checkpoint.log_inputs(f"validation split of {source}", validation, examples)
    records = PolicyRecords(
        model,
        examples,
        task=task,
        widths=config.widths or model.space.widths,
        exit_rule=rule,
        batch_size=batch_size,
        progress=partial(progress, "searching"),
    )
    if task.task_type != "regression":
        record_temperatures(model.record, records.subnet_logits, examples, task=task)
    candidates = evaluate_candidates(records, num_thresholds=config.num_thresholds)
    drops = {"fast": config.fast_drop / 100, "balanced": config.balanced_drop / 100, "accurate": 0.0}
    points = choose_operating_points(candidates, metric=task.primary_metric, max_drops=drops)
    if config.max_drop is not None:
        limits = {"max_drop": config.max_drop / 100, "confidence": config.confidence}
        points |= guaranteed_point(records, num_thresholds=config.num_thresholds, **limits)
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
    temperatures = {TEMPERATURES_KEY: model.record.get(TEMPERATURES_KEY, {})}
    update_record(run, lambda record: record.update(temperatures))
    save_operating_points(run, points)
    if (Path(run) / PROFILE_NAME).exists():  # measurements of earlier points
        old = {*operating_points(model.record), *points}
        replace_json_lines(Path(run) / PROFILE_NAME, [], key=profile_row_key, keep=lambda row: row["subnet"] not in old)
    errors = {name: standard_error(records, point.policy) for name, point in points.items()}
    return TuneResult(candidates, points, task.primary_metric, len(examples), errors)


def evaluate_candidates(records: PolicyRecords, *, num_thresholds: int) -> list[PolicyCandidate]:
    """The metric and FLOPs of all policies, the full model first.

    Every non-decreasing mapping of the gates' choices to widths, each with ``num_thresholds`` exit thresholds; then
    cascades of two sub-networks of the Pareto front. A model without gates and exits has only these and sub-networks.
    """
    task = records.task

    def evaluate(policy: Policy) -> PolicyCandidate:
        logits, flops = records.outputs(policy)
        value = compute_metrics(task, logits, records.labels)[task.primary_metric]
        return PolicyCandidate(policy, value, float(flops.mean(dtype=np.float64)) / records.full_flops)

    candidates = [evaluate(policy) for policy in records.policies(num_thresholds=num_thresholds)]
    best = pareto_policies([candidate for candidate in candidates if candidate.policy.subnet is not None])
    names = [str(candidate.policy.subnet) for candidate in best]
    cascades = records.cascades(names, num_thresholds=num_thresholds)
    return candidates + [evaluate(policy) for policy in cascades]


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


def guaranteed_point(
    records: PolicyRecords, *, max_drop: float, confidence: float, num_thresholds: int
) -> dict[str, OperatingPoint]:
    """The operating point ``guaranteed``; empty, with a warning, if there are too few examples for it."""
    task, order = records.task, np.random.default_rng(0).permutation(len(records.examples))
    choosing = records.select(order[::_CHOOSING_PART])
    testing = records.select(np.delete(order, np.s_[::_CHOOSING_PART]))
    needed = examples_needed(max_drop=max_drop, confidence=confidence)
    if len(testing.examples) < needed:
        _logger.warning(
            "%d validation examples are too few to guarantee a drop of at most %g points with confidence %g; it needs "
            "%d: validate on more data (train --validation), or allow a larger --max-drop",
            len(order), 100 * max_drop, confidence, _CHOOSING_PART * needed // (_CHOOSING_PART - 1) + 1,
        )  # fmt: skip
        return {}
    candidates = evaluate_candidates(choosing, num_thresholds=num_thresholds)
    policies = [candidates[0].policy, *(candidate.policy for candidate in reversed(pareto_policies(candidates)))]

    def is_right(policy: Policy) -> np.ndarray:
        same = predictions(task, testing.outputs(policy)[0]) == testing.labels
        right: np.ndarray = same if same.ndim == 1 else same.all(axis=1)
        return right

    full = is_right(policies[0])
    passed = last_passing(full, map(is_right, policies), max_drop=max_drop, confidence=confidence)
    assert passed is not None  # the full model passes
    logits, flops = records.outputs(policies[passed])
    value = compute_metrics(task, logits, records.labels)[task.primary_metric]
    share = float(flops.mean(dtype=np.float64)) / records.full_flops
    return {GUARANTEED: OperatingPoint(policies[passed], task.primary_metric, value, share)}


def standard_error(records: PolicyRecords, policy: Policy) -> float:
    """The standard error of a policy's metric, by bootstrap over the examples."""
    task, rng, logits = records.task, np.random.default_rng(0), records.outputs(policy)[0]
    samples = (rng.integers(len(logits), size=len(logits)) for _ in range(_RESAMPLINGS))
    values = [compute_metrics(task, logits[rows], records.labels[rows])[task.primary_metric] for rows in samples]
    return float(np.std(values, ddof=1))
