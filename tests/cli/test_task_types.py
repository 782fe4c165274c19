"""Every task type through the verbs: trained, evaluated, predicted, or refused in one line."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.factories.runs import make_small_encoder, needs_encoder
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification, AutoTokenizer, pipeline

from limbert.cli import main as command
from limbert.errors import LimbertError

pytestmark = needs_encoder
NAMES, PLACES = ("Ann", "Bo", "Cy", "Dee"), ("Oslo", "Rome", "Kyiv", "Lima", "Bonn")
SHORT = ["--max-steps", "3", "--batch-size", "8", "--max-length", "32"]


def sentences(count: int) -> list[tuple[str, str, int]]:
    return [(NAMES[n % 4], PLACES[n % 5], n) for n in range(count)]


def write_data(folder: Path) -> None:
    """The same facts as tagged sentences, questions, label sets and numbers."""
    facts = sentences(60)
    tagged = "".join(f"{who}\tB-person\nlives\tO\nin\tO\n{where}\tB-place\n.\tO\n\n" for who, where, _ in facts)
    for part in ("train", "dev"):
        (folder / "ner").mkdir(exist_ok=True)
        (folder / "ner" / f"{part}.conll").write_text(tagged)
    articles = []
    for who, where, number in facts:
        context = " ".join([f"{who} moved {number} times."] * 6 + [f"Now {who} lives in {where}."])
        answer = {"text": where, "answer_start": context.rindex(where)}
        inputs = {"id": str(number), "question": f"Where does {who} live?", "answers": [answer]}
        articles.append({"title": f"{who} {number}", "paragraphs": [{"context": context, "qas": [inputs]}]})
    (folder / "squad.json").write_text(json.dumps({"version": "1.1", "data": articles}))
    rows = [{"text": f"{who} in {where}", "labels": [who, where][number % 3 :]} for who, where, number in facts]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stars = "".join(f"{who} in {where},{number / 7:.3f}\n" for who, where, number in facts)
    (folder / "stars.csv").write_text("text,stars\n" + stars)


DATA = {
    "token-classification": ["--task", "ner", "--data", "ner"],
    "question-answering": ["--task", "squad", "--train", "squad.json", "--held-out", "0.2"],
    "multi-label": ["--train", "labels.jsonl", "--held-out", "0.2", "--layers", "first"],
    "regression": ["--train", "stars.csv", "--label-column", "stars", "--held-out", "0.2", "--layers", "first"],
}
ENDS = {"token-classification": "_f1", "question-answering": "f1", "multi-label": "_f1", "regression": "pearson"}
INPUT = {
    "token-classification": ["--text", "Ann lives in Oslo.", "--text", "Bo, too."],
    "question-answering": ["--text", "Where is Ann?", "--pair", "Ann is in Oslo. " * 20],
    "multi-label": ["--text", "Ann in Oslo"],
    "regression": ["--text", "Ann in Oslo"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tasks")
    make_small_encoder(folder / "small")
    write_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LIMBERT_CACHE", str(folder / "cache"))
        yield folder


Limbert = Callable[..., Any]


@pytest.fixture
def limbert(folder: Path, capsys: pytest.CaptureFixture[str]) -> Limbert:
    """Runs a verb in this process and returns the JSON that it prints."""

    def call(*arguments: str) -> Any:
        capsys.readouterr()
        command.app([*arguments], standalone_mode=False)
        printed = capsys.readouterr().out
        return json.loads(printed) if "--json" in arguments else printed

    return call


@pytest.fixture
def trained(folder: Path, limbert: Limbert) -> Callable[[str], list[dict[str, Any]]]:
    def train(task_type: str) -> list[dict[str, Any]]:
        options = ["--model", "small", "--output", task_type, "--validation", "0.2", "--json"]
        results: list[dict[str, Any]] = limbert("train", *DATA[task_type], *SHORT, *options)
        return results

    return train


@pytest.mark.parametrize("task_type", DATA)
def test_each_subnet_is_trained_and_evaluated(limbert, trained, task_type):
    results = trained(task_type)
    assert len(results) >= 8
    assert next(iter(results[0]["metrics"])).endswith(ENDS[task_type])
    for size, most in (("64", 1e-6), ("7", 0.1)):  # rounding in other batches changes a prediction or two of twelve
        again = limbert("evaluate", task_type, "--json", "--batch-size", size)
        for row, other in zip(results, again, strict=True):
            assert row["metrics"] == pytest.approx(other["metrics"], abs=most)
    log = [json.loads(line) for line in (Path(task_type) / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in log if "loss" in record]
    assert len(losses) == 3
    assert all(loss > 0 for loss in losses)
    assert json.loads((Path(task_type) / "limbert.json").read_text())["task"]["kind"] == task_type


@pytest.mark.parametrize("task_type", DATA)
def test_any_subnet_predicts(limbert, trained, task_type):
    trained(task_type)
    for name in ("1x1", "0.5x0.75"):
        rows = limbert("predict", task_type, *INPUT[task_type], "--subnet", name, "--json")
        for row in rows:
            if task_type == "token-classification":
                for span in row["entities"]:
                    assert row["text"][span["start"] : span["end"]] == span["text"]
            elif task_type == "question-answering":
                assert row["pair"][row["start"] : row["end"]] == row["answer"] != ""
                assert 0 < row["score"] <= 1
            else:
                assert [*row][1:] == (["labels"] if task_type == "multi-label" else ["score"])
    assert limbert("predict", task_type, *INPUT[task_type])


def test_stock_transformers_predicts_the_same(limbert, trained):
    trained("token-classification")
    trained("question-answering")
    network = AutoModelForTokenClassification.from_pretrained("token-classification")
    assert network.config.id2label[1] == "B-person"
    network_qa = AutoModelForQuestionAnswering.from_pretrained("question-answering")
    tokenizer = AutoTokenizer.from_pretrained("question-answering")
    question, context = "Where is Ann?", "Ann is in Oslo and Bo in Rome."
    (ours,) = limbert("predict", "question-answering", "--text", question, "--pair", context, "--json")
    inputs = tokenizer(question, context, return_offsets_mapping=True, return_tensors="pt")
    spans = inputs.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        output = network_qa(**inputs)
    inside = [token for token, which in enumerate(inputs.sequence_ids(0)) if which == 1]
    pairs = [(first, last) for first in inside for last in inside if first <= last < first + 30]
    first, last = max(pairs, key=lambda pair: float(output.start_logits[0, pair[0]] + output.end_logits[0, pair[1]]))
    assert (spans[first][0], spans[last][1]) == (ours["start"], ours["end"])
    theirs = pipeline("token-classification", model="token-classification", aggregation_strategy="first")(context)
    (ours,) = limbert("predict", "token-classification", "--text", context, "--json")
    assert [span["end"] for span in theirs if span["entity_group"] != "O"] == [span["end"] for span in ours["entities"]]


@pytest.mark.parametrize("task_type", ["token-classification", "question-answering"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "RUN"], "tune chooses"),
        (["evaluate", "RUN", "--policy", "static:1x1"], "--subnet WIDTHxDEPTH"),
        (["predict", "RUN", "--policy", "width"], "policy width chooses"),
        (["train", "DATA", "--model", "RUN", "--phases", "gates", "--output", "x"], "phase gates"),
    ],
)
def test_policies_need_one_output_per_text(limbert, trained, task_type, arguments, message):
    trained(task_type)
    given = [
        part
        for name in arguments
        for part in ({"DATA": [*DATA[task_type], *SHORT], "RUN": [task_type]}.get(name, [name]))
    ]
    given += INPUT[task_type] if arguments[0] == "predict" else []
    with pytest.raises(LimbertError, match=message) as caught:
        limbert(*given)
    assert "\n" not in str(caught.value)
    assert not Path("x").exists()


@pytest.mark.parametrize("task_type", ["multi-label", "regression"])
def test_exits_of_multi_label_and_regression(limbert, trained, task_type):
    trained(task_type)
    rule = ["--exit-rule", "confidence", "--exit-threshold", "0.5"] if task_type == "multi-label" else []
    policy = ["--policy", "depth", *(rule or ["--exit-threshold", "0.5"])]
    result = limbert("evaluate", task_type, *policy, "--json")
    assert sum(result["exits"].values()) == pytest.approx(1)
    points = limbert("tune", task_type, "--thresholds", "3", "--json")["operating_points"]
    assert [*points] == ["fast", "balanced", "accurate"]
    (row,) = limbert("predict", task_type, *INPUT[task_type], *policy, "--json")
    assert row["flops"] > 0
    assert limbert("predict", task_type, *INPUT[task_type], "--policy", "balanced")


@pytest.mark.slow
@pytest.mark.parametrize("task_type", ["token-classification", "question-answering", "multi-label"])
def test_export_with_a_head_predicts_the_same(limbert, trained, task_type):
    trained(task_type)
    result = limbert(
        "export", task_type, "--subnet", "0.5x0.75", "--output", f"{task_type}-out", "--json", "--overwrite"
    )
    assert result["compared"]["on"] == "examples of the development set"
    assert result["compared"]["difference"] < 1e-5
    assert "pipeline_tag: " in (Path(f"{task_type}-out") / "README.md").read_text()
