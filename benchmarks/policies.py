"""Do dynamic policies pay, and does the guaranteed operating point hold? Forward passes once, then everything in numpy.

Budgets: for each share of the full model's FLOPs the best static sub-network and the best policy (cascade, exits,
gates) of no more FLOPs are chosen on a random half of the development set and measured on the other half; means over
the splits. Nothing that was trained has seen either half, while a validation split chose the checkpoint and a teacher
may have been trained on it. No loss: likewise the cheapest policy that reaches the full model.

Guarantee: the development set is the population. Again and again some of its examples are drawn, tune's `guaranteed`
point is chosen on them, and its drop is measured on all; it may exceed the allowed drop in 1 - confidence of the draws.
Beside it the cheapest candidate within the allowed drop on the drawn examples, as without a guarantee.

Example: python benchmarks/policies.py runs/sst2 runs/banking --resamplings 200 --examples 1000 --max-drop 1
"""

import argparse
import json
import statistics
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
from limbert.inference.load import LoadedCheckpoint, load_checkpoint, override_data_config
from limbert.inference.policy import Policy, default_exit_rule

BUDGETS = [percent / 100 for percent in range(20, 65, 5)]
THRESHOLDS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="trained elastic models")
    parser.add_argument("--data", help="folder with dev.* (default: the training's)")
    parser.add_argument("--splits", type=int, default=20, help="halvings of the development set")
    parser.add_argument("--resamplings", type=int, default=0, help="draws of the guarantee")
    parser.add_argument("--examples", type=int, default=1000, help="validation examples of each draw")
    parser.add_argument("--max-drop", type=float, default=1.0, help="points")
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for run in arguments.runs:
        records = _records(load_checkpoint(run), arguments.data)
        row = {"run": Path(run).name, "examples": len(records.examples)} | _budgets(records, arguments.splits)
        if arguments.resamplings:
            row["guarantee"] = _guarantee(records, arguments)
        print(json.dumps(row), flush=True)


def _records(checkpoint: LoadedCheckpoint, data: str | None) -> PolicyRecords:
    config, task = override_data_config(checkpoint.data_config, data=data), checkpoint.trained_task
    return PolicyRecords(
        checkpoint.model,
        checkpoint.tokenize(next(iter(load_evaluation_data(config, task).values()))),
        task=task,
        widths=checkpoint.model.space.widths,
        exit_rule=default_exit_rule(task.task_type),
    )


def _measure(records: PolicyRecords, policy: Policy) -> tuple[float, float]:
    """The metric and the share of the full model's FLOPs, both in percent."""
    logits, flops = records.outputs(policy)
    value = compute_metrics(records.task, logits, records.labels)[records.task.primary_metric]
    return 100 * value, 100 * float(flops.mean(dtype=np.float64)) / records.full_flops


def _budgets(records: PolicyRecords, splits: int) -> dict[str, object]:
    outcomes: dict[str, list[tuple[float, float]]] = {}
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(records.examples))
        choosing, measuring = (records.select(half) for half in np.array_split(order, 2))
        candidates = evaluate_candidates(choosing, num_thresholds=THRESHOLDS)
        static = [candidate for candidate in candidates if candidate.policy.subnet]
        no_loss = choose_operating_points(candidates, metric="", max_drops={"accurate": 0.0})["accurate"]
        policies = {"full": candidates[0].policy, "no loss": no_loss.policy}
        for budget in BUDGETS:
            policies |= {f"static {budget}": _best(static, budget), f"policy {budget}": _best(candidates, budget)}
        for name, policy in policies.items():
            outcomes.setdefault(name, []).append(_measure(measuring, policy))
    means = {name: tuple(np.round(np.mean(measured, axis=0), 2).tolist()) for name, measured in outcomes.items()}
    gains = np.array(
        [
            [outcomes[f"policy {budget}"][split][0] - outcomes[f"static {budget}"][split][0] for budget in BUDGETS]
            for split in range(splits)
        ]
    ).mean(axis=1)
    return {"gain": round(float(gains.mean()), 2), "spread": round(float(gains.std(ddof=1)), 2)} | means


def _best(candidates: list[PolicyCandidate], budget: float) -> Policy:
    allowed = [candidate for candidate in candidates if candidate.flops_share <= budget]
    return max(allowed, key=lambda candidate: (candidate.metric_value, -candidate.flops_share)).policy


def _guarantee(records: PolicyRecords, arguments: argparse.Namespace) -> dict[str, float]:
    full = _measure(records, Policy(subnet="1x1"))[0]
    outcomes: dict[str, list[tuple[float, float]]] = {GUARANTEED: [], "cheapest": []}
    for seed in range(arguments.resamplings):
        order = np.random.default_rng(seed).permutation(len(records.examples))
        drawn = records.select(order[: arguments.examples])
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


if __name__ == "__main__":
    main()
