"""``limbert pretrain`` from end to end: stopped and resumed, loaded by plain Transformers, and fine-tuned from."""

import json
import logging
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.factories.runs import DATA_OPTIONS, command, environment, make_small_encoder, needs_encoder, run
from transformers import AutoModelForMaskedLM, AutoTokenizer, TrainerCallback

from limbert import ElasticModel
from limbert.cli.main import app
from limbert.core.config import CorpusConfig, TrainConfig
from limbert.errors import LimbertError
from limbert.train.pretrain import pretrain_corpus
from limbert.train.recipes import load_recipe, override_recipe

pytestmark = needs_encoder
WORDS = [
    "the",
    "a",
    "lobster",
    "crab",
    "eats",
    "sees",
    "small",
    "large",
    "unquestionably",
    "over",
    "water",
    "then",
    ".",
]
STEPS = 6


class InterruptEvery(TrainerCallback):
    """Ctrl-C after a number of steps, counted over all phases."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


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
        assert pretrain("small", "whole") == ["small lacks its head for hidden words; random ones are taken"]
    return folder / "whole"


def pretrain(
    model: str,
    output: str,
    *,
    phases: tuple[str, ...] | None = None,
    steps: int = STEPS,
    checkpoint_every: float = 120.0,
    callbacks: Sequence[TrainerCallback] = (),
    **corpus: Any,
) -> list[str]:
    """Run it here; what it logs."""
    config = TrainConfig(
        model=model, output=output, phases=phases, validation=0.05, checkpoint_every=checkpoint_every
    )
    settings = {"max_steps": steps, "batch_size": 8, "learning_rate": 1e-3}
    space = {"widths": (0.5, 1.0), "depths": (0.67, 1.0)}
    recipe = override_recipe(load_recipe("pretrain"), space=space, every_phase=settings, phases=phases)
    text = CorpusConfig(**{"corpus": ("texts/*.txt",), "max_length": 32, "whole_word": True} | corpus)
    with capture_messages() as messages:
        pretrain_corpus(config, recipe, text, callbacks=callbacks)
    return messages


@contextmanager
def capture_messages() -> Iterator[list[str]]:
    messages: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("limbert.train.pretrain")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def test_the_result_is_a_masked_language_model_of_many_sizes(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "results.jsonl").read_text().splitlines()]
    assert [row["subnet"] for row in rows] == ["1x1", "0.5x1", "1x0.67", "0.5x0.67"]
    assert {*rows[0]["metrics"]} == {"accuracy", "loss", "perplexity"}
    record = json.loads((whole / "limbert.json").read_text())
    assert record["phases"] == ["mlm", "width", "depth"]
    assert record["objective"] == "masked-lm"
    assert record["settings"]["corpus"]["whole_word"] is True
    steps = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [(step["phase"], step["step"]) for step in steps if "loss" in step] == [
        (name, STEPS) for name in record["phases"]
    ]


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


def test_interrupted_every_few_steps_it_ends_the_same(whole: Path) -> None:
    stops = 0
    while not Path("stopped").exists():
        try:
            pretrain("small", "stopped", callbacks=[InterruptEvery(5)], checkpoint_every=1e-9)
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 3
    for name in ("model.safetensors", "results.jsonl"):
        assert Path("stopped", name).read_bytes() == (whole / name).read_bytes()


def test_it_does_not_resume_with_another_text(folder: Path) -> None:
    shutil.copytree("texts", "growing")
    with pytest.raises(KeyboardInterrupt):
        pretrain("small", "grown", corpus=("growing/*.txt",), callbacks=[InterruptEvery(1)])
    with Path("growing/two.txt").open("a") as file:
        file.write("\na lobster")
    with pytest.raises(LimbertError, match="other data"):
        pretrain("small", "grown", corpus=("growing/*.txt",))


def test_every_size_is_fine_tuned_from_it(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "whole", "--output", "tuned", "--max-steps", "2", "--phases", "final", "--train-limit", "200"]
    app(["train", *DATA_OPTIONS, *options, "--json"], standalone_mode=False)
    printed = capfd.readouterr()
    assert "sub-networks that whole was trained for" in printed.err
    assert [row["subnet"] for row in json.loads(printed.out)] == ["1x1", "0.5x1", "1x0.67", "0.5x0.67"]
    assert json.loads(Path("tuned/limbert.json").read_text())["phases"] == ["mlm", "width", "depth", "final"]
    before, after = (ElasticModel.from_pretrained(name, head="none") for name in (whole, "tuned"))
    for ours, theirs in zip(after.layers(), before.layers(), strict=True):  # two small steps: the order is the same
        torch.testing.assert_close(ours.intermediate.dense.weight, theirs.intermediate.dense.weight, atol=1e-3, rtol=0)


def test_a_masked_language_model_needs_no_phase_mlm(whole: Path) -> None:
    shutil.copytree(whole, "stock", ignore=shutil.ignore_patterns("limbert.json"))
    assert pretrain("stock", "again", steps=1, dev=("texts/two.txt",)) == [
        "1 file of the corpus, being development text, will only be reported on",
        "stock is a masked-language model; phase mlm is skipped",
    ]
    assert json.loads(Path("again/limbert.json").read_text())["phases"] == ["width", "depth"]


def test_a_config_without_weights_is_a_start_from_random_ones(folder: Path) -> None:
    shutil.copytree("small", "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    notes = pretrain("bare", "scratch", steps=1, phases=("mlm",))
    assert notes == ["bare lacks its weights; random ones are taken"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--corpus", "none.txt"], "corpus none.txt: no such file, and no folder or glob"),
        (["--corpus", "tiny.txt"], "corpus tiny.txt: 2 tokens fill 1 sequences of 64; at least 10 are needed"),
        (["--corpus", "texts/../texts/one.txt", "--dev", "texts"], "corpus texts/../texts/one.txt is development text"),
        (["--corpus", "texts", "--dev", "texts/*.txt"], "corpus texts: all its files are development text"),
        (["--corpus", "texts/one.txt", "--mask-share", "0"], r"mask share is 0.0; it must be above 0"),
        (["--corpus", "texts/one.txt", "--phases", "mlm,gates"], "phase 'gates' cannot learn from text"),
        (["--corpus", "texts/one.txt", "--documents", "page"], "documents is 'page'; it must be line or paragraph"),
        (["--corpus", "texts/one.txt", "--model", "nowhere/at/all"], "no checkpoint folder at nowhere/at/all"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(changes: list[str], message: str) -> None:
    Path("tiny.txt").write_text("two words\n")
    options = [] if "--model" in changes else ["--model", "small"]
    with pytest.raises(LimbertError, match=message):
        app(["pretrain", *changes, *options, "--output", "bad"], standalone_mode=False)
    assert not Path("bad").exists()
    assert not Path("bad.training").exists()


COMMAND = ["pretrain", "--corpus", "texts/*.txt", "--max-length", "32", "--max-steps", "8", "--batch-size", "8",
           "--widths", "0.5,1.0", "--depths", "0.67,1.0", "--threads", "1", "--model", "small",
           "--checkpoint-every", "0.05"]  # fmt: skip


@pytest.mark.slow
def test_killed_again_and_again_it_ends_bit_for_bit_the_same(folder: Path) -> None:
    finished = run(folder, *COMMAND, "--output", "unkilled")
    assert finished.returncode == 0, finished.stderr
    assert "hidden words" in finished.stdout
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
            found = {str(path.relative_to(work)) for path in work.glob("*/checkpoint-*")}
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
