"""Augmentation resumes, is reproducible, and no augmented example of a validation example trains."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.factories.networks import make_network
from tests.factories.tokenizers import byte_level
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

import limbert
from limbert.augment import generate
from limbert.augment.augmented_file import AugmentationResult
from limbert.core.config import DataConfig, TrainConfig
from limbert.data.augmented import compute_source_id
from limbert.data.load import load_task_data
from limbert.data.table import open_table
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError, DataError, LimbertError, StorageError
from limbert.train.recipes import load_recipe, override_recipe
from limbert.train.run import train_task
from limbert.train.task_examples import load_run_data
from limbert.train.trainer import ElasticTrainer

WORDS = ["dog", "cat", "café", "catdog", "sat", "ran"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, a teacher and pairs of texts; the first 40 texts are in two pairs."""
    folder = tmp_path_factory.mktemp("augment")
    tokenizer = byte_level(trim=True)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
    labels = {"num_labels": 2, "id2label": {0: "yes", 1: "no"}, "label2id": {"yes": 0, "no": 1}}
    make_network("roberta", AutoModelForMaskedLM, **sizes).save_pretrained(folder / "lm")
    teacher = make_network("roberta", AutoModelForSequenceClassification, **sizes, **labels)
    teacher.save_pretrained(folder / "teacher")
    for name in ("lm", "teacher"):
        tokenizer.save_pretrained(folder / name)
    texts = [f"a {WORDS[row % 6]} {WORDS[row // 6 % 6]}, {WORDS[row // 36]} {row}" for row in range(80)]
    rows = [f'"{texts[row]}","the {texts[row % 40]}",{["no", "yes"][row % 2]},{row}' for row in range(80)]
    for name in ("train", "dev"):
        (folder / f"{name}.csv").write_text("\n".join(["text1,text2,label,number", *rows]) + "\n")
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "EXAMPLES_PER_SHARD", 32)


def augment(folder: Path, output: str, **options: Any) -> AugmentationResult:
    data = {} if "train" in options else {"data": str(folder)}
    defaults = {"lm": str(folder / "lm"), "output": str(folder / output), "copies": 3, "candidates": 4}
    return limbert.augment(**defaults | data | options)


