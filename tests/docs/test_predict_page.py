"""Runs the commands of docs/predict.md in a shell, and compares what they print and write with the page."""

import csv
import json
import subprocess
import sys
from pathlib import Path

from tests.factories.code_blocks import BLOCK, commands
from tests.factories.runs import environment, needs_encoder
from tests.factories.servers import make_run

PAGE = (Path(__file__).parents[2] / "docs" / "predict.md").read_text(encoding="utf-8")


@needs_encoder
def test_predict_page_commands_run(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "sst2")
    rows = [
        row for language, text in BLOCK.findall(PAGE) if language == "text" for row in csv.reader(text.splitlines())
    ]
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows(row[:3] for row in rows)
    (tmp_path / "reviews.txt").write_text("A fine film.\nTwo hours too long.\n")
    lines = [line for language, text in BLOCK.findall(PAGE) if language == "console" for line in commands(text)]
    script = "\n".join(["set -e", f'limbert() {{ "{sys.executable}" -m limbert "$@"; }}', *lines])
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line in PAGE.splitlines()] == [
        "reviews.csv: 2 examples",
        "Saved 3 predictions in predictions.csv, 1 of them empty (no text)",
    ]
    with (tmp_path / "predictions.csv").open(newline="") as file:
        written = [*csv.reader(file)]
    assert [row[:3] for row in written] == [row[:3] for row in rows]
    assert written[0] == rows[0]
    assert [bool(row[3]) for row in written] == [bool(row[3]) for row in rows]
    predicted = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["text"] for row in predicted] == ["A fine film.", "Two hours too long."]
