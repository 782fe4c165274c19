"""``limbert export`` on real files: what it leaves answers as its source does, and a failure leaves nothing."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from app_material import DATA_OPTIONS, environment, make_small_encoder, needs_encoder, run
from transformers import AutoTokenizer

from limbert import ElasticModel
from limbert.run.export.exporters import EXPORTERS

pytestmark = needs_encoder
for library in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(library)
TEXTS = ["Where is my card?", "Why was I charged twice for the same coffee this morning?", "hello"]
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    make_small_encoder(folder / "small")
    options = ["--model", "small", "--output", "trained", "--max-steps", "2", "--phases", "finetune"]
    trained = run(folder, "train", *DATA_OPTIONS, *options)
    assert trained.returncode == 0, trained.stderr
    return folder


@pytest.mark.parametrize("format", EXPORTERS)
def test_an_export_answers_as_the_subnetwork(folder: Path, format: str) -> None:
    done = run(folder, "export", "trained", "--subnet", "0.5x0.75", "--format", format, "--output", format, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["subnet"], found["format"], found["output"]) == ("0.5x0.75", format, format)
    assert found["compared"]["on"] == "examples of the development set"
    assert found["compared"]["examples"] == 48
    assert found["compared"]["difference"] < 1e-5
    assert found["file_bytes"] == (folder / format / EXPORTERS[format].weights).stat().st_size
    assert json.loads((folder / format / "export.json").read_text())["params"] == found["params"]
    config = json.loads((folder / format / "config.json").read_text())
    assert len(config["id2label"]) == 24

    model = ElasticModel.from_pretrained(folder / "trained")
    tokenizer = AutoTokenizer.from_pretrained(folder / format)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.view(model.subnet("0.5x0.75"))(**inputs).logits
    torch.testing.assert_close(EXPORTERS[format].load(folder / format, 1)(inputs), expected, rtol=1e-4, atol=1e-5)

    card = (folder / format / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown\n")
    assert "Sub-network `0.5x0.75`" in card
    (code,) = CODE.findall(card)
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert all(label in config["label2id"] for label in json.loads(shown.stdout.replace("'", '"')))
    if format == "hf":  # the library's own door, where the class has the stock name
        pipe = "from transformers import pipeline; import sys; p = pipeline('text-classification', 'hf', "
        pipe += f"trust_remote_code=True); print(p({TEXTS!r}))"
        piped = subprocess.run(
            [sys.executable, "-c", pipe],
            cwd=folder,
            env=environment(folder),
            capture_output=True,
            text=True,
            check=False,
        )
        assert piped.returncode == 0, piped.stderr
        labels = [config["id2label"][str(answer)] for answer in expected.argmax(-1).tolist()]
        assert re.findall(r"'label': '(\w+)'", piped.stdout) == labels


def test_without_its_data_it_is_tried_on_sentences_shipped_here(folder: Path) -> None:
    record = json.loads((folder / "trained" / "limbert.json").read_text())
    record["settings"]["data"]["data"] = "moved/away"
    copy = folder / "moved"
    copy.mkdir()
    for path in (folder / "trained").iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / "limbert.json").write_text(json.dumps(record))
    (copy / "README.md").write_text("---\ntags:\n- a\nlicense: mit\n---\n")
    done = run(folder, "export", "moved", "--output", "from-moved", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["compared"]["on"] == "built-in sentences"
    assert (folder / "from-moved" / "README.md").read_text().startswith("---\nlicense: mit\n")
    refused = run(folder, "export", "moved", "--format", "onnx", "--int8", "--output", "never")
    assert refused.returncode == 1
    assert "moved/away" in refused.stderr
    assert not (folder / "never").exists()


def test_int8_is_measured_and_refused_if_it_costs_too_much(folder: Path) -> None:
    options = ["--format", "onnx", "--int8", "--threads", "1"]
    done = run(folder, "export", "trained", *options, "--max-drop", "100", "--output", "int8", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["quality"]["int8"]["file_bytes"] == found["file_bytes"] < 0.4 * found["quality"]["fp32"]["file_bytes"]
    for quality in found["quality"].values():
        assert {"accuracy"} == {*quality["metrics"]}
        assert quality["latency_ms"] > 0
        assert quality["throughput"] > 0
    card = (folder / "int8" / "README.md").read_text()
    assert "| | fp32 | int8 |" in card
    assert f"| accuracy | {100 * found['quality']['fp32']['metrics']['accuracy']:.2f} |" in card


def test_a_failure_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong file, and int8 that loses, with the real steps around them."""
    from limbert.errors import ExportError
    from limbert.run.checkpoints import open_checkpoint
    from limbert.run.export import exporters
    from limbert.run.export import run as export_run
    from limbert.run.export.request import Request

    opened = open_checkpoint(folder / "trained", head="as-saved")
    right = exporters.EXPORTERS["hf"]

    def write_wrong(network, path, inputs):  # type: ignore[no-untyped-def]
        network.classifier.bias.data[0] += 0.01
        right.write(network, path, inputs)
        network.classifier.bias.data[0] -= 0.01

    monkeypatch.setitem(exporters.EXPORTERS, "hf", replace(right, write=write_wrong))
    (folder / "kept").mkdir()
    (folder / "kept" / "export.json").write_text("{}")
    request = Request("trained", "1x1", "hf", folder / "kept", overwrite=True).on(opened.data, named=False)
    with pytest.raises(ExportError, match="does not answer as its source"):
        export_run.export(opened, request)
    assert [path.name for path in (folder / "kept").iterdir()] == ["export.json"]
    assert not [*folder.glob(".kept*")]


