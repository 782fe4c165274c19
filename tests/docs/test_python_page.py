"""Runs the Python blocks of docs/python.md, in order, in one process, with two steps per phase."""

import shutil
from pathlib import Path

import pytest
from tests.factories.code_blocks import BLOCK
from tests.factories.runs import DEMO_DATA, make_small_encoder, needs_encoder, run_python

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = [
    text.replace("ElasticTrainingArguments(", "ElasticTrainingArguments(max_steps=2, ")
    for language, text in BLOCK.findall(PAGE)
    if language == "python" and "push_to_hub" not in text
]


@pytest.mark.slow
@needs_encoder
def test_python_page_blocks_run(tmp_path: Path) -> None:
    make_small_encoder(tmp_path / "path" / "to" / "encoder")
    shutil.copy(DEMO_DATA / "train.csv", tmp_path / "tickets.csv")
    process = run_python(tmp_path, "\n".join(BLOCKS))
    assert process.returncode == 0, process.stderr
    for name in ("1x1", "0.5x1", "1x0.5", "0.5x0.5"):
        assert f"\n{name} " in f"\n{process.stdout}"
    assert "'label':" in process.stdout
    assert (tmp_path / "runs" / "tickets-2" / "limbert.json").is_file()
