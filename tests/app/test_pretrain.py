"""``limbert pretrain`` from end to end: killed and resumed, loaded by plain Transformers, and fine-tuned from."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from app_material import DATA_OPTIONS, command, environment, make_small_encoder, needs_encoder, run
from transformers import AutoModelForMaskedLM, AutoTokenizer

from limbert import ElasticModel

pytestmark = needs_encoder
PRETRAIN = ["pretrain", "--corpus", "texts/*.txt", "--max-length", "32", "--max-steps", "8", "--batch-size", "8",
            "--widths", "0.5,1.0", "--depths", "0.67,1.0", "--learning-rate", "1e-3", "--whole-word", "--threads", "1",
            "--checkpoint-every", "0.05"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    make_small_encoder(folder / "small")
    (folder / "texts").mkdir()
    rng = np.random.default_rng(0)
    words = "the a lobster crab eats sees small large under over water sand and then again .".split(" ")
    for name in ("one.txt", "two.txt"):
        lines = [" ".join(rng.choice(words, size=20)) for _ in range(120)]
        (folder / "texts" / name).write_text("\n".join(lines))
    whole = run(folder, *PRETRAIN, "--model", "small", "--output", "whole", "--json")
    assert whole.returncode == 0, whole.stderr
    (folder / "whole.json").write_text(whole.stdout)
    (folder / "whole.txt").write_text(whole.stderr)
    return folder


def test_the_result_is_a_masked_language_model_of_many_sizes(folder: Path) -> None:
    assert "small lacks its head for hidden words" in (folder / "whole.txt").read_text()
    rows = json.loads((folder / "whole.json").read_text())
    assert [row["subnet"] for row in rows] == ["1x1", "0.5x1", "1x0.67", "0.5x0.67"]
    assert {*rows[0]["metrics"]} == {"accuracy", "loss", "perplexity"}
    assert rows == [
        {name: row[name] for name in rows[0]}
        for row in map(json.loads, (folder / "whole" / "results.jsonl").read_text().splitlines())
    ]
    record = json.loads((folder / "whole" / "limbert.json").read_text())
    assert record["phases"] == ["mlm", "width", "depth"]
    assert record["objective"] == "masked-lm"
    assert record["settings"]["corpus"]["whole_word"] is True
    again = run(folder, *PRETRAIN, "--model", "small", "--output", "whole")
    assert "finished already" in again.stderr
    assert "hidden words" in again.stdout


@torch.no_grad()
def test_plain_transformers_loads_it_with_equal_logits(folder: Path) -> None:
    model = ElasticModel.from_pretrained(folder / "whole", head="masked-lm")
    plain, info = AutoModelForMaskedLM.from_pretrained(folder / "whole", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = AutoTokenizer.from_pretrained(folder / "whole")("the lobster [MASK] a crab", return_tensors="pt")
    expected = model.network.eval()(**inputs).logits
    assert torch.equal(plain.eval()(**inputs).logits, expected)
    assert torch.equal(model.view(model.full)(**inputs).logits, expected)
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert model.space.widths == (0.5, 1.0)


def test_killed_again_and_again_it_ends_bit_for_bit_the_same(folder: Path) -> None:
    work, seen, kills = folder / "killed.training", set(), 0
    while not (folder / "killed").exists():
        process = subprocess.Popen(
            command(*PRETRAIN, "--model", "small", "--output", "killed"),
            cwd=folder,
            env=environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while kills < 2 and process.poll() is None:
            found = {path.name for path in work.glob("*-*") if path.is_dir() and not path.name.startswith(".")}
            if found - seen:
                seen |= found | {name for name in found if name.endswith("-done")}
                time.sleep(0.02)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
    assert kills == 2
    assert (folder / "killed/model.safetensors").read_bytes() == (folder / "whole/model.safetensors").read_bytes()
    results = [(folder / name / "results.jsonl").read_text() for name in ("killed", "whole")]
    assert results[0] == results[1]


def test_every_size_is_fine_tuned_from_it(folder: Path) -> None:
    done = run(folder, "train", *DATA_OPTIONS, "--model", "whole", "--output", "tuned", "--max-steps", "2",
               "--phases", "final", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "going on with what whole was trained for" in done.stderr
    assert [row["subnet"] for row in json.loads(done.stdout)] == ["1x1", "0.5x1", "1x0.67", "0.5x0.67"]
    assert json.loads((folder / "tuned" / "limbert.json").read_text())["phases"] == ["mlm", "width", "depth", "final"]
    before, after = (ElasticModel.from_pretrained(folder / name, head="none") for name in ("whole", "tuned"))
    for ours, theirs in zip(after.layers(), before.layers(), strict=True):  # two small steps: the order is the same
        torch.testing.assert_close(ours.intermediate.dense.weight, theirs.intermediate.dense.weight, atol=1e-3, rtol=0)


def test_a_masked_language_model_needs_no_phase_mlm(folder: Path) -> None:
    shutil.copytree(folder / "whole", folder / "stock", ignore=shutil.ignore_patterns("limbert.json"))
    done = run(folder, *PRETRAIN, "--max-steps", "1", "--model", "stock", "--output", "again", "--dev", "texts/two.txt")
    assert done.returncode == 0, done.stderr
    assert "phase mlm is skipped" in done.stderr
    assert json.loads((folder / "again" / "limbert.json").read_text())["phases"] == ["width", "depth"]
    (folder / "bare").mkdir()
    for path in (folder / "stock").glob("*.json"):
        shutil.copy(path, folder / "bare")
    bare = run(folder, *PRETRAIN, "--max-steps", "1", "--model", "bare", "--output", "scratch", "--phases", "mlm")
    assert bare.returncode == 0, bare.stderr
    assert "bare lacks its weights" in bare.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--corpus", "none.txt"], "corpus none.txt: no such file, and no folder or glob"),
        (["--corpus", "tiny.txt"], "corpus tiny.txt: 2 tokens fill 1 sequences of 128; at least 10 are needed"),
        (["--corpus", "texts/one.txt", "--mask-share", "0"], "mask share is 0.0; it must be above 0"),
        (["--corpus", "texts/one.txt", "--phases", "mlm,gates"], "phase 'gates' cannot learn from text"),
        (["--corpus", "texts/one.txt", "--documents", "page"], "documents is 'page'; it must be line or paragraph"),
        (["--corpus", "texts/one.txt", "--model", "nowhere/at/all"], "no checkpoint folder at nowhere/at/all"),
    ],
)
def test_bad_input_is_one_clear_line(changes: list[str], message: str, folder: Path) -> None:
    (folder / "tiny.txt").write_text("two words\n")
    options = [] if "--model" in changes else ["--model", "small"]
    done = run(folder, "pretrain", *changes, *options, "--output", "bad")
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "error" in line] == [done.stderr.splitlines()[-1]]
    assert message in done.stderr
    assert not (folder / "bad").exists()
    assert not (folder / "bad.training").exists()