BAD_LINES = [
    (["trained", "--format", "tflite", "--output", "x"], "unknown format 'tflite'; allowed: hf, onnx, openvino"),
    (["trained", "--subnet", "0.01x1", "--output", "x"], "width 0.01 of 4 heads keeps no head"),
    (["trained", "--subnet", "half", "--output", "x"], "cannot read sub-network 'half'"),
    (["trained", "--int8", "--output", "x"], "format 'hf' has no int8; formats that have: onnx, openvino"),
    (["trained", "--format", "onnx", "--int8", "--max-drop", "-1", "--output", "x"], "max drop is -1"),
    (["trained", "--output", "small"], "output small exists and is not an export of Limbert"),
    (["trained", "--data", "nowhere", "--output", "x"], "nowhere"),
    (["./nowhere", "--output", "x"], "no checkpoint folder at ./nowhere"),
    (["small", "--output", "x", "--format", "onnx", "--int8"], "does not say how the model was trained"),
]


def test_bad_input_gets_one_clear_line(folder: Path) -> None:
    code = (
        "import contextlib, io, json, sys\n"
        "from limbert.app.cli.main import main\n"
        "for line in json.load(sys.stdin):\n"
        "    sys.argv = ['limbert', 'export', *line]\n"
        "    err, status = io.StringIO(), 0\n"
        "    with contextlib.redirect_stderr(err):\n"
        "        try:\n            main()\n"
        "        except SystemExit as end:\n            status = end.code\n"
        "    print(json.dumps([status, err.getvalue()]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([line for line, _ in BAD_LINES]),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(BAD_LINES), done.stderr
    for (line, message), (status, err) in zip(BAD_LINES, answers, strict=True):
        assert status == 1, (line, err)
        assert message in err, line
        assert err.startswith("limbert: error: "), err
        assert err.count("\n") == 1, err
    assert not (folder / "x").exists()


def test_a_missing_library_names_the_extra(folder: Path) -> None:
    code = "import sys; sys.modules['onnxruntime'] = None; from limbert.app.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "export", "trained", "--format", "onnx", "--output", "x"],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "onnxruntime is not installed; pip install 'limbert[export]'" in done.stderr
    assert not (folder / "x").exists()
