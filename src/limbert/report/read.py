"""Read and check the files of a training run that a report is made of; imports neither torch nor the trainer."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from limbert.core.space import Space
from limbert.core.task_types import TASK_TYPE_SPECS
from limbert.data.tasks import Task
from limbert.errors import CheckpointError, LimbertError
from limbert.evaluation import results as files
from limbert.evaluation.results import ProfileRow, mean_metric, read_profile
from limbert.files import read_json_lines

RECORD_NAME = "limbert.json"

Row = dict[str, Any]


@dataclass(frozen=True)
class RunData:
    """The files of one run; all but the first five may be empty."""

    path: str  # the run directory, as the user wrote it
    record: Row  # ``limbert.json``
    task: Task  # that the model was trained for
    space: Space  # the trained sub-networks
    results: list[Row]  # a row per sub-network, on the development set; ``examples`` and ``baseline`` are optional
    profile: list[ProfileRow]  # measured latency, size and memory
    policy_candidates: list[Row]  # policies that ``limbert tune`` tried on the validation split
    policy_results: list[Row]  # operating points, each on the development set or the validation split
    training_log: list[Row]  # losses and validation scores by phase and step

    @property
    def metric(self) -> str:
        """The task's primary metric."""
        return self.task.primary_metric

    @property
    def operating_points(self) -> dict[str, Row]:
        """By name: ``policy``, ``widths``, ``exits``; ``validation`` and ``flops_share``, on the validation split."""
        points: dict[str, Row] = self.record.get("operating_points", {})
        return points

    @property
    def grid_results(self) -> list[Row]:
        """Rows of sub-networks with a width and a depth; a search finds others."""
        return [row for row in self.results if row.get("width") is not None and row.get("depth") is not None]

    @property
    def full_result(self) -> Row:
        """The row of the full model."""
        return max(self.grid_results, key=lambda row: (row["params"], row["flops"]))

    @property
    def baseline(self) -> float | None:
        """The primary metric of the majority class; None where the results have no baseline."""
        metrics = self.results[0].get("baseline")
        return mean_metric(metrics, self.metric) if metrics else None

    @property
    def num_examples(self) -> int | None:
        """Development examples that the metric is a mean over; None where unknown, or where it is one over tokens."""
        if TASK_TYPE_SPECS[self.task.task_type].token_level and self.metric != "exact_match":
            return None
        rows = [row for row in self.policy_results if row["data"] == "development" and self.is_comparable(row)]
        counts = [row.get("examples") for row in [self.results[0], *rows]]
        return next((count for count in counts if isinstance(count, int)), None)

    def metric_value(self, row: Row) -> float:
        """The primary metric of a row with ``metrics``; its mean where there are several development sets."""
        return mean_metric(row["metrics"], self.metric)

    def is_comparable(self, policy_row: Row) -> bool:
        """Whether a policy ran on the examples of ``results.jsonl``: the full model's mean FLOPs are the same."""
        return abs(policy_row["flops_full"] / self.full_result["flops"] - 1) < 1e-3

    def find_policy_result(self, point_name: str, split: str) -> Row | None:
        """The row of an operating point's present policy on ``development`` or ``validation`` data."""
        point = self.operating_points[point_name]
        for row in self.policy_results:
            settings = {key: point.get(key) for key in (*row["settings"], *(point.keys() & {"temperatures"}))}
            if (row["name"], row["data"], row["settings"]) == (point_name, split, settings):
                return row
        return None


def group_by_setting(profile: list[ProfileRow]) -> dict[str, dict[str, ProfileRow]]:
    """Rows by setting and sub-network, settings in the order of the file; of repeated measurements the last.

    Only rows of one setting are comparable. It names the machine where there are several.
    """
    groups: dict[str, dict[str, ProfileRow]] = {}
    several = len({json.dumps(row.hardware, sort_keys=True) for row in profile}) > 1
    for row in profile:
        machine = [f"{name} {value}" for name, value in row.hardware.items() if value is not None]
        groups.setdefault(", ".join([str(row.setup), *(machine if several else [])]), {})[row.subnet] = row
    return groups


def describe_policy(settings: Mapping[str, Any]) -> str:
    """Saved settings of a policy as text, such as ``width+depth; widths 0.5, 1; entropy 0.4``."""
    parts = [str(settings["policy"])]
    if widths := settings.get("widths"):
        parts.append("widths " + ", ".join(f"{width:g}" for width in widths))
    if exits := settings.get("exits"):
        parts.append(f"{exits['rule']} {exits['threshold']:g}")
    return "; ".join(parts)


def read_run(path: str) -> RunData:
    """Read a run directory.

    Raises:
        CheckpointError: if it is missing, was not made by ``limbert train``, or a file in it is broken; names the file
            and line.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"no model folder at {path}")
    for name in (RECORD_NAME, files.RESULTS_NAME):
        if not (folder / name).is_file():
            raise CheckpointError(f"{path} has no {name}; limbert train writes it when it finishes")
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        task, space = Task.from_dict(record["task"]), Space.from_dict(record["space"])
        for point in record.get("operating_points", {}).values():
            describe_policy(point)
            [float(value) for value in (point["flops_share"], *point["validation"].values())]
    except (LimbertError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / RECORD_NAME} is not the record of a training run: {error!r}") from error
    read = partial(_read_rows, folder)
    policy_keys = {"settings": dict, "metrics": dict, "flops_mean": float, "flops_full": float, "widths": list}
    data = RunData(
        path,
        record,
        task,
        space,
        results=read(files.RESULTS_NAME, subnet=str, params=float, flops=float, metrics=dict),
        profile=read_profile(folder / files.PROFILE_NAME) if (folder / files.PROFILE_NAME).is_file() else [],
        policy_candidates=read(files.TUNE_NAME, policy=str, value=float, flops_share=float),
        policy_results=read(files.POLICIES_NAME, name=str, data=str, exits=dict, **policy_keys),
        training_log=read(files.LOG_NAME, phase=str, step=float),
    )
    if not data.grid_results:
        raise CheckpointError(f"{folder / files.RESULTS_NAME} has no sub-network with a width and a depth")
    for row in [*data.results, *data.policy_results]:
        try:
            math.ceil(data.metric_value(row))  # neither infinite nor NaN
        except (TypeError, ValueError, ArithmeticError) as error:
            of = row.get("subnet", row.get("name"))
            raise CheckpointError(f"the results of {of} in {path} have no {data.metric}: {row['metrics']}") from error
    return data


def _read_rows(folder: Path, file_name: str, /, **required_keys: type) -> list[Row]:
    path = folder / file_name
    return read_json_lines(path, required_keys=required_keys) if path.is_file() else []
