"""Print what each type of policy reaches on the development set as a Markdown table.

Usage: ``dynamic_table.py RUN [DATA]`` after ``limbert tune RUN``. For static sub-networks, gates, exits and both, it
takes the cheapest policy that ``tune`` tried whose metric on the validation split is at most 0, 1 or 3 points below the
full model's, and evaluates it on the development set.
"""

import sys
from functools import partial
from pathlib import Path

from limbert import Policy, evaluate
from limbert.evaluation.results import PolicyResult
from limbert.evaluation.tune import PolicyCandidate
from limbert.files import read_json_lines

TITLES = {
    "static": "static sub-network",
    "width": "width (gates)",
    "depth": "depth (exits)",
    "width+depth": "width+depth",
}
DROPS = (0.0, 0.01, 0.03)


def main(run: Path, data: str | None) -> None:
    rows = read_json_lines(run / "tune.jsonl", required_keys={"value": float, "flops_share": float})
    candidates = [PolicyCandidate(Policy.from_dict(row), row["value"], row["flops_share"]) for row in rows]
    evaluate_on_dev = partial(evaluate, run, batch_size=32, data=data)
    full = candidates[0]
    (full_result,) = evaluate_on_dev(policy=full.policy)
    metrics = list(full_result.metrics)
    print("| policy | allowed loss on validation | settings | FLOPs | " + " | ".join(metrics) + " |")
    print("|---|---:|---|---:|" + "---:|" * len(metrics))
    print(_row("full model", "", full_result))
    results = {full.policy: full_result}
    for policy_type, title in TITLES.items():
        same_type = [candidate for candidate in candidates if candidate.policy.name.partition(":")[0] == policy_type]
        for drop in DROPS:
            loss = f"{100 * drop:g} point{'s' * (drop != 0.01)}"
            allowed = [
                candidate for candidate in same_type if candidate.metric_value >= full.metric_value - drop - 1e-9
            ]
            if not allowed:
                print(f"| {title} | {loss} | none | |" + "  |" * len(metrics))
                continue
            policy = min(allowed, key=lambda candidate: candidate.flops_share).policy
            if policy not in results:
                (results[policy],) = evaluate_on_dev(policy=policy)
            print(_row(title, loss, results[policy]))


def _row(title: str, loss: str, result: PolicyResult) -> str:
    flops = 100 * result.flops_mean / result.flops_full
    values = " | ".join(f"{100 * value:.1f}" for value in result.metrics.values())
    return f"| {title} | {loss} | {str(result.policy).replace('; ', ', ')} | {flops:.1f} % | {values} |"


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit("usage: dynamic_table.py RUN [DATA]")
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else None)
