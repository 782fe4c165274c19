"""What a report is made of: the files that a run keeps, read once and checked."""

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from limbert.core.space import Space
from limbert.data.tasks import Task
from limbert.errors import CheckpointError, LimbertError
from limbert.evaluation.policies import POLICIES_NAME
from limbert.evaluation.profile_rows import PROFILE_NAME, ProfileRow, read_profile
from limbert.evaluation.results import LOG_NAME, RESULTS_NAME
from limbert.files import read_json_lines
from limbert.inference.policy import OperatingPoint, Policy, operating_points
from limbert.model.checkpoint import RECORD_FILENAME, read_record


TUNE_NAME = "tune.jsonl"


@dataclass(frozen=True)
class RunData:
    """The files of one run.

    Attributes:
        path: its folder, as the user wrote it.
        record: ``limbert.json``.
        task: what the model answers.
        space: what it was trained for.
        results: a row a sub-network, the largest first: metric, parameters, FLOPs on the development set.
        profile: what was measured, a row a sub-network and setting; empty if nothing was.
        tried: policies judged on the validation slice; empty if none were.
        points: operating points by name.
        spent: what they did on which data.
        log: of the training.
    """

    path: str
    record: dict[str, Any]
    task: Task
    space: Space
    results: list[dict[str, Any]]
    profile: list[ProfileRow]
    policy_candidates: list[dict[str, Any]]
    operating_points: dict[str, OperatingPoint]
    policy_results: list[dict[str, Any]]
    training_log: list[dict[str, Any]]

    @property
    def metric(self) -> str:
        """The metric that counts."""
        return self.task.primary_metric

    @property
    def grid_results(self) -> list[dict[str, Any]]:
        """Rows of the sub-networks of a width and a depth; the others were found off the grid by a search."""
        return [row for row in self.results if row.get("width") is not None and row.get("depth") is not None]

    @property
    def full_result(self) -> dict[str, Any]:
        """The row of the full model."""
        return max(self.grid_results, key=lambda row: (row["params"], row["flops"]))

    def metric_value(self, row: dict[str, Any]) -> float:
        """The metric that counts, of a row with ``metrics``; of several development sets the mean."""
        return fmean(value for name, value in row["metrics"].items() if name.rpartition("/")[2] == self.metric)

    def find_policy_result(self, point_name: str, dataset: str) -> dict[str, Any] | None:
        """What an operating point, as it is now, did on ``development`` or ``validation`` data; None if not kept."""
        for row in self.policy_results:
            if (row["name"], row["data"]) == (point_name, dataset) and row["settings"] == self.operating_points[
                point_name
            ].policy.to_dict():
                return row
        return None


def read_run(path: str) -> RunData:
    """Read a run's folder.

    Raises:
        CheckpointError: if it is missing, was not made by ``limbert train``, or a file in it is broken, naming file
            and line.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"no model folder at {path}")
    record = read_record(folder)
    if "task" not in record or "space" not in record:
        raise CheckpointError(f"{path} has no {RECORD_FILENAME} of a training; make one with limbert train")
    if not (folder / RESULTS_NAME).is_file():
        raise CheckpointError(f"{path} has no {RESULTS_NAME}, which limbert train writes when it is finished")
    try:
        task, space, points = Task.from_dict(record["task"]), Space.from_dict(record["space"]), operating_points(record)
    except (LimbertError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / RECORD_FILENAME} is broken: {error}") from error
    data = RunData(
        path=path,
        record=record,
        task=task,
        space=space,
        results=_read_results(folder / RESULTS_NAME),
        profile=read_profile(folder / PROFILE_NAME) if (folder / PROFILE_NAME).is_file() else [],
        policy_candidates=_read_policy_candidates(folder / TUNE_NAME),
        operating_points=points,
        policy_results=_read_optional(
            folder / POLICIES_NAME,
            {"name": str, "data": str, "settings": dict, "metrics": dict, "flops_mean": float, "flops_full": float,
             "widths": list, "exits": dict},
        ),
        training_log=_read_optional(folder / LOG_NAME, {"phase": str, "step": float}),
    )  # fmt: skip
    for row in [*data.results, *data.policy_results]:
        name = row.get("subnet", row.get("name"))
        try:
            good = math.isfinite(data.metric_value(row))
        except (TypeError, ValueError):
            good = False
        if not good:
            raise CheckpointError(f"the results of {name} in {path} have no {data.metric}: {row['metrics']}")
    if not data.grid_results:
        raise CheckpointError(f"{folder / RESULTS_NAME} has no sub-network of a width and a depth")
    return data


def _read_results(path: Path) -> list[dict[str, Any]]:
    needs = {"subnet": str, "params": float, "flops": float, "metrics": dict}
    rows = read_json_lines(path, required_keys=needs)
    if not rows:
        raise CheckpointError(f"{path} holds no results")
    return rows


def _read_optional(path: Path, required_keys: dict[str, type]) -> list[dict[str, Any]]:
    return read_json_lines(path, required_keys=required_keys) if path.is_file() else []


def _read_policy_candidates(path: Path) -> list[dict[str, Any]]:
    rows = _read_optional(path, {"policy": str, "value": float, "flops_share": float})
    for number, row in enumerate(rows, start=1):
        try:
            row["shown"] = str(Policy.from_dict(row))
        except LimbertError as error:
            raise CheckpointError(f"{path}, row {number}: {error}") from error
    return rows
