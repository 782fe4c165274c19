"""The same copies however often they were begun; and they train where they should, and nowhere else."""

import json
from pathlib import Path

import pytest
import torch
from tests.factories.networks import make_network
from tests.factories.tokenizers import byte_level
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from limbert.augment.generate import augment
from limbert.core.config import AugmentConfig, DataConfig, TrainConfig
from limbert.data.load import load_task_data
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError, DataError, LimbertError, StorageError
from limbert.method.losses import label_loss, logit_loss
from limbert.train.recipes import load_recipe, override_recipe
from limbert.train.run import load_run_data, train_task
from limbert.train.trainer import ElasticTrainer

WORDS = ["dog", "cat", "café", "catdog", "sat", "ran"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, a teacher and pairs of texts, of which the first 40 texts stand in two rows."""
    folder = tmp_path_factory.mktemp("augment")
    tokenizer = byte_level(trim=True)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
    labels = {"num_labels": 2, "id2label": {0: "yes", 1: "no"}, "label2id": {"yes": 0, "no": 1}}
    make_network("roberta", AutoModelForMaskedLM, **sizes).save_pretrained(folder / "lm")
    teacher = make_network("roberta", AutoModelForSequenceClassification, **sizes, **labels)
    teacher.save_pretrained(folder / "teacher")
    for name in ("lm", "teacher"):
        tokenizer.save_pretrained(folder / name)
    texts = [f"a {WORDS[place % 6]} {WORDS[place // 6 % 6]}, {WORDS[place // 36]} {place}" for place in range(80)]
    rows = [f'"{texts[place]}","the {texts[place % 40]}",{["no", "yes"][place % 2]},{place}' for place in range(80)]
    for name in ("train", "dev"):
        (folder / f"{name}.csv").write_text("\n".join(["text1,text2,label,number", *rows]) + "\n")
    return folder


def config_of(folder: Path, output: str, **settings: object) -> AugmentConfig:
    return AugmentConfig(lm=str(folder / "lm"), output=str(folder / output), copies=3, candidates=4, **settings)


def data_of(folder: Path, **settings: object) -> DataConfig:
    return DataConfig(data=str(folder), **settings)


def test_interrupted_anywhere_it_ends_with_the_same_file(folder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    made = augment(config_of(folder, "one"), data_of(folder), progress=lambda *state: seen.append(state))
    whole = made.path.read_bytes()
    assert (made.num_examples, made.num_augmented, made.path.name) == (80, 240, "train_aug.csv")
    assert made.num_masked_words == json.loads((folder / "one" / "train_aug.json").read_text())["masked_words"] > 80
    assert seen[0] == ("choosing words", 0, 4)  # 120 different texts, 32 a piece
    assert seen[-1] == ("writing copies", 2, 2)
    assert not (folder / "one" / "train_aug.work").exists()

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) in stops:
            stops.remove((what, done))
            raise KeyboardInterrupt

    stops = {("choosing words", 1), ("choosing words", 3), ("writing copies", 1)}
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            augment(config_of(folder, "two"), data_of(folder), progress=stop)
        assert not (folder / "two" / "train_aug.csv").exists()
    again = augment(config_of(folder, "two"), data_of(folder), progress=stop)
    assert again.path.read_bytes() == whole
    assert again.num_masked_words == made.num_masked_words
    assert augment(config_of(folder, "four", seed=1), data_of(folder)).path.read_bytes() != whole


def test_cells_whose_key_occurs_late_are_repeated(folder: Path) -> None:
    rows = [{"text": f"a dog {row}", "label": ["no", "yes"][row % 2]} for row in range(102)]
    rows[101]["source"] = "the last"
    (folder / "late.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = augment(config_of(folder, "late"), DataConfig(train=str(folder / "late.jsonl")))
    copies = [json.loads(line) for line in made.path.read_text().splitlines()]
    assert len(copies) > 200
    assert {copy.get("source") for copy in copies if copy["text"].endswith("101")} == {"the last"}
    assert not any("source" in copy for copy in copies if not copy["text"].endswith("101"))


def test_a_finished_result_is_found_again_and_another_refused(folder: Path) -> None:
    made = augment(config_of(folder, "found"), data_of(folder))
    stamp = made.path.stat().st_mtime_ns
    assert augment(config_of(folder, "found"), data_of(folder)) == made
    assert made.path.stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match=r"other settings \(augment.probability 0.4 -> 0.9\)"):
        augment(config_of(folder, "found", probability=0.9), data_of(folder))
    other = augment(config_of(folder, "found", probability=0.9), data_of(folder), overwrite=True)
    assert other.path.stat().st_mtime_ns != stamp
    (folder / "words.csv").write_text("text,label\nthe of a,yes\n1 2 3,no\nand,yes\n4,no\n")
    with pytest.raises(DataError, match="in no row a word was replaced; nothing was written"):
        augment(config_of(folder, "none"), DataConfig(train=str(folder / "words.csv")))
    assert not [*(folder / "none").glob("*")]
    again = folder / "found" / "train_aug.json"
    record = again.read_text()
    again.write_text("[1]")
    with pytest.raises(StorageError, match=r"train_aug.json holds list, not an object"):
        augment(config_of(folder, "found", probability=0.9), data_of(folder))
    again.write_text(record)
    with pytest.raises(DataError, match="augmented already"):
        augment(config_of(folder, "twice"), DataConfig(train=str(other.path)))
    with other.path.open("a") as file:
        file.write("edited")
    with pytest.raises(ConfigError, match=r"train_aug.csv was changed since it was made; --overwrite makes it again"):
        augment(config_of(folder, "found", probability=0.9), data_of(folder))
    with pytest.raises(ConfigError, match="not fine-tuned for this task; it must answer no, yes"):
        augment(config_of(folder, "bad", with_logits=str(folder / "lm")), data_of(folder))
    with pytest.raises(LimbertError, match="no-vectors"):
        augment(config_of(folder, "bad", neighbours=str(folder / "no-vectors")), data_of(folder))
    assert not (folder / "bad").exists()


@torch.no_grad()
def test_logits_are_the_teachers_for_each_copy(folder: Path) -> None:
    data = data_of(folder)
    made = augment(config_of(folder, "logits", with_logits=str(folder / "teacher")), data)
    loaded = load_task_data(data_of(folder, augmented=str(made.path)), seed=0)
    copies = loaded.augmented
    assert copies is not None
    assert copies.logits is not None
    plain = augment(config_of(folder, "plain"), data)
    without = load_task_data(data_of(folder, augmented=str(plain.path)), seed=0).augmented
    assert without is not None
    assert (without.examples, without.source_ids) == (copies.examples, copies.source_ids)
    teacher = AutoModelForSequenceClassification.from_pretrained(folder / "teacher").eval()
    tokenizer = byte_level(trim=True)
    assert loaded.task.labels == ("no", "yes")
    for row in (0, 7, 239):
        inputs = tokenizer(copies.examples.texts[row], (copies.examples.pairs or ())[row], return_tensors="pt")
        yes, no = teacher(**inputs).logits[0]
        torch.testing.assert_close(torch.from_numpy(copies.logits[row]), torch.stack([no, yes]), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("with_logits", [False, True])
def test_copies_train_in_the_phases_that_distil_and_none_of_a_row_that_validates(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_logits: bool
) -> None:
    name = "logits" if with_logits else "one"
    teacher = str(folder / "teacher")
    made = augment(config_of(folder, name, with_logits=teacher if with_logits else None), data_of(folder))
    data_config = data_of(folder, augmented=str(made.path), max_length=60)
    seen: dict[str, TokenizedExamples] = {}
    train = ElasticTrainer.train

    def noted(self: ElasticTrainer, *arguments: object, **named: object) -> object:
        seen[self.args.phase] = self.train_dataset
        return train(self, *arguments, **named)

    monkeypatch.setattr(ElasticTrainer, "train", noted)
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
    materials = load_run_data(config, recipe, data_config, data)
    train_task(config, recipe, data_config, data=data)
    assert {phase: len(examples) for phase, examples in seen.items()} == {
        "finetune": 64, "width": 64 + 3 * 64, "depth": 64 + 3 * 64, "final": 64
    }  # fmt: skip
    validation = {" ".join(map(str, rows)) for rows in _rows(materials.eval_dataset)}
    numbers = {_number(rows) for rows in _rows(materials.eval_dataset)}
    assert not validation & {" ".join(map(str, rows)) for rows in _rows(seen["width"])}
    assert len(numbers) == 16
    assert not numbers & {_number(rows) for rows in _rows(seen["width"])}
    labels = seen["width"].labels
    assert labels is not None
    assert seen["finetune"].labels is not None
    if not with_logits:
        assert labels.dtype == torch.long
        return
    assert labels.shape == (256, 2)
    torch.testing.assert_close(labels[:64].argmax(dim=-1), seen["finetune"].labels)
    torch.testing.assert_close(labels.sum(dim=-1), torch.ones(256))
    assert labels[64:].max() < 1


def _rows(examples: TokenizedExamples) -> list[list[int]]:
    offsets = examples.tokens.offsets
    return [examples.tokens.ids[offsets[row] : offsets[row + 1]].tolist() for row in range(len(examples))]


def _number(row: list[int]) -> str:
    """The number that ends the first text: no copy changes it."""
    text = byte_level(trim=True).decode(row, skip_special_tokens=False)
    return text.split("</s>")[0].split()[-1]


def test_a_label_may_be_a_teachers_answer() -> None:
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    soft = label_loss(student, teacher.softmax(dim=-1), task_type="classification")
    torch.testing.assert_close(soft, logit_loss(student, teacher, task_type="classification"))
