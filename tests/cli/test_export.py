"""``limbert export`` on real files: exports predict the same as their source, and a failure leaves nothing."""

import ast
import csv
import io
import json
import re
import shutil
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from tests.factories.runs import DATA_OPTIONS, DEMO_DATA, call, make_small_encoder, needs_encoder, run
from transformers import AutoTokenizer, pipeline

from limbert import ElasticModel, export_model
from limbert.errors import ExportError
from limbert.evaluation.hardware import describe_this_machine
from limbert.export import export as export_run
from limbert.export import formats
from limbert.export.formats import EXPORTERS
from limbert.export.verify import RuntimeBenchmark
from limbert.inference.load import load_checkpoint
from limbert.method.calibration import calibrated_network
from limbert.model.checkpoint import update_record

pytestmark = needs_encoder
for library in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(library)
TEXTS = ["Where is my card?", "Why was I charged twice for the same coffee this morning?", "hello"]
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def limbert(*arguments: str | Path) -> tuple[int, str, str]:
    """The command in the current folder: exit status, output and errors."""
    done = call(Path.cwd(), *arguments)
    return done.returncode, done.stdout, done.stderr


def exported(*arguments: str | Path) -> dict[str, Any]:
    """The result of ``limbert export --json``."""
    status, out, err = limbert("export", *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    make_small_encoder(folder / "small")
    options = ["--model", "small", "--output", "trained", "--max-steps", "2", "--phases", "finetune"]
    trained = run(folder, "train", *DATA_OPTIONS, *options)
    assert trained.returncode == 0, trained.stderr
    return folder


@pytest.fixture
def folder(trained_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained_folder)
    monkeypatch.setenv("LIMBERT_CACHE", str(trained_folder / "cache"))
    return trained_folder


@pytest.mark.parametrize("format", EXPORTERS)
def test_export_predicts_the_same(folder: Path, format: str) -> None:
    result = exported("trained", "--subnet", "0.5x0.75", "--format", format, "--output", format)
    assert (result["subnet"], result["format"], result["output"]) == ("0.5x0.75", format, format)
    assert result["compared"]["on"] == "examples of the development set"
    assert result["compared"]["examples"] == 48
    assert result["compared"]["difference"] < 1e-5
    assert result["file_bytes"] == (folder / format / EXPORTERS[format].weights_name).stat().st_size
    assert json.loads((folder / format / "export.json").read_text())["params"] == result["params"]
    config = json.loads((folder / format / "config.json").read_text())
    assert len(config["id2label"]) == 24

    model = ElasticModel.from_pretrained(folder / "trained")
    tokenizer = AutoTokenizer.from_pretrained(folder / format)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = calibrated_network(model, model.subnet("0.5x0.75"))(**inputs).logits
    torch.testing.assert_close(EXPORTERS[format].load(folder / format, 1)(inputs), expected, rtol=1e-4, atol=1e-5)

    card = (folder / format / "README.md").read_text()
    assert ModelCard(card).data.license == "unknown"
    assert tokenizer.model_max_length == load_checkpoint(folder / "trained").max_length
    for fact in ("Sub-network `0.5x0.75`", "Base model: small", "Data: demo_data", describe_this_machine()):
        assert fact in card
    (code,) = CODE.findall(card)
    names: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()) as shown:
        exec(code, names)
    assert all(label in config["label2id"] for label in ast.literal_eval(shown.getvalue()))
    if format == "hf":  # the class has the stock name
        predictions = pipeline("text-classification", "hf", trust_remote_code=True)(TEXTS)
        labels = [config["id2label"][str(index)] for index in expected.argmax(-1).tolist()]
        assert [prediction["label"] for prediction in predictions] == labels


@pytest.mark.parametrize("format", ["hf", "onnx"])
def test_a_smaller_vocabulary_predicts_the_same(folder: Path, format: str) -> None:
    output = folder / f"{format}-vocabulary"
    result = exported("trained", "--format", format, "--vocabulary", DEMO_DATA, "--output", output)
    reduction = result["vocabulary"]
    assert reduction["tokens_after"] < reduction["tokens_before"] == 30522
    assert reduction["bytes_saved"] == 4 * 32 * (30522 - reduction["tokens_after"])
    assert 0 < reduction["dropped_share"] < 0.2
    assert {*reduction["metrics_before"]} == {*reduction["metrics_after"]} == {"accuracy"}
    assert json.loads((output / "config.json").read_text())["vocab_size"] == reduction["tokens_after"]
    assert result["file_bytes"] < 1e6
    assert f"{reduction['tokens_after']:,} of 30,522 tokens" in (output / "README.md").read_text()
    with (DEMO_DATA / "train.csv").open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][::200]
    model, source = ElasticModel.from_pretrained(folder / "trained"), AutoTokenizer.from_pretrained("trained")
    with torch.no_grad():
        inputs = source(texts, padding=True, truncation=True, return_tensors="pt")
        expected = calibrated_network(model, model.full)(**inputs).logits
    inputs = AutoTokenizer.from_pretrained(output)(texts, padding=True, truncation=True, return_tensors="pt")
    torch.testing.assert_close(EXPORTERS[format].load(output, 1)(inputs), expected, rtol=1e-4, atol=1e-5)


