"""Print what each kind of policy reaches on dev, as a Markdown table: ``dynamic_table.py RUN [DATA]``.

Reads what ``limbert tune RUN`` tried. For each kind (static sub-networks, gates, exits, both) the cheapest policy is
taken whose metric on the validation slice is at most 0, 1 and 3 points below the full model's; those run on dev here.
"""

import json
import sys
from pathlib import Path

from limbert.data.load import load_evaluation_data
from limbert.data.tokenize import tokenize_texts
from limbert.evaluation.evaluate import evaluate_policy
from limbert.evaluation.results import PolicyResult
from limbert.evaluation.tune import PolicyCandidate
from limbert.inference.load import load_checkpoint, override_data_config
from limbert.inference.policy import Policy

KINDS = {"static": "one static size", "width": "width (gates)", "depth": "depth (exits)", "width+depth": "width+depth"}
DROPS = (0.0, 0.01, 0.03)


def main(run: Path, data: str | None) -> None:
    tried = [json.loads(line) for line in (run / "tune.jsonl").read_text(encoding="utf-8").splitlines()]
    candidates = [PolicyCandidate(Policy.from_dict(row), row["value"], row["flops_share"]) for row in tried]
    opened = load_checkpoint(run)
    assert opened.task is not None
    sets = load_evaluation_data(override_data_config(opened.data_config, data=data), opened.task)
    tokens = {name: tokenize_texts(part, opened.tokenizer, max_length=opened.max_length) for name, part in sets.items()}
    results: dict[Policy, PolicyResult] = {}

    def on_dev(policy: Policy) -> PolicyResult:
        if policy not in results:
            results[policy] = evaluate_policy(opened.model, tokens, task=opened.task, policy=policy)
        return results[policy]

    full = candidates[0]
    metrics = [*on_dev(full.policy).metrics]
    print("| policy | may lose on validation | settings | FLOPs | " + " | ".join(metrics) + " |")
    print("|---|---:|---|---:|" + "---:|" * len(metrics))
    _row("full model", "", on_dev(full.policy))
    for kind, title in KINDS.items():
        for drop in DROPS:
            of_kind = [one for one in candidates if one.policy.name.partition(":")[0] == kind]
            good = [one for one in of_kind if one.metric_value >= full.metric_value - drop - 1e-9]
            if good:
                _row(title, f"{100 * drop:g} points", on_dev(min(good, key=lambda one: one.flops_share).policy))
            else:
                print(
                    f"| {title} | {100 * drop:g} points | none reaches it | | " + " | ".join("" for _ in metrics) + " |"
                )


def _row(title: str, drop: str, result: PolicyResult) -> None:
    share = 100 * result.flops_mean / result.flops_full
    values = " | ".join(f"{100 * value:.1f}" for value in result.metrics.values())
    print(f"| {title} | {drop} | {str(result.policy).replace('; ', ', ')} | {share:.1f} % | {values} |")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit("usage: dynamic_table.py RUN [DATA]")
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else None)
