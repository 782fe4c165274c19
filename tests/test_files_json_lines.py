"""Broken lines of a JSON lines file are named by file and line."""

from pathlib import Path

import pytest

from limbert.errors import CheckpointError
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
