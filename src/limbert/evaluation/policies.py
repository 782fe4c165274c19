"""Measure a policy on labelled examples: what it reaches, computes and takes, and how it spends it."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from limbert.core.config import Precision
from limbert.data.task_registry import compute_task_metrics
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.files import atomic_file, read_json_lines
from limbert.inference.engine import Engine
from limbert.inference.policy import Policy
from limbert.inference.predict import _batches, run_policy
from limbert.model.checkpoint import library_versions
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel


@dataclass(frozen=True)
class PolicyResult:
    """What a policy reaches.

    Attributes:
        policy: what ran.
        metrics: by name; with several development sets, ``SET/METRIC``.
        flops_mean: mean floating-point operations an example, gates and off-ramps included.
        flops_full: those of the full model on the same examples.
        time_per_example: seconds of the engine, on this machine at this batch size; texts were tokenised before.
        widths: for each layer of the full model, the share of the examples by the width it ran at; width 0 is not run.
        exits: the share of the examples by the number of layers that ran.
    """

    policy: Policy
    metrics: dict[str, float]
    flops_mean: float
    flops_full: float
    time_per_example: float
    width_shares: list[dict[float, float]]
    exit_shares: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "policy": self.policy.name,
            "settings": self.policy.to_dict(),
            "metrics": self.metrics,
            "flops_mean": round(self.flops_mean),
            "flops_full": round(self.flops_full),
            "time_per_example": self.time_per_example,
            "widths": [{f"{width:g}": share for width, share in layer.items()} for layer in self.width_shares],
            "exits": {str(layers): share for layers, share in self.exit_shares.items()},
        }


def evaluate_policy(
    model: ElasticModel,
    eval_datasets: Mapping[str, TokenizedExamples],
    *,
    task: Task,
    policy: Policy,
    batch_size: int = 32,
    precision: Precision = "fp32",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PolicyResult:
    """Measure one policy on one or more development sets; the first batch runs once more, before the clock.

    Args:
        model: evaluated without dropout.
        sets: labelled examples by the name of the set.
        task: how logits become metrics.
        policy: how sizes are chosen.
        batch_size: examples a batch; only the time depends on it.
        precision: ``"bf16"`` runs under autocast.
        progress: called with batches done and in all.

    Raises:
        ConfigError: if the policy does not fit the model or the task.
    """
    engine = Engine(model, policy, task_type=task.task_type, precision=precision)
    device = model.network.device
    total = sum(len(evaluation_batches(examples.lengths, batch_size=batch_size)) for examples in eval_datasets.values())
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    engine.run(next(_batches(next(iter(eval_datasets.values())), batch_size=batch_size, device=device))[1])
    metrics: dict[str, float] = {}
    found = []
    for name, examples in eval_datasets.items():
        answers = run_policy(engine, examples, batch_size=batch_size, device=device, after_batch=advance)
        prefix = "" if len(eval_datasets) == 1 else f"{name}/"
        measured = compute_task_metrics(task, answers.logits, examples)
        metrics |= {prefix + metric: value for metric, value in measured.items()}
        found.append(answers)
    cost = CostModel(model)
    lengths = np.concatenate([examples.lengths for examples in eval_datasets.values()])
    widths = np.concatenate([answers.widths for answers in found])
    return PolicyResult(
        policy=policy,
        metrics=metrics,
        flops_mean=float(np.concatenate([answers.flops for answers in found]).mean()),
        flops_full=cost.mean_flops(model.full, lengths),
        time_per_example=sum(answers.seconds for answers in found) / len(lengths),
        width_shares=[_value_shares(layer) for layer in widths.T],
        exit_shares={
            int(layers): share for layers, share in _value_shares(np.concatenate([a.layers_run for a in found])).items()
        },
    )


def _value_shares(values: np.ndarray) -> dict[float, float]:
    """How often each value occurs, as shares, by rising value."""
    counts = Counter(values.tolist())
    return {value: counts[value] / len(values) for value in sorted(counts)}


POLICIES_NAME = "policies.jsonl"
DatasetSplit = Literal["validation", "development"]


def policy_row(
    name: str,
    result: PolicyResult,
    *,
    split: DatasetSplit,
    source: str | None,
    num_examples: int,
    batch_size: int,
    device: str,
) -> dict[str, Any]:
    """One measured operating point as plain values.

    Args:
        name: of the point.
        result: what it did.
        data: which set it ran on.
        source: the folder, file or task that the set came from.
        examples: in the set.
        batch_size: examples a batch; the time depends on it.
        device: that it ran on.
    """
    return {
        "name": name,
        "data": split,
        "source": source,
        "examples": num_examples,
        **result.to_dict(),
        "batch_size": batch_size,
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
    }


def replace_policy_rows(run_dir: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Keep these rows instead of all others: the points are new.

    Raises:
        StorageError: if the file cannot be written; the old one stays.
    """
    with atomic_file(Path(run_dir) / POLICIES_NAME) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def upsert_policy_row(run_dir: str | Path, row: dict[str, Any]) -> None:
    """Keep one row; an earlier one of the same point and set goes.

    Raises:
        CheckpointError: if the rows that are there cannot be read.
        StorageError: if the file cannot be written; the old one stays.
    """
    path = Path(run_dir) / POLICIES_NAME
    there = read_json_lines(path, required_keys={"name": str, "data": str}) if path.exists() else []
    others = [one for one in there if (one["name"], one["data"]) != (row["name"], row["data"])]
    replace_policy_rows(run_dir, [*others, row])