def test_interrupted_run_ends_with_the_same_file(folder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    result = augment(folder, "one", progress=lambda *state: seen.append(state))
    whole = result.path.read_bytes()
    assert (result.num_examples, result.num_augmented, result.path.name) == (80, 240, "train_aug.csv")
    record = json.loads((folder / "one" / "train_aug.json").read_text())
    assert result.num_masked_words == record["masked_words"] > 80
    assert seen == [("augmenting", done, 3) for done in range(4)]
    assert not (folder / "one" / "train_aug.work").exists()

    def stop(step: str, done: int, total: int) -> None:
        if (step, done) in stops:
            stops.remove((step, done))
            raise KeyboardInterrupt

    stops = {("augmenting", done) for done in range(3)}
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            augment(folder, "two", progress=stop)
        assert not (folder / "two" / "train_aug.csv").exists()
    resumed = augment(folder, "two", progress=stop)
    assert resumed.path.read_bytes() == whole
    assert resumed.num_masked_words == result.num_masked_words
    assert augment(folder, "seed", seed=1).path.read_bytes() != whole


def test_late_json_keys_are_repeated(folder: Path) -> None:
    rows = [{"text": f"a dog {row}", "label": ["no", "yes"][row % 2]} for row in range(102)]
    rows[101]["source"] = "the last"
    (folder / "late.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = augment(folder, "late", train=str(folder / "late.jsonl"))
    augmented = [json.loads(line) for line in result.path.read_text().splitlines()]
    assert len(augmented) > 200
    assert {row.get("source") for row in augmented if row["text"].endswith("101")} == {"the last"}
    assert not any("source" in row for row in augmented if not row["text"].endswith("101"))


def test_other_settings_and_results_are_refused(folder: Path) -> None:
    result = augment(folder, "settings")
    modified = result.path.stat().st_mtime_ns
    assert augment(folder, "settings") == result  # finished
    assert result.path.stat().st_mtime_ns == modified
    with pytest.raises(ConfigError, match=r"augment.probability 0.4 -> 0.9"):
        augment(folder, "settings", probability=0.9)
    other = augment(folder, "settings", probability=0.9, overwrite=True)
    assert other.path.stat().st_mtime_ns != modified

    def stop(step: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        augment(folder, "unfinished", progress=stop)
    with pytest.raises(ConfigError, match=r"augment.probability 0.4 -> 0.9"):
        augment(folder, "unfinished", probability=0.9)
    with result.path.open("a") as file:
        file.write("edited")
    with pytest.raises(ConfigError, match="--overwrite"):
        augment(folder, "settings", probability=0.9)
    record = result.path.with_suffix(".json")
    record.write_text("[1]")
    with pytest.raises(StorageError, match=r"train_aug.json"):
        augment(folder, "settings")
    record.unlink()
    with pytest.raises(ConfigError, match="not made by"):
        augment(folder, "settings")


def test_bad_input_writes_nothing(folder: Path) -> None:
    (folder / "words.csv").write_text("text,label\nthe of a,yes\n1 2 3,no\nand,yes\n4,no\n")
    with pytest.raises(DataError, match="no word was replaced"):
        augment(folder, "bad", train=str(folder / "words.csv"))
    augmented = augment(folder, "twice").path
    with pytest.raises(DataError, match="augmented already"):
        augment(folder, "bad", train=str(augmented))
    with pytest.raises(ConfigError, match="no, yes"):
        augment(folder, "bad", with_logits=str(folder / "lm"))
    with pytest.raises(LimbertError, match="no-vectors"):
        augment(folder, "bad", neighbours=str(folder / "no-vectors"))
    with pytest.raises(ConfigError, match="'copy'"):
        augment(folder, "bad", copy=3)
    assert not [*(folder / "bad").glob("*")]


@torch.no_grad()
def test_logits_are_the_teachers(folder: Path) -> None:
    path = augment(folder, "logits", with_logits=str(folder / "teacher")).path
    loaded = load_task_data(DataConfig(data=str(folder), augmented=str(path)), seed=0)
    augmented = loaded.augmented
    assert augmented is not None
    assert augmented.logits is not None
    plain = augment(folder, "plain").path
    without = load_task_data(DataConfig(data=str(folder), augmented=str(plain)), seed=0).augmented
    assert without is not None
    assert (without.examples, without.source_ids) == (augmented.examples, augmented.source_ids)
    teacher = AutoModelForSequenceClassification.from_pretrained(folder / "teacher").eval()
    tokenizer = byte_level(trim=True)
    assert loaded.task.labels == ("no", "yes")
    for row in (0, 7, 239):
        text, pair = augmented.examples.texts[row], (augmented.examples.pairs or ())[row]
        yes, no = teacher(**tokenizer(text, pair, return_tensors="pt")).logits[0]
        expected = torch.stack([no, yes])
        torch.testing.assert_close(torch.from_numpy(augmented.logits[row]), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("with_logits", [False, True])
def test_no_augmented_validation_example_trains(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_logits: bool
) -> None:
    """Augmented examples train in the phases that distil, and only those of training examples."""
    teacher = str(folder / "teacher")
    name, options = ("logits", {"with_logits": teacher}) if with_logits else ("one", {})
    data_config = DataConfig(data=str(folder), augmented=str(augment(folder, name, **options).path), max_length=60)
    trained: dict[str, Any] = {}
    train = ElasticTrainer.train

    def record(self: ElasticTrainer, *arguments: object, **named: object) -> object:
        trained[self.args.phase] = self.train_dataset
        return train(self, *arguments, **named)

    monkeypatch.setattr(ElasticTrainer, "train", record)
    monkeypatch.setenv("LIMBERT_CACHE", str(tmp_path / "cache"))
    config = TrainConfig(
        model=teacher, output=str(tmp_path / "run"), phases=("finetune", "width", "depth", "final"), validation=0.2
    )
    recipe = override_recipe(
        load_recipe("dynabert"),
        every_phase={"max_steps": 1},
        one_phase=["width.label_weight=1.0"],
        phases=config.phases,
    )
    data = load_task_data(data_config, seed=config.seed)
    eval_dataset = load_run_data(config, recipe, data).training["eval_dataset"]
    train_task(config, recipe, data_config, data=data)
    assert {phase: len(examples) for phase, examples in trained.items()} == {
        "finetune": 64, "width": 64 + 3 * 64, "depth": 64 + 3 * 64, "final": 64
    }  # fmt: skip
    numbers = {_number(ids) for ids in _input_ids(eval_dataset)}
    assert len(numbers) == 16
    assert not numbers & {_number(ids) for ids in _input_ids(trained["width"])}
    labels, original = trained["width"].labels, trained["finetune"].labels
    assert labels is not None
    assert original is not None
    if not with_logits:
        assert labels.dtype == torch.long
        return
    assert labels.shape == (256, 2)
    torch.testing.assert_close(labels[:64].argmax(dim=-1), original)
    torch.testing.assert_close(labels.sum(dim=-1), torch.ones(256))
    assert data.augmented is not None
    assert data.augmented.logits is not None
    in_models_order = torch.from_numpy(data.augmented.logits).flip(-1).softmax(dim=-1)
    soft, known = ({tuple(row) for row in part.round(decimals=5).tolist()} for part in (labels[64:], in_models_order))
    assert soft <= known


def _input_ids(examples: TokenizedExamples) -> list[list[int]]:
    return [examples.collate([row])["input_ids"][0].tolist() for row in range(len(examples))]


def _number(ids: list[int]) -> str:
    """The number that ends the first text; augmentation does not change it."""
    return byte_level(trim=True).decode(ids, skip_special_tokens=False).split("</s>")[0].split()[-1]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_written_rows_are_read_back(folder: Path, tmp_path: Path, suffix: str) -> None:
    """Every format gives the same texts and cells, with quotes and line ends where the format has them."""
    texts = ['a "big" dog', "dog, and 'cat'", "čšž 😀 dog", *([] if suffix == "tsv" else ["dog\rreturn", "dog\nline"])]
    rows = [(text, ["no", "yes"][row % 2], f'note, "{row}"') for row, text in enumerate(texts * 2)]
    path = tmp_path / f"train.{suffix}"
    with path.open("w", newline="", encoding="utf-8") as file:
        if suffix == "csv":
            csv.writer(file).writerows([("text", "label", "note"), *rows])
        elif suffix == "tsv":
            file.writelines("\t".join(row) + "\n" for row in [("text", "label", "note"), *rows])
        else:
            file.writelines(json.dumps(dict(zip(("text", "label", "note"), row, strict=True))) + "\n" for row in rows)
    result = augment(folder, f"written-{suffix}", train=str(path))
    written = [row.cells for row in open_table(result.path).rows()]
    assert len(written) == result.num_augmented > 10
    for cells in written:
        text, label, note = rows[int(cells["note"].split('"')[1])]
        assert (cells["label"], cells["note"]) == (label, note)
        assert cells["augmented_from"] == compute_source_id((text,))
        assert [part for part in cells["text"] if not part.isalpha()] == [part for part in text if not part.isalpha()]
