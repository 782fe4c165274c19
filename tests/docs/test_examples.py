"""The scripts of `examples/` run one after the other on real data and the real encoder."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from tests.factories.ports import free_port
from tests.factories.runs import DEMO_DATA, ENCODER, environment, needs_encoder

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(folder: Path, name: str, *words: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@needs_encoder
def test_examples_run_in_order(tmp_path: Path) -> None:
    with (DEMO_DATA / "train.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    with (tmp_path / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows[::4]])
    column = header.index("text")
    (tmp_path / "texts.txt").write_text("\n".join(row[column] for row in rows[:20]), encoding="utf-8")

    options = ["--label", "category", "--model", ENCODER, "--output", "run", "--recipe", "demo", "--max-steps", 3]
    trained = run_example(tmp_path, "train_on_own_data.py", "tickets.csv", *options)
    assert "72 test examples, 24 classes" in trained
    assert trained.count(" accuracy ") == 12

    chosen = run_example(tmp_path, "choose_and_export.py", "run", "--max-latency", "10s", "--seconds", 1)
    assert "logits of" in chosen
    assert (tmp_path / "exported" / "model.onnx").is_file()

    options = ["--port", free_port(), "--rate", 5, "--seconds", 2, "--slo", "60s"]
    served = run_example(tmp_path, "serve_and_load_test.py", "run", "texts.txt", *options)
    assert "10 of 10 requests predicted" in served
