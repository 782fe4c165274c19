"""Operating points keep one row per name and data set."""

import json
from pathlib import Path

from limbert.evaluation.policies import POLICIES_NAME, replace_policy_rows, upsert_policy_row


def test_policy_has_one_row_per_data_set(tmp_path: Path) -> None:
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
