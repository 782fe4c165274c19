"""The commands on real files: their results, and one clear line for bad input."""

import csv
import html
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.factories.runs import DATA_OPTIONS, DEMO_DATA, call, make_small_encoder, needs_encoder, run
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

from limbert import Engine, ExitRule, Policy
from limbert.data.readers import Examples
from limbert.inference.load import load_checkpoint

pytestmark = needs_encoder
TRAIN = ["train", *DATA_OPTIONS, "--model", "small", "--output", "x"]
GATES = [*TRAIN, "--recipe", "flexible-bert"]
RAY = ["predict", "trained", "--input", "texts.txt", "--engine", "ray", "--output", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    make_small_encoder(folder / "small")
    options = ["--model", "small", "--output", "trained/", "--max-steps", "3", "--tensorboard", "--json"]
    trained = call(folder, "train", *DATA_OPTIONS, *options)
    assert trained.returncode == 0, trained.stderr
    (folder / "trained.json").write_text(trained.stdout)
    options = ["--model", "small", "--output", "dynamic", "--recipe", "flexible-bert", "--max-steps", "3"]
    dynamic = call(folder, "train", *DATA_OPTIONS, *options, "--set", "gates.epochs=1")
    assert dynamic.returncode == 0, dynamic.stderr
    spread_predictions(folder / "dynamic" / "model.safetensors")
    tuned = call(folder, "tune", "dynamic", "--thresholds", "3")
    assert tuned.returncode == 0, tuned.stderr
    return folder


def spread_predictions(file: Path) -> None:
    """Enlarge the weights: after three steps the predictions of all texts are nearly equal."""
    weights = load_file(file)
    larger = {name: 4 * weight if weight.ndim > 1 else weight for name, weight in weights.items()}
    save_file(larger | {"classifier.weight": 100 * weights["classifier.weight"]}, file, {"format": "pt"})


def threshold_between_texts(run: Path, widths: tuple[float, ...]) -> float:
    """An entropy with many texts of the development set on each side, and none near it."""
    opened = load_checkpoint(run)
    with open(DEMO_DATA / "dev.csv", encoding="utf-8", newline="") as file:
        texts = tuple(row["text"] for row in csv.DictReader(file))
    tokens = opened.tokenize(Examples(texts, None, None))
    policy = Policy(gates=True, widths=widths, exits=ExitRule("entropy", 1.0))
    logits, _ = Engine(opened.model, policy, task_type="classification").run_all_exits(
        tokens.collate([*range(len(texts))])
    )
    entropies = torch.special.entr(logits[:-1].softmax(dim=-1)).sum(dim=-1)
    low, high = entropies[0].quantile(torch.tensor([0.25, 0.75]))
    middle = entropies[(entropies > low) & (entropies < high)].sort().values
    index = int(middle.diff().argmax())
    return float(middle[index : index + 2].mean())


def test_train_and_evaluate_print_the_same_json(folder: Path) -> None:
    trained = json.loads((folder / "trained.json").read_text())
    evaluated = json.loads(call(folder, "evaluate", "trained", "--json", "--batch-size", "7").stdout)
    assert [row["subnet"] for row in trained] == [row["subnet"] for row in evaluated]
    for row, other in zip(trained, evaluated, strict=True):
        assert set(row) == {"subnet", "width", "depth", "params", "flops", "metrics", "calibration"}
        assert row["calibration"]["temperature"] == other["calibration"]["temperature"]
        assert row["calibration"]["error"] == pytest.approx(other["calibration"]["error"], abs=0.003)
        assert (row["params"], row["flops"]) == (other["params"], other["flops"])
        assert row["metrics"]["accuracy"] == pytest.approx(other["metrics"]["accuracy"], abs=0.003)
    assert trained[0]["subnet"] == "1x1"
    assert trained[0]["params"] > trained[-1]["params"]
    assert trained[0]["flops"] > trained[-1]["flops"]


def test_the_log_and_tensorboard_are_saved(folder: Path) -> None:
    records = [json.loads(line) for line in (folder / "trained" / "log.jsonl").read_text().splitlines()]
    assert [record["phase"] for record in records if "loss" in record] == ["finetune", "width", "depth"]
    assert any("tfevents" in path.name for path in (folder / "trained" / "tensorboard").rglob("*"))


def test_evaluate_named_subnetworks_on_another_folder(folder: Path) -> None:
    done = call(folder, "evaluate", "trained", "--data", DEMO_DATA, "--subnet", "0.5x0.75", "--subnet", "1x1", "--json")
    assert [row["subnet"] for row in json.loads(done.stdout)] == ["0.5x0.75", "1x1"]
    table = call(folder, "evaluate", "trained", "--subnet", "0.5x0.75").stdout
    assert "0.5x0.75" in table
    assert "accuracy" in table


def test_plain_transformers_loads_the_result(folder: Path) -> None:
    network = AutoModelForSequenceClassification.from_pretrained(folder / "trained")
    assert "card_arrival" in network.config.label2id
    stock = pipeline("text-classification", model=str(folder / "trained"))
    assert stock.tokenizer.model_max_length == 64  # the length that the model was trained with
    rows = stock("Where is my card?", top_k=None, function_to_apply="none")
    logits = {row["label"]: row["score"] for row in rows}
    temperature = json.loads((folder / "trained" / "limbert.json").read_text())["temperatures"]["1x1"]
    scores = (torch.tensor([*logits.values()]) / temperature).softmax(dim=0)
    alone = json.loads(call(folder, "predict", "trained", "--text", "Where is my card?", "--json").stdout)[0]
    assert max(logits, key=logits.__getitem__) == alone["label"]
    assert float(scores.max()) == pytest.approx(alone["score"], abs=1e-5)


def test_unsure_predictions_abstain(folder: Path) -> None:
    texts = [word for text in ("Where is my card?", "hello", "My card was stolen.") for word in ("--text", text)]
    rows = json.loads(call(folder, "predict", "trained", *texts, "--json").stdout)
    scores = [row["score"] for row in rows]
    limit = (min(scores) + max(scores)) / 2
    unsure = json.loads(call(folder, "predict", "trained", *texts, "--abstain-below", str(limit), "--json").stdout)
    assert [row["abstain"] for row in unsure] == [row["label"] is None for row in unsure]
    assert sum(row["abstain"] for row in unsure) in (1, 2)
    assert [row["score"] for row in unsure] == scores
    assert "(abstains)" in call(folder, "predict", "trained", *texts, "--abstain-below", "1").stdout


def test_a_finetuned_model_skips_phase_finetune(folder: Path) -> None:
    network = AutoModelForSequenceClassification.from_pretrained(folder / "trained")
    network.save_pretrained(folder / "stock")
    for path in (folder / "small").glob("token*"):
        (folder / "stock" / path.name).write_bytes(path.read_bytes())
    done = call(folder, "train", *DATA_OPTIONS, "--model", "stock", "--output", "second", "--max-steps", "2")
    assert done.returncode == 0, done.stderr
    assert "phase finetune is skipped" in done.stderr
    record = json.loads((folder / "second" / "limbert.json").read_text())
    assert record["phases"] == ["width", "depth"]
    control = call(folder, "evaluate", "stock", *DATA_OPTIONS, "--layers", "first", "--json")
    assert len(json.loads(control.stdout)) == 8  # of 3 layers, depths 0.75 and 0.5 both keep 2


def test_policies_of_a_model_with_gates(folder: Path) -> None:
    threshold = threshold_between_texts(folder / "dynamic", (0.25, 0.5, 0.5, 1.0))
    policy = ["--policy", "width+depth", "--widths", "0.25,0.5,0.5,1", "--exit-threshold", f"{threshold:.7f}"]
    first, second = (
        json.loads(call(folder, "evaluate", "dynamic", *policy, "--json", "--batch-size", size).stdout)
        for size in ("1", "50")
    )
    assert first["policy"] == "width+depth"
    assert [sum(layer.values()) for layer in first["widths"]] == pytest.approx([1.0] * 3)
    assert {*first["widths"][0]} <= {"0", "0.25", "0.5", "1"}
    assert sum(first["exits"].values()) == pytest.approx(1.0)
    assert sum(share > 0.2 for share in first["exits"].values()) > 1  # texts exit at different layers
    assert first["flops_mean"] < first["flops_full"]
    assert first["time_per_example"] > 0
    for name in ("metrics", "flops_mean", "flops_full", "widths", "exits"):
        assert first[name] == second[name]
    table = call(folder, "evaluate", "dynamic", "--policy", "balanced").stdout
    assert "accuracy" in table
    assert "layers run" in table
    texts = ["Where is my card?", "Why was I charged twice? " * 4, "hello"]
    (folder / "some.txt").write_text("\n".join(texts) + "\n")
    rows = json.loads(call(folder, "predict", "dynamic", *policy, "--input", "some.txt", "--json").stdout)
    assert [row["text"] for row in rows] == texts
    for row, text in zip(rows, texts, strict=True):
        alone = json.loads(call(folder, "predict", "dynamic", *policy, "--text", text, "--json").stdout)[0]
        assert (row["label"], row["layers"], row["flops"]) == (alone["label"], alone["layers"], alone["flops"])
        assert row["score"] == pytest.approx(alone["score"], abs=1e-5)
    assert call(folder, "predict", "dynamic", "--policy", "fast", "--text", "hello").returncode == 0


def test_operating_points_are_saved_and_reported(folder: Path) -> None:
    """tune saves the metrics of its points on the validation split, evaluate those on the development set."""
    record = json.loads((folder / "dynamic" / "limbert.json").read_text())
    assert record["phases"] == ["finetune", "width", "depth", "gates"]
    points = record["operating_points"]
    assert [*points] == ["fast", "balanced", "accurate"]
    shares = [point["flops_share"] for point in points.values()]
    assert shares == sorted(shares)
    assert shares[-1] <= 1
    assert (folder / "dynamic" / "tune.png").read_bytes().startswith(b"\x89PNG")
    tried = [json.loads(line) for line in (folder / "dynamic" / "tune.jsonl").read_text().splitlines()]
    names = {row["policy"].partition(":")[0] for row in tried}
    assert names - {"cascade"} == {"static", "width", "depth", "width+depth"}

    def saved(split: str) -> dict[str, dict[str, object]]:
        rows = map(json.loads, (folder / "dynamic" / "policies.jsonl").read_text().splitlines())
        return {row["name"]: row for row in rows if row["data"] == split}

    assert [*saved("validation")] == [*points]
    for name, row in saved("validation").items():
        assert row["metrics"]["accuracy"] == pytest.approx(points[name]["validation"]["accuracy"])
        assert row["flops_mean"] / row["flops_full"] == pytest.approx(points[name]["flops_share"], rel=1e-6)
        assert row["settings"].items() <= points[name].items()
    evaluated = json.loads(call(folder, "evaluate", "dynamic", "--policy", "fast", "--json").stdout)
    call(folder, "evaluate", "dynamic", "--policy", "width", "--json")  # no operating point: not saved
    assert {*saved("development")} <= {*points}
    row = saved("development")["fast"]
    assert evaluated.items() <= row.items()
    assert (row["examples"], row["batch_size"]) == (960, 64)

    done = call(folder, "report", "dynamic", "--output", "page.html", "--json")
    assert done.returncode == 0, done.stderr
    text = (folder / "page.html").read_text(encoding="utf-8")
    assert "development set, 960 examples" in text or points["fast"]["widths"] is None
    assert len(list((folder / "page-pictures").glob("*.png"))) == len(json.loads(done.stdout)["pictures"])
    lines = [re.sub("<.*?>", "", line) for line in re.findall(r"<pre>(.*?)</pre>", text)]
    words = shlex.split(html.unescape(next(line for line in lines if line.startswith("limbert train "))))
    assert "finished already, with these settings" in call(folder, *words[1:]).stderr


def test_gates_use_the_space_of_the_base_model(folder: Path) -> None:
    """The space that the base model was trained for replaces the recipe's, whose depths spread over the layers."""
    options = ["--model", "dynamic", "--phases", "gates", "--gates", "3", "--set", "gates.epochs=1"]
    done = call(folder, "train", *DATA_OPTIONS, *options, "--output", "gated")
    assert done.returncode == 0, done.stderr
    assert "sub-networks that dynamic was trained for" in done.stderr
    record = json.loads((folder / "gated" / "limbert.json").read_text())
    assert record["space"]["layers"] == "first"
    assert record["phases"] == ["finetune", "width", "depth", "gates", "gates"]
    other = call(
        folder, "train", *DATA_OPTIONS, *options, "--output", "other", "--widths", "0.5,1", "--layers", "first"
    )
    assert other.returncode == 0, other.stderr
    assert json.loads((folder / "other" / "limbert.json").read_text())["space"]["widths"] == [0.5, 1.0]


def test_retraining_the_encoder_drops_its_gates(folder: Path) -> None:
    options = ["--model", "dynamic", "--phases", "final", "--output", "further", "--max-steps", "1"]
    done = call(folder, "train", *DATA_OPTIONS, *options)
    assert done.returncode == 0, done.stderr
    assert not (folder / "further" / "gates.safetensors").exists()
    assert "operating_points" not in json.loads((folder / "further" / "limbert.json").read_text())


BAD_LINES = [
    (["evaluate", "nowhere/model"], "there is no folder nowhere/model, nor a model of this name on the Hub"),
    (["predict", "small/nope", "--text", "a"], "limbert: error: no checkpoint folder at small/nope\n"),
    (["evaluate", "trained", "--subnet", "0.01x1"], "width 0.01 of 4 heads keeps no head"),
    (["evaluate", "trained", "--precision", "fp8"], "precision is 'fp8'; it must be one of fp32, bf16, int8"),
    (["evaluate", "trained", "--dev", "texts.txt"], "texts.txt"),
    (["train", "trained", "--subnet", "0.5x1", "--seeds", "1,2", "--output", "x"], "--seeds"),
    (["train", "trained", "--subnet", "0.5x1", "--phases", "width", "--output", "x"], "--phases"),
    (["train", "trained", "--subnet", "0.5x1", "--format", "onxx", "--output", "x"], "format is 'onxx'"),
    (["train", *DATA_OPTIONS, "--model", "small", "--format", "onnx", "--output", "x"], "--format is for --subnet"),
    (["predict", "trained", "--text", "a", "--abstain-below", "2"], "abstain below is 2"),
    ([*RAY, "--top-k", "2"], "--top-k is for --engine plain"),
    (["predict", "trained"], "--text or --input"),
    (["predict", "trained", "--text", "a", "--pair", "b", "--pair", "c"], "2 --pair for 1 --text"),
    (["predict", "trained", "--text", "a", "--pair", "b"], "trained on single texts; a second text is given"),
    (["predict", "paired", "--text", "a"], "trained on pairs of texts; the second text is missing"),
    ([*RAY[:1], "paired", *RAY[2:]], "trained on pairs of texts; the second text is missing"),
    (["predict", "trained", "--input", "nowhere.csv"], "nowhere.csv"),
    (["predict", "trained", "--input", "empty.csv"], "empty.csv"),
    (["predict", "trained", "--text", "a", "--output", "nowhere/x.jsonl"], "the folder of output nowhere/x.jsonl"),
    (["predict", "small", "--text", "a"], "small has no limbert.json"),
    (["predict", "wordless", "--text", "a"], "wordless has no tokenizer"),
    (["predict", "trained", "--text", "caf\udce9"], "UTF-8"),
    (["predict", "trained", "--input", "texts.txt", "--output", "./texts.txt"], "output ./texts.txt is the input"),
    ([*RAY, "--keep", ""], "--keep is ''"),
    (["predict", "lenient", "--input", "gap.jsonl"], "gap.jsonl:2: no text in column 'text', expected some"),
    (["predict", "trained", "--input", "texts.txt", "--output", "small"], "output small is a folder"),
    (["predict", "trained", "--text", "a", "--device", "gpu"], "device is 'gpu'; it must be auto, cpu, cuda or cuda:"),
    (["evaluate", "trained", "--device", "cuda:9"], "device is 'cuda:9'; torch finds"),
    (["serve", "trained", "--device", "cuda", "--ray"], "--device cuda is for one machine"),
    ([*RAY, "--device", "cuda"], "--device cuda is for --engine plain"),
    ([*TRAIN, "--widths", "0.5,wide"], "--widths '0.5,wide'"),
    ([*TRAIN, "--widths", "0.5"], "include 1.0, got 0.5"),
    ([*TRAIN, "--layers", "odd"], "unknown layer rule 'odd'"),
    ([*TRAIN, "--phases", "polish"], "unknown phase 'polish'"),
    ([*TRAIN, "--phases", "mlm"], "mlm"),
    ([*TRAIN, "--recipe", "best"], "no recipe 'best'"),
    ([*TRAIN, "--set", "width.a=1"], "unknown setting width.a"),
    ([*TRAIN, "--batch-size", "0"], "batch size is 0"),
    ([*TRAIN, "--max-length", "0"], "maximum length is 0"),
    ([*TRAIN, "--seed", "-1"], "seed is -1; it must be from 0"),
    (["pretrain", "--corpus", "", "--model", "small", "--output", "x"], "corpus is ''"),
    (["augment", *DATA_OPTIONS, "--lm", "small", "--output", "texts.txt"], "texts.txt is a file"),
    (["train", *DATA_OPTIONS, "--model", "./absent", "--output", "x"], "no checkpoint folder at ./absent"),
    (["train", *DATA_OPTIONS, "--model", "small", "--output", "small"], "is not a model trained by Limbert"),
    ([*GATES, "--gates", "2"], "number of gates is 2; it must be a divisor of the 3 layers: 1, 3"),
    ([*GATES, "--gate-target", "luck"], "gate target is 'luck'; it must be label or agreement"),
    ([*GATES, "--widths", "1.0"], "gates choose among widths, and this model has 1"),
    ([*TRAIN, "--gates", "3"], "gate settings (count) need a phase that trains gates"),
    (["evaluate", "trained", "--policy", "width"], "this model has no width gates"),
    (["evaluate", "trained", "--policy", "fly"], "unknown policy 'fly'; write static:WIDTHxDEPTH, width, depth"),
    (["evaluate", "trained", "--policy", "depth"], "policy 'depth' needs an exit threshold"),
    (["evaluate", "trained", "--policy", "depth", "--exit-threshold", "0.1"], "trained with layers 'spread'"),
    (["evaluate", "dynamic", "--policy", "width", "--widths", "0.5"], "the gates have 4 choices"),
    (["evaluate", "dynamic", "--policy", "depth", "--exit-threshold", "1", "--exit-rule", "luck"], "rule is 'luck'"),
    (["evaluate", "dynamic", "--policy", "width", "--subnet", "1x1"], "either --subnet or --policy"),
    (["evaluate", "dynamic", "--widths", "0.5"], "need a --policy"),
    (["predict", "dynamic", "--policy", "swift", "--text", "a"], "an operating point of this model: fast, balanced"),
    (["predict", "dynamic", "--policy", "fast", "--widths", "0.5", "--text", "a"], "'fast' has its own widths"),
    (["tune", "small"], "small has no limbert.json"),
    (["tune", "dynamic", "--fast-drop", "-1"], "fast drop is -1.0"),
    (["train", "--task", "glue", "--data", DEMO_DATA, "--model", "small", "--output", "x"], "glue"),
    (["train", "--data", DEMO_DATA, "--text-column", "body", "--model", "small", "--output", "x"], "body"),
]


def test_bad_input_gets_one_clear_line(folder: Path) -> None:
    (folder / "empty.csv").write_text("")
    (folder / "wordless").mkdir()
    for name in ("config.json", "limbert.json", "model.safetensors"):
        (folder / "wordless" / name).write_bytes((folder / "trained" / name).read_bytes())
    (folder / "texts.txt").write_text("one\n")
    (folder / "texts.jsonl").write_text('{"text": "one"}\n')
    shutil.copytree(folder / "trained", folder / "paired")
    shutil.copytree(folder / "trained", folder / "lenient")
    record = json.loads((folder / "trained" / "limbert.json").read_text())
    record["settings"]["data"]["skip_bad_rows"] = True  # in training; predict needs every row
    (folder / "lenient" / "limbert.json").write_text(json.dumps(record))
    (folder / "gap.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "three"}\n')
    assert record["task"]["pairs"] is False
    (folder / "paired" / "limbert.json").write_text(json.dumps(record | {"task": record["task"] | {"pairs": True}}))
    for arguments, message in BAD_LINES:
        done = call(folder, *arguments)
        assert (done.returncode, done.stdout) == (1, ""), (arguments, done.stderr)
        assert message in done.stderr, arguments
        *before, error = done.stderr.splitlines()
        assert error.startswith("limbert: error: "), done.stderr
        assert not before or arguments[0] == "train", done.stderr  # which describes its data first
        assert "Traceback" not in done.stderr
    assert not [*folder.glob("x"), *folder.glob("x.*")]  # nothing half-written


def test_a_nan_loss_ends_the_run(folder: Path) -> None:
    network = AutoModel.from_pretrained(folder / "small")
    torch.nn.init.constant_(network.embeddings.LayerNorm.weight, float("nan"))
    network.save_pretrained(folder / "spoilt")
    for path in (folder / "small").glob("token*"):
        (folder / "spoilt" / path.name).write_bytes(path.read_bytes())
    done = call(folder, "train", *DATA_OPTIONS, "--model", "spoilt", "--output", "never", "--max-steps", "2")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("limbert: error")]
    assert "loss is nan at step 2; try a lower learning rate" in line
    assert not (folder / "never").exists()


def test_out_of_memory_names_a_batch_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr("transformers.BertForSequenceClassification.forward", allocate)
    train = ["train", *DATA_OPTIONS, "--model", "small", "--output", "huge", "--batch-size", "96"]
    for command, advice in ((["evaluate", "trained", "--batch-size", "50"], "25"), (train, "48")):
        done = call(folder, *command)
        assert done.returncode == 1
        error = done.stderr.splitlines()[-1]
        assert error.startswith("limbert: error: out of memory")
        assert f"--batch-size {advice}" in error


def test_debug_shows_a_traceback(folder: Path) -> None:
    done = run(folder, "predict", "trained", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_tensorboard_needs_its_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbert.train.output_run.find_spec", lambda name: None)
    for verb in (["train", *DATA_OPTIONS], ["pretrain", "--corpus", "texts.txt"]):
        done = call(folder, *verb, "--model", "small", "--output", "logged", "--tensorboard")
        assert done.returncode == 1
        assert "--tensorboard needs tensorboard" in done.stderr
    assert not (folder / "logged.training").exists()


def test_an_untrained_subnet_is_named(folder: Path) -> None:
    for name, is_untrained in (("1x0.34", True), ("0.5x1", False)):
        done = call(folder, "predict", "trained", "--subnet", name, "--text", "where is my card")
        assert done.returncode == 0, done.stderr
        assert (f"{name} was not trained; trained are 1x1" in done.stderr) == is_untrained


def test_skipped_rows_are_counted(folder: Path) -> None:
    rows = (Path(DEMO_DATA) / "dev.csv").read_text().splitlines()
    (folder / "gaps.csv").write_text("\n".join([*rows[:9], "only one cell", *rows[9:30]]))
    done = call(folder, "evaluate", "trained", "--dev", "gaps.csv", "--subnet", "1x1", "--skip-bad-rows", "--json")
    assert done.returncode == 0, done.stderr
    assert "1 malformed row of dev skipped" in done.stderr
