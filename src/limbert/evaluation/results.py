"""TODO."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbert.core.space import is_width_depth_name, parse_width_depth
from limbert.errors import CheckpointError


@dataclass(frozen=True)
class SubnetResult:
    """What one sub-network reaches.

    Attributes:
        subnet: its name, ``WIDTHxDEPTH`` or that of one found by a search.
        params: parameters, embeddings and head included.
        flops: mean floating-point operations an example, at the examples' own lengths.
        metrics: by name; with several development sets, ``SET/METRIC``.
    """

    subnet: str
    params: int
    flops: float
    metrics: dict[str, float]

    def mean_metric(self, metric: str) -> float:
        """One metric, the mean over the development sets where there are several."""
        values = [value for name, value in self.metrics.items() if name.rpartition("/")[2] == metric]
        return sum(values) / len(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``subnet, width, depth, params, flops, metrics``; off the grid width and depth are None."""
        width, depth = parse_width_depth(self.subnet) if is_width_depth_name(self.subnet) else (None, None)
        return {
            "subnet": self.subnet,
            "width": width,
            "depth": depth,
            "params": self.params,
            "flops": round(self.flops),
            "metrics": self.metrics,
        }


RESULTS_NAME = "results.jsonl"
LOG_NAME = "log.jsonl"  # of the training


def read_results(output: str | Path) -> list[SubnetResult]:
    """The results that a finished run wrote into its folder.

    Raises:
        CheckpointError: if they cannot be read.
    """
    path = Path(output) / RESULTS_NAME
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [SubnetResult(row["subnet"], row["params"], row["flops"], row["metrics"]) for row in rows]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the results in {path} cannot be read: {error}") from error
