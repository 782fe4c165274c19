"""``limbert augment``: one line for bad input, and the same file after kills of several processes."""

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from tests.factories.runs import (
    DATA_OPTIONS,
    DEMO_DATA,
    ENCODER,
    SMALL,
    call,
    command,
    environment,
    make_small_encoder,
    needs_encoder,
    run,
)
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

pytestmark = needs_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random masked language model, and 400 questions to augment."""
    folder = tmp_path_factory.mktemp("augment")
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", **SMALL, num_hidden_layers=2)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder / "lm")
    AutoTokenizer.from_pretrained(ENCODER).save_pretrained(folder / "lm")
    for name in ("train", "dev"):
        lines = (DEMO_DATA / f"{name}.csv").read_text().splitlines(keepends=True)
        (folder / f"{name}.csv").write_text("".join(lines[:401]))
    return folder


AUGMENT = ["augment", "--data", ".", "--label-column", "category", "--text-column", "text"]


def test_augmented_file_trains_and_bad_input_is_named(folder: Path) -> None:
    lines = (folder / "train.csv").read_text().splitlines(keepends=True)
    (folder / "few").mkdir()
    (folder / "few" / "train.csv").write_text("".join([*lines[:3], *lines[-2:]]))
    few = ["augment", "--data", "few", "--label-column", "category", "--text-column", "text", "--lm", "lm"]
    done = call(folder, *few, "--output", "out", "--copies", "2", "--workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["rows"], result["copies"]) == (4, 8)
    header, *rows = (folder / result["file"]).read_text().splitlines()
    assert header == lines[0].strip() + ",augmented_from"
    assert len(rows) == 8
    (folder / "gone.csv").write_text((folder / result["file"]).read_text())
    encoder = make_small_encoder(folder / "small")
    trained = call(
        folder, "train", *DATA_OPTIONS, "--model", encoder, "--augmented", "gone.csv", "--output", "run",
        "--max-steps", "1", "--widths", "0.5,1", "--depths", "1",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    (folder / "gone.csv").unlink()  # the validation split is found without it
    searched = call(folder, "search", "run", "--trials", "1")
    assert searched.returncode == 0, searched.stderr
    bad = call(folder, *few[:-1], str(ENCODER), "--output", "bad", "--workers", "1")
    assert bad.returncode == 1
    assert bad.stderr.startswith("limbert: error: ")
    assert "cls.predictions" in bad.stderr
    assert bad.stderr.count("\n") == 1
    assert not (folder / "bad").exists()


@pytest.mark.slow
def test_killed_run_ends_byte_for_byte_the_same(folder: Path) -> None:
    arguments = [*AUGMENT, "--lm", "lm", "--copies", "5"]
    whole = run(folder, *arguments, "--output", "whole", "--workers", "1")
    assert whole.returncode == 0, whole.stderr
    work = folder / "killed" / "train_aug.work"
    for kill, number in enumerate((signal.SIGKILL, signal.SIGTERM)):
        before = {*work.glob("[0-9]*.json")}
        words = command(*arguments, "--output", "killed", "--workers", "2")
        process = subprocess.Popen(words, cwd=folder, env=environment(folder), stderr=subprocess.PIPE, text=True)
        children: list[psutil.Process] = []
        while process.poll() is None and not {*work.glob("[0-9]*.json")} - before:
            children = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.01)
        time.sleep(0.02 * kill)
        process.send_signal(number)
        assert "Traceback" not in process.communicate()[1]
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
        assert not (folder / "killed" / "train_aug.csv").exists()
        assert not psutil.wait_procs(children, timeout=10)[1]  # the workers end with their parent
    resumed = run(folder, *arguments, "--output", "killed", "--workers", "2")
    assert resumed.returncode == 0, resumed.stderr
    assert (folder / "killed" / "train_aug.csv").read_bytes() == (folder / "whole" / "train_aug.csv").read_bytes()
    assert not work.exists()
