"""``limbert pretrain`` end to end: interrupted, resumed, loaded by plain Transformers, and fine-tuned."""

import json
import logging
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.factories.runs import DATA_OPTIONS, command, environment, make_small_encoder, needs_encoder, run
from transformers import AutoModelForMaskedLM, AutoTokenizer, TrainerCallback

import limbert
from limbert import ElasticModel
from limbert.cli.main import app
from limbert.errors import LimbertError, TrainingInterrupted
from limbert.train.recipes import load_recipe, override_recipe

pytestmark = needs_encoder
WORDS = ["the", "a", "lobster", "crab", "eats", "sees", "small", "large", "unquestionably", "over", "water", "."]
STEPS = 6


class InterruptEvery(TrainerCallback):
    """Sends Ctrl-C in every n-th step."""

    def __init__(self, steps: int) -> None:
        self.every, self.steps = steps, 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.steps += 1
        if self.steps % self.every == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    make_small_encoder(folder / "small")
    (folder / "texts").mkdir()
    rng = np.random.default_rng(0)
    for name in ("one.txt", "two.txt"):
        lines = [" ".join(rng.choice(WORDS, size=20)) for _ in range(120)]
        (folder / "texts" / name).write_text("\n".join(lines))
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LIMBERT_CACHE", str(folder / "cache"))


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LIMBERT_CACHE", str(folder / "cache"))
        pretrain("small", "whole")
    return folder / "whole"


def pretrain(
    model: str, output: str, *, phases: tuple[str, ...] | None = None, steps: int = STEPS, **options: Any
) -> None:
    settings = {"max_steps": steps, "batch_size": 8, "learning_rate": 1e-3}
    space = {"widths": (0.5, 1.0), "depths": (0.67, 1.0)}
    recipe = override_recipe(load_recipe("pretrain"), space=space, every_phase=settings, phases=phases)
    defaults = {"corpus": "texts/*.txt", "max_length": 32, "whole_word": True, "validation": 0.05, "phases": phases}
    limbert.pretrain(model, output=output, recipe=recipe, **defaults | options)


def test_results_and_record_of_a_run(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "results.jsonl").read_text().splitlines()]
    assert [row["subnet"] for row in rows] == ["1x1", "0.5x1", "1x0.67", "0.5x0.67"]
    assert {*rows[0]["metrics"]} == {"accuracy", "loss", "perplexity"}
    record = json.loads((whole / "limbert.json").read_text())
    assert record["phases"] == ["mlm", "width", "depth"]
    assert record["objective"] == "masked-lm"
    assert record["settings"]["corpus"]["whole_word"] is True
    steps = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [(step["phase"], step["step"]) for step in steps if "loss" in step] == [(n, STEPS) for n in record["phases"]]


