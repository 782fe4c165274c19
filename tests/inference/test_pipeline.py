"""The pipeline predicts what stock Transformers predicts, and prediction files keep the columns of the input."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from tests.factories.runs import call, needs_encoder
from tests.factories.servers import LABELS, make_run
from transformers import AutoTokenizer
from transformers import pipeline as stock_pipeline

import limbert
from limbert.core.config import TaskType
from limbert.errors import CheckpointError, ConfigError, DataError, LimbertError
from limbert.model.checkpoint import load_config_and_tokenizer

pytestmark = needs_encoder
TEXTS = ["It rained.", "What a fine day it was, and how it rained!", "No."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predicted")
    make_run(folder / "run")
    (folder / "in.csv").write_text("id,sentence,label\n" + "".join(f'{n},"{text}",x\n' for n, text in enumerate(TEXTS)))
    return folder


@pytest.mark.parametrize("task_type", ["classification", "regression"])
def test_full_model_predicts_as_stock_transformers(task_type: TaskType, tmp_path: Path) -> None:
    run = str(make_run(tmp_path / "run", task_type=task_type))
    ours, theirs = limbert.pipeline(run, device="cpu"), stock_pipeline("text-classification", run, device="cpu")
    for one, other in zip(ours(TEXTS), theirs(TEXTS), strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert task_type == "regression" or one["label"] == other["label"]


def test_top_k_has_the_shape_of_transformers(folder: Path) -> None:
    ours, theirs = (make("text-classification", str(folder / "run"), device="cpu") if make is stock_pipeline else
                    make(folder / "run", device="cpu") for make in (limbert.pipeline, stock_pipeline))  # fmt: skip
    for top_k in (2, None):
        for texts in (TEXTS, TEXTS[0]):
            found, expected = ours(texts, top_k=top_k), theirs(texts, top_k=top_k)
            assert np.shape(found) == np.shape(expected)
            first, other = (found, expected) if isinstance(texts, str) else (found[1], expected[1])
            assert [row["label"] for row in first] == [row["label"] for row in other]
            assert [row["score"] for row in first] == pytest.approx([row["score"] for row in other], abs=1e-5)
    assert len(ours(TEXTS[0])) == 1
    assert ours([]) == []


def test_batches_change_no_prediction(folder: Path) -> None:
    pipe = limbert.pipeline(folder / "run", subnet="0.5x0.5", device="cpu")
    together, alone = pipe(TEXTS), [pipe(text, batch_size=1)[0] for text in TEXTS]
    full = limbert.pipeline(folder / "run", policy="static:1x1", device="cpu")(TEXTS)
    for one, other, largest in zip(together, alone, full, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["score"] != pytest.approx(largest["score"], abs=1e-3)


def test_evaluation_in_windows_is_that_of_predictions(folder: Path) -> None:
    texts = [" ".join(TEXTS[number % 3 :] * (1 + 4 * number)) for number in range(9)]
    pipe = limbert.pipeline(folder / "run", long_texts="windows", device="cpu")
    labels = [row["label"] for row in pipe(texts)]
    labels[:2] = [next(label for label in LABELS if label != first) for first in labels[:2]]
    with (folder / "long.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    data: dict[str, Any] = {"dev": folder / "long.csv", "subnets": ["1x1"], "device": "cpu"}
    (windows,), (truncated,) = (
        limbert.evaluate(folder / "run", long_texts=how, **data) for how in ("windows", "truncate")
    )
    assert windows.metrics["accuracy"] == pytest.approx(7 / 9)
    assert windows.flops > 1.5 * truncated.flops  # per text, all of its windows
    (policy,) = limbert.evaluate(
        folder / "run", policy="static:1x1", long_texts="windows", dev=data["dev"], device="cpu"
    )
    assert policy.metrics == windows.metrics
    assert policy.flops_mean == pytest.approx(windows.flops, rel=1e-6)


def test_bad_calls_are_refused(folder: Path, tmp_path: Path) -> None:
    for settings in ({"subnet": "1x1", "policy": "fast"}, {"policy": "swift"}, {"long_texts": "fold"}):
        with pytest.raises(LimbertError, match=r"policy|long texts"):
            limbert.pipeline(folder / "run", **settings)("a")  # type: ignore[arg-type]
    pipe = limbert.pipeline(folder / "run", device="cpu")
    for texts, pairs in (([3], None), (["a", "b"], ["c"])):
        with pytest.raises(ConfigError, match="texts"):
            pipe(texts, pairs)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="regression"):
        limbert.pipeline(make_run(tmp_path / "r", task_type="regression"))("a", top_k=2)


def predicted(folder: Path, *options: str | Path) -> str:
    done = call(folder, "predict", "run", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_output_keeps_the_columns_of_the_input(folder: Path, ending: str) -> None:
    expected: list[Any] = limbert.pipeline(folder / "run", device="cpu")(TEXTS, top_k=None)
    predicted(folder, "--input", "in.csv", "--output", f"out{ending}", "--scores")
    path = folder / f"out{ending}"
    if ending == ".parquet":
        rows = pyarrow.parquet.read_table(path).to_pylist()
    elif ending == ".csv":
        with path.open(newline="") as file:
            rows = [row | {"scores": json.loads(row["scores"])} for row in csv.DictReader(file)]
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        assert (row["id"], row["sentence"], row["input_label"]) == (str(number), TEXTS[number], "x")
        assert (row["label"], float(row["score"])) == (row["scores"][0]["label"], row["scores"][0]["score"])
        assert {score["label"] for score in row["scores"]} == {*LABELS}
        assert row["label"] == expected[number][0]["label"]
    assert ("text" in rows[0]) == (ending == ".jsonl")


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(TEXTS),
        "\n".join(json.dumps({"id": 1, "text": text}) for text in TEXTS),
        "id,text\n" + "".join(f'1,"{text}"\n' for text in TEXTS),
    ],
    ids=["lines", "json", "csv"],
)
def test_pipes_are_read(folder: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    printed = predicted(folder, "--input", "-", "--output", "-", "--top-k", "1")
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert [len(row["scores"]) for row in rows] == [1, 1, 1]


def test_rows_without_a_text_have_no_prediction(folder: Path) -> None:
    (folder / "gap.csv").write_text("id,text\n1,one\n2,\n3,three\n")
    done = call(folder, "predict", "run", "--input", "gap.csv")
    assert done.returncode == 1
    assert "gap.csv:3: no text in column 'text'" in done.stderr
    assert "--skip-bad-rows" in done.stderr
    rows = json.loads(predicted(folder, "--input", "gap.csv", "--skip-bad-rows", "--keep", "id", "--json"))
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert [row["label"] is None for row in rows] == [False, True, False]
    assert rows[0]["text"] == "one"


def test_no_column_of_the_input_is_lost(folder: Path) -> None:
    (folder / "names.csv").write_text("text,label,input_label\na text,1,2\n")
    (row,) = json.loads(predicted(folder, "--input", "names.csv", "--json"))
    assert (row["input_label"], row["input_input_label"]) == ("2", "1")
    (folder / "twice.csv").write_text("text,x,x\na text,1,2\n")
    done = call(folder, "predict", "run", "--input", "twice.csv", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "2 columns are named 'x'" in done.stderr
    assert predicted(folder, "--input", "twice.csv", "--keep", "text")


def test_unusable_outputs_are_refused_at_once(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    (folder / "astray").symlink_to("nowhere/file")
    for output in ("loop/x", "astray", "x" * 300, "", "run"):
        done = call(folder, "predict", "absent", "--text", "a", "--output", output)
        assert done.returncode == 1
        assert done.stderr.startswith("limbert: error: ")
        assert "absent" not in done.stderr  # the run is not loaded


def test_tokens_without_an_embedding_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(run)
    tokenizer.add_tokens(["zzcustomzz"])
    tokenizer.save_pretrained(run)
    assert limbert.pipeline(run, device="cpu")("hello")
    with pytest.raises(DataError, match="zzcustomzz"):
        limbert.pipeline(run, device="cpu")("a zzcustomzz")
    with pytest.raises(CheckpointError, match="resize_token_embeddings"):
        load_config_and_tokenizer(str(run))