def test_without_data_built_in_sentences_verify(folder: Path) -> None:
    copy = Path(shutil.copytree(folder / "trained", folder / "moved"))
    update_record(copy, lambda record: record["settings"]["data"].update(data="moved/away"))
    (copy / "README.md").write_text("---\ntags:\n- a\nlicense: mit\n---\n")
    assert exported("moved", "--output", "from-moved")["compared"]["on"] == "built-in sentences"
    assert ModelCard((folder / "from-moved" / "README.md").read_text()).data.license == "mit"
    status, _, err = limbert("export", "moved", "--format", "onnx", "--int8", "--output", "never")
    assert status == 1
    assert "moved/away" in err
    assert not (folder / "never").exists()


@pytest.mark.parametrize(("format", "library"), [("onnx", "onnxruntime"), ("openvino", "nncf")])
def test_int8_is_benchmarked(format: str, library: str, folder: Path) -> None:
    pytest.importorskip(library)
    output = folder / f"{format}-int8"
    options = ["--format", format, "--int8", "--threads", "1"]
    result = exported("trained", *options, "--max-drop", "100", "--output", output)
    inputs = AutoTokenizer.from_pretrained(output)(TEXTS, padding=True, return_tensors="pt")
    assert EXPORTERS[format].load(output, 1)(inputs).shape == (3, 24)
    assert (
        result["quality"]["int8"]["file_bytes"] == result["file_bytes"] < 0.4 * result["quality"]["fp32"]["file_bytes"]
    )
    for quality in result["quality"].values():
        assert {"accuracy"} == {*quality["metrics"]}
        assert quality["latency_ms"] > 0
        assert quality["throughput"] > 0
    card = (output / "README.md").read_text()
    assert "| | fp32 | int8 |" in card
    assert f"| accuracy | {100 * result['quality']['fp32']['metrics']['accuracy']:.2f} |" in card


def test_failure_leaves_the_earlier_export(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = formats.EXPORTERS["hf"]

    def write_wrong(network, path, inputs):  # type: ignore[no-untyped-def]
        network.classifier.bias.data[0] += 0.01
        right.write(network, path, inputs)
        network.classifier.bias.data[0] -= 0.01

    monkeypatch.setitem(formats.EXPORTERS, "hf", replace(right, write=write_wrong))
    (folder / "kept").mkdir()
    (folder / "kept" / "export.json").write_text("{}")
    with pytest.raises(ExportError, match="do not match"):
        export_model("trained", folder / "kept", overwrite=True)
    assert [path.name for path in (folder / "kept").iterdir()] == ["export.json"]
    assert not [*folder.glob(".kept*")]


def test_int8_that_loses_too_much_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    harmful = replace(EXPORTERS["hf"], quantize=lambda path, calibration: steps.append("quantised"))
    monkeypatch.setitem(formats.EXPORTERS, "hf", harmful)
    benchmarks = {
        name: RuntimeBenchmark({"accuracy": value}, 1.0, 1.0, 1) for name, value in (("fp32", 0.91), ("int8", 0.895))
    }
    monkeypatch.setattr(export_run, "benchmark_runtimes", lambda *given, **named: benchmarks)
    with pytest.raises(ExportError, match=r"1\.50 points of accuracy"):
        export_model("trained", folder / "lossy", int8=True)
    assert steps == ["quantised"]
    assert not [path for path in folder.iterdir() if "lossy" in path.name]
    assert export_model("trained", folder / "lossy", int8=True, max_drop=1.6).benchmarks == benchmarks


BAD_LINES = [
    (["trained", "--format", "tflite", "--output", "x"], "tflite"),
    (["trained", "--subnet", "0.01x1", "--output", "x"], "width 0.01"),
    (["trained", "--subnet", "half", "--output", "x"], "half"),
    (["trained", "--int8", "--output", "x"], "onnx, openvino"),
    (["trained", "--format", "onnx", "--int8", "--max-drop", "-1", "--output", "x"], "max drop is -1"),
    (["trained", "--output", "small"], "small exists"),
    (["trained", "--vocabulary", "absent.txt", "--output", "x"], "absent.txt: no such file"),
    (["trained", "--vocabulary", "small/config.json", "--output", "x"], "column"),
    (["trained", "--vocabulary", "small", "--output", "x"], "train.*"),
    (["trained", "--characters", "latin", "--output", "x"], "latin"),
    (["trained", "--characters", "texts", "--output", "x"], "--vocabulary"),
    (["trained", "--data", "nowhere", "--output", "x"], "nowhere"),
    (["./nowhere", "--output", "x"], "./nowhere"),
    (["small", "--output", "x", "--format", "onnx", "--int8"], "limbert train"),
]


def test_bad_input_gets_one_clear_line(folder: Path) -> None:
    for line, message in BAD_LINES:
        status, out, err = limbert("export", *line)
        assert (status, out) == (1, ""), (line, err)
        assert message in err, line
        assert err.startswith("limbert: error: "), err
        assert err.count("\n") == 1, err
    assert not (folder / "x").exists()


def test_home_directory_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    (folder / "home").mkdir()
    shutil.copytree(folder / "trained", folder / "home" / "run")
    status, _, err = limbert("export", "~/run", "--subnet", "0.5x0.75", "--output=~/exported")
    assert status == 0, err
    assert (folder / "home" / "exported" / "model.safetensors").is_file()
    assert not (folder / "~").exists()


def test_a_missing_library_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status, _, err = limbert("export", "trained", "--format", "onnx", "--output", "x")
    assert status == 1
    assert "onnxruntime is not installed; pip install 'limbert[export]'" in err
    assert not (folder / "x").exists()
