"""Broken lines are named by file and line; operating points keep one row a point and data set."""

import json
from pathlib import Path

import pytest

from limbert.errors import CheckpointError
from limbert.evaluation.policies import POLICIES_NAME, replace_policy_rows, upsert_policy_row
from limbert.files import read_json_lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{half", "rows.jsonl, line 3: not JSON"),
        ("[1]", "rows.jsonl, line 3: list, not an object"),
        ('{"name": "x"}', "rows.jsonl, line 3: lacks 'value'"),
        ('{"name": "x", "value": "1"}', "rows.jsonl, line 3: value is '1'; it must be a float"),
        ('{"name": "x", "value": true}', "line 3: value is True"),
        ('{"name": "x", "value": NaN}', "line 3: value is nan"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": "a", "value": 1}\n\n' + line + "\n")
    with pytest.raises(CheckpointError, match=message.replace("[", r"\[").replace("]", r"\]")):
        read_json_lines(path, required_keys={"name": str, "value": float})
    path.write_text('{"name": "a", "value": 1}\n\n{"name": "b", "value": 0.5, "more": null}\n')
    assert [row["name"] for row in read_json_lines(path, required_keys={"name": str, "value": float})] == ["a", "b"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.jsonl cannot be read: No such file"):
        read_json_lines(tmp_path / "nowhere.jsonl", required_keys={})


def test_a_point_has_one_row_for_each_data_set(tmp_path: Path) -> None:
    replace_policy_rows(tmp_path, [{"name": "fast", "data": "validation", "n": 1}])
    upsert_policy_row(tmp_path, {"name": "fast", "data": "development", "n": 2})
    upsert_policy_row(tmp_path, {"name": "balanced", "data": "development", "n": 3})
    upsert_policy_row(tmp_path, {"name": "fast", "data": "development", "n": 4})
    rows = [json.loads(line) for line in (tmp_path / POLICIES_NAME).read_text().splitlines()]
    assert [(row["name"], row["data"], row["n"]) for row in rows] == [
        ("fast", "validation", 1),
        ("balanced", "development", 3),
        ("fast", "development", 4),
    ]
    replace_policy_rows(tmp_path, [])
    assert (tmp_path / POLICIES_NAME).read_text() == ""
