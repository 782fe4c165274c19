"""Do dynamic policies pay, and does the guaranteed operating point hold? Forward passes once, then everything in numpy.

Budgets: for each share of the full model's FLOPs the best static sub-network and the best policy (cascade, exits, gates)
of no more FLOPs are chosen on the validation split, and both are measured on the development set. No loss: likewise the
cheapest policy that reaches the full model on the validation split.

Guarantee: the development set is the population. Again and again some of its examples are drawn, tune's `guaranteed`
point is chosen on them, and its drop is measured on all; it may exceed the allowed drop in 1 - confidence of the draws.
Beside it the cheapest candidate within the allowed drop on the drawn examples, as without a guarantee.

Example: python benchmarks/policies.py runs/sst2 runs/banking --resamplings 200 --examples 1000 --max-drop 1
"""

import argparse
import copy
import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from limbert.data.load import load_evaluation_data
from limbert.data.metrics import compute_metrics
from limbert.evaluation.policy_records import PolicyRecords
from limbert.evaluation.tune import (
    GUARANTEED,
    PolicyCandidate,
    choose_operating_points,
    evaluate_candidates,
    guaranteed_point,
)
from limbert.inference.load import LoadedCheckpoint, load_checkpoint, load_validation_split, override_data_config
from limbert.inference.policy import Policy, default_exit_rule

BUDGETS = [percent / 100 for percent in range(20, 65, 5)]
THRESHOLDS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="trained elastic models")
    parser.add_argument("--data", help="folder with train.* and dev.* (default: the training's)")
    parser.add_argument("--resamplings", type=int, default=0, help="draws of the guarantee")
    parser.add_argument("--examples", type=int, default=1000, help="validation examples of each draw")
    parser.add_argument("--max-drop", type=float, default=1.0, help="points")
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for run in arguments.runs:
        validation, dev = _records(load_checkpoint(run), arguments.data)
        rows = _budgets(validation, dev)
        row = {"run": Path(run).name, "examples": [len(validation.examples), len(dev.examples)]} | rows
        if arguments.resamplings:
            row["guarantee"] = _guarantee(dev, arguments)
        print(json.dumps(row), flush=True)


def _records(checkpoint: LoadedCheckpoint, data: str | None) -> tuple[PolicyRecords, PolicyRecords]:
    config, task = override_data_config(checkpoint.data_config, data=data), checkpoint.trained_task
    dev = next(iter(load_evaluation_data(config, task).values()))
    validation, dev = (
        PolicyRecords(
            checkpoint.model,
            checkpoint.tokenize(examples),
            task=task,
            widths=checkpoint.model.space.widths,
            exit_rule=default_exit_rule(task.task_type),
        )
        for examples in (load_validation_split(checkpoint, config), dev)
    )
    return validation, dev


def _measure(records: PolicyRecords, policy: Policy) -> tuple[float, float]:
    """The metric and the share of the full model's FLOPs, both in percent."""
    logits, flops = records.outputs(policy)
    value = compute_metrics(records.task, logits, records.labels)[records.task.primary_metric]
    return 100 * value, 100 * float(flops.mean(dtype=np.float64)) / records.full_flops


def _budgets(validation: PolicyRecords, dev: PolicyRecords) -> dict[str, object]:
    candidates = evaluate_candidates(validation, num_thresholds=THRESHOLDS)
    static = [candidate for candidate in candidates if candidate.policy.subnet]
    rows = []
    for budget in BUDGETS:
        chosen = [_best(part, budget) for part in (static, candidates)]
        measured = [(str(policy), *_measure(dev, policy)) for policy in chosen]
        rows.append({"budget": budget, "static": measured[0], "policy": measured[1]})
    gains = [row["policy"][1] - row["static"][1] for row in rows]
    point = choose_operating_points(candidates, metric="", max_drops={"accurate": 0.0})["accurate"]
    return {
        "full": _measure(dev, candidates[0].policy)[0],
        "gain": statistics.mean(gains),
        "no_loss": (str(point.policy), *_measure(dev, point.policy)),
        "budgets": rows,
    }


def _best(candidates: list[PolicyCandidate], budget: float) -> Policy:
    allowed = [candidate for candidate in candidates if candidate.flops_share <= budget]
    return max(allowed, key=lambda candidate: (candidate.metric_value, -candidate.flops_share)).policy


def _guarantee(records: PolicyRecords, arguments: argparse.Namespace) -> dict[str, float]:
    full = _measure(records, Policy(subnet="1x1"))[0]
    outcomes: dict[str, list[tuple[float, float]]] = {GUARANTEED: [], "cheapest": []}
    for seed in range(arguments.resamplings):
        drawn = _draw(records, np.random.default_rng(seed).permutation(len(records.examples))[: arguments.examples])
        limit = arguments.max_drop / 100
        points = guaranteed_point(
            drawn, max_drop=limit, confidence=arguments.confidence, num_thresholds=THRESHOLDS
        ) | choose_operating_points(
            evaluate_candidates(drawn, num_thresholds=THRESHOLDS), metric="", max_drops={"cheapest": limit}
        )
        for name, measured in outcomes.items():
            measured.append(_measure(records, points[name].policy))
    return {
        f"{name}_{what}": value
        for name, measured in outcomes.items()
        for what, value in (
            ("exceeds", 100 * statistics.mean(full - metric > arguments.max_drop + 1e-9 for metric, _ in measured)),
            ("flops", statistics.mean(flops for _, flops in measured)),
        )
    }


def _draw(records: PolicyRecords, indices: np.ndarray) -> PolicyRecords:
    """The records of some of the examples, without running them again."""
    drawn = copy.copy(records)
    drawn.examples, drawn.labels = records.examples.select(indices), records.labels[indices]
    drawn.subnet_logits = {name: logits[indices] for name, logits in records.subnet_logits.items()}
    drawn._records = {
        key: replace(
            record,
            logits=record.logits[:, indices],
            flops=record.flops[:, indices],
            flops_without_exits=record.flops_without_exits[indices],
        )
        for key, record in records._records.items()
    }
    return drawn


if __name__ == "__main__":
    main()