@torch.no_grad()
def test_plain_transformers_loads_it_with_equal_logits(whole: Path) -> None:
    model = ElasticModel.from_pretrained(whole, head="masked-lm")
    plain, info = AutoModelForMaskedLM.from_pretrained(whole, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = AutoTokenizer.from_pretrained(whole)("the lobster [MASK] a crab", return_tensors="pt")
    expected = model.network.eval()(**inputs).logits
    assert torch.equal(plain.eval()(**inputs).logits, expected)
    assert torch.equal(model.view(model.full)(**inputs).logits, expected)
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert model.space.widths == (0.5, 1.0)


def test_interrupted_run_ends_bit_for_bit_the_same(whole: Path) -> None:
    interrupt, interruptions = InterruptEvery(4), 0  # within phases, each at another step
    while not Path("stopped").exists():
        try:
            pretrain("small", "stopped", callbacks=[interrupt])
        except TrainingInterrupted:
            interruptions += 1
    assert interruptions >= 3
    for name in ("model.safetensors", "results.jsonl"):
        assert Path("stopped", name).read_bytes() == (whole / name).read_bytes()


def test_resuming_with_other_text_is_refused(folder: Path) -> None:
    shutil.copytree("texts", "growing")
    with pytest.raises(TrainingInterrupted):
        pretrain("small", "grown", corpus="growing/*.txt", callbacks=[InterruptEvery(1)])
    with Path("growing/two.txt").open("a") as file:
        file.write("\na lobster")
    with pytest.raises(LimbertError, match="other data"):
        pretrain("small", "grown", corpus="growing/*.txt")


def test_every_subnet_is_fine_tuned(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "whole", "--output", "tuned", "--max-steps", "2", "--phases", "final", "--train-limit", "200"]
    app(["train", *DATA_OPTIONS, *options, "--json"], standalone_mode=False)
    printed = capfd.readouterr().out
    assert [row["subnet"] for row in json.loads(printed)] == ["1x1", "0.5x1", "1x0.67", "0.5x0.67"]
    assert json.loads(Path("tuned/limbert.json").read_text())["phases"] == ["mlm", "width", "depth", "final"]
    before, after = (ElasticModel.from_pretrained(name, head="none") for name in (whole, "tuned"))
    for ours, theirs in zip(after.layers(), before.layers(), strict=True):  # two small steps: the order is the same
        torch.testing.assert_close(ours.intermediate.dense.weight, theirs.intermediate.dense.weight, atol=1e-3, rtol=0)


def test_masked_language_model_skips_phase_mlm(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(whole, "stock", ignore=shutil.ignore_patterns("limbert.json"))
    with caplog.at_level(logging.INFO, logger="limbert"):
        pretrain("stock", "again", steps=1, dev=("texts/two.txt",))
    assert "1 file" in caplog.text
    assert "mlm is skipped" in caplog.text
    assert json.loads(Path("again/limbert.json").read_text())["phases"] == ["width", "depth"]


def test_missing_weights_are_random(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree("small", "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with caplog.at_level(logging.INFO, logger="limbert"):
        pretrain("bare", "scratch", steps=1, phases=("mlm",))
    assert "bare has no weights" in caplog.text


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--corpus", "none.txt"], "corpus none.txt"),
        (["--corpus", "tiny.txt"], "corpus tiny.txt: 2 tokens fill 1 sequences of 64"),
        (["--corpus", "texts/../texts/one.txt", "--dev", "texts"], "texts/../texts/one.txt is development text"),
        (["--corpus", "texts", "--dev", "texts/*.txt"], "corpus texts: all"),
        (["--corpus", "texts/one.txt", "--mask-share", "0"], "0.0"),
        (["--corpus", "texts/one.txt", "--phases", "mlm,gates"], "'gates'"),
        (["--corpus", "texts/one.txt", "--documents", "page"], "'page'"),
        (["--corpus", "texts/one.txt", "--model", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(changes: list[str], named: str) -> None:
    Path("tiny.txt").write_text("two words\n")
    options = [] if "--model" in changes else ["--model", "small"]
    with pytest.raises(LimbertError, match=named):
        app(["pretrain", *changes, *options, "--output", "bad"], standalone_mode=False)
    assert not Path("bad").exists()
    assert not Path("bad.training").exists()


COMMAND = ["pretrain", "--corpus", "texts/*.txt", "--max-length", "32", "--max-steps", "8", "--batch-size", "8",
           "--widths", "0.5,1.0", "--depths", "0.67,1.0", "--threads", "1", "--model", "small",
           "--checkpoint-every", "0.05"]  # fmt: skip


@pytest.mark.slow
def test_killed_run_ends_bit_for_bit_the_same(folder: Path) -> None:
    finished = run(folder, *COMMAND, "--output", "unkilled")
    assert finished.returncode == 0, finished.stderr
    assert "masked-token" in finished.stdout
    work, seen, kills = folder / "killed.training", set(), 0
    while not (folder / "killed").exists():
        process = subprocess.Popen(
            command(*COMMAND, "--output", "killed"),
            cwd=folder,
            env=environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while kills < 3 and process.poll() is None:
            found = {str(path) for path in work.glob("*/checkpoint-*")}
            if found - seen:
                seen |= found
                time.sleep(0.03 * kills)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
    assert kills > 1  # three where this machine lets the test look in time
    assert (folder / "killed/model.safetensors").read_bytes() == (folder / "unkilled/model.safetensors").read_bytes()
    results = [(folder / name / "results.jsonl").read_text() for name in ("killed", "unkilled")]
    assert results[0] == results[1]
