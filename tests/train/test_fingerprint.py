"""A run goes on, or counts as finished, on the same settings and the same content, wherever that lies by now."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.factories.networks import make_network
from tests.factories.tokenizers import byte_level
from transformers import AutoModelForSequenceClassification

from limbert.core.config import CorpusConfig, DataConfig, TrainConfig
from limbert.data.load import load_task_data
from limbert.errors import ConfigError, TrainingInterrupted
from limbert.train import fingerprint as content
from limbert.train import run as training
from limbert.train.distributed import DistributedContext
from limbert.train.fingerprint import (
    check_same_settings,
    corpus_fingerprints,
    describe_differences,
    run_settings,
    task_fingerprints,
)
from limbert.train.recipes import load_recipe, override_recipe
from limbert.train.run import TrainingRun
from limbert.train.run_folder import is_run_finished

SETTINGS = {
    "train": {"model": "a", "seed": 1, "recipe": "x"},
    "recipe": {"epochs": 3},
    "data": {"data": "d", "train": None, "text_column": None},
}
CONTENT = {"model_files": "1", "training_rows": "2", "development_rows": "3", "augmented_rows": None}
MOVED = {
    "train": {"model": "/b", "seed": 1, "recipe": "x.toml"},
    "recipe": {"epochs": 3},
    "data": {"data": None, "train": "/d/t", "text_column": None},
}


def test_equal_content_is_the_same_run_wherever_it_lies() -> None:
    known = SETTINGS | {"content": CONTENT}
    assert describe_differences(known, known) == ""
    assert describe_differences(known, MOVED | {"content": CONTENT}) == ""
    assert (
        describe_differences(known, SETTINGS | {"content": CONTENT | {"training_rows": "9"}}) == "other training rows"
    )
    assert describe_differences(known, SETTINGS | {"content": CONTENT | {"model_files": "9"}}) == "other model files"
    moved = describe_differences(known, MOVED | {"content": CONTENT | {"training_rows": "9"}})
    assert moved == 'data.data "d" -> null, data.train null -> "/d/t", other training rows'
    other = SETTINGS | {"train": {"model": "a", "seed": 2, "recipe": "x"}, "content": CONTENT}
    assert describe_differences(known, other) == "train.seed 1 -> 2"


def test_where_content_is_not_known_names_count() -> None:
    """Runs of older versions have no digests, models on the hub no files."""
    known = SETTINGS | {"content": CONTENT}
    assert describe_differences(SETTINGS, known) == ""
    assert 'train.model "a" -> "/b"' in describe_differences(SETTINGS, MOVED | {"content": CONTENT})
    on_the_hub = {"content": CONTENT | {"model_files": None}}
    assert describe_differences(SETTINGS | on_the_hub, SETTINGS | on_the_hub) == ""
    assert describe_differences(SETTINGS | on_the_hub, MOVED | on_the_hub) == 'train.model "a" -> "/b"'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and rows to train it on, named as they lie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMBERT_CACHE", str(tmp_path / "cache"))
    tokenizer = byte_level(trim=True)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
    make_network("roberta", AutoModelForSequenceClassification, num_labels=2, **sizes).save_pretrained("model")
    tokenizer.save_pretrained("model")
    rows = [f"a {['dog', 'cat'][place % 2]} {place},{['no', 'yes'][place % 2]},{place}" for place in range(40)]
    Path("data").mkdir()
    for name in ("train", "dev"):
        Path("data", f"{name}.csv").write_text("\n".join(["text,label,number", *rows]) + "\n")
    return tmp_path


def make_run(
    output: str = "run",
    *,
    data: str = "data",
    model: str = "model",
    rate: float = 1e-4,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingRun:
    config = TrainConfig(model=model, output=output, phases=("finetune",), validation=0.2)
    steps = {"max_steps": 2, "batch_size": 8, "learning_rate": rate}
    recipe = override_recipe(load_recipe("dynabert"), every_phase=steps, phases=config.phases)
    data_config = DataConfig(data=data)
    loaded = load_task_data(data_config, seed=config.seed)
    return TrainingRun(config, recipe, data_config=data_config, data=loaded, should_stop=should_stop)


def edited(path: str, old: str, new: str) -> Callable[[], None]:
    """Edits a file; the way back."""
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new, 1))
    return lambda: Path(path).write_text(text) and None


def test_an_unfinished_run_goes_on_with_its_own_content_only(folder: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        make_run(should_stop=lambda: True).run()
    for path, old, new, what in (
        ("data/train.csv", "a dog 8,no", "a dog 8,yes", "other training rows"),
        ("data/dev.csv", "a dog 8", "a fox 8", "other development rows"),
        ("model/config.json", "gelu", "relu", "other model files"),
    ):
        back = edited(path, old, new)
        with pytest.raises(
            ConfigError, match=rf"unfinished run with other settings \({what}\); .*own command and data"
        ):
            make_run()
        back()
    Path("data").rename("moved")
    edited("moved/train.csv", "a cat 9,yes,9", "a cat 9,yes,-1")  # a column that nobody reads
    shutil.move("model", "start")
    Path("start/limbert.json").write_text('{"phases": []}')  # as other verbs may write
    run = make_run(data="moved", model="start")
    run.run()
    assert is_run_finished("run", run.settings)
    edited("moved/train.csv", "a cat 11", "a cat 12")
    with pytest.raises(ConfigError, match=r"has other settings \(other training rows\); choose another folder"):
        is_run_finished("run", make_run("new", data="moved", model="start").settings)


def test_two_runs_do_not_write_into_one_output(folder: Path) -> None:
    refused = []

    def another() -> bool:
        with pytest.raises(ConfigError, match="another run is writing to run; wait until it ends"):
            make_run().run()
        refused.append(Path("run.training/settings.json").exists())
        return False

    make_run(should_stop=another).run()
    assert refused == [True, True]
    assert sorted(path.name for path in folder.glob("run*")) == ["run"]
    make_run().run()  # again, from the beginning: nothing is held any more


def test_the_order_of_rows_and_labels_is_content(folder: Path) -> None:
    data = load_task_data(DataConfig(data="data"), seed=0)
    before = task_fingerprints(data, "model")
    turned = data.train.select(range(len(data.train))[::-1])
    for other in (replace(data, train=turned), replace(data, task=replace(data.task, labels=("yes", "no")))):
        after = task_fingerprints(other, "model")
        assert [name for name in before if before[name] != after[name]] == ["training_rows"]
    assert task_fingerprints(data, "bert-base-uncased")["model_files"] is None


@pytest.fixture(params=[1 << 16, 1 << 8], ids=["read whole", "sampled"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(content, "_BLOCK_SIZE", request.param)
    monkeypatch.setattr(content, "_MAX_BLOCKS", 8)
    return request.param


def test_a_corpus_is_its_text(blocks: int, folder: Path) -> None:
    Path("texts").mkdir()
    rng = np.random.default_rng(0)
    for name in ("one.txt", "two.txt"):
        Path("texts", name).write_text(" ".join(map(str, rng.integers(9, size=2500))))

    def found(where: str) -> str | None:
        return corpus_fingerprints(CorpusConfig(corpus=(where,)), "model")["corpus_text"]

    before = found("texts")
    shutil.copytree("texts", "copy")
    assert found("copy/*.txt") == before
    for place in (0, -1):  # what is at either end is always looked at
        text = Path("texts/two.txt").read_text()
        Path("copy/two.txt").write_text("x" + text[1:] if place == 0 else text[:-1] + "x")
        assert found("copy") != before
    Path("copy/two.txt").write_text(text + " grown")
    assert found("copy") != before


def test_processes_of_one_run_have_the_same_settings_and_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, of which one is this one: what the other has stands in ``other``."""
    back = edited("data/train.csv", "a dog 8,no", "a dog 8,yes")
    fewer = make_run("fewer").settings
    back()
    faster, same = make_run("faster", rate=1e-3).settings, make_run("same").settings
    monkeypatch.setattr(training, "init_distributed", lambda: DistributedContext(2, 0))
    monkeypatch.setattr(DistributedContext, "run_on_main", lambda self, work: work())
    for other, what in (
        (fewer, r"\(other training rows\)"),
        (faster, r"\(recipe.phases.finetune.learning_rate 0.0001 -> 0.001\)"),
        ({**same, "content": same["content"] | {"training_tokens": "8"}}, r"\(other training tokens\)"),
    ):
        monkeypatch.setattr(DistributedContext, "all_gather_object", lambda self, mine, other=other: [mine, other])
        with pytest.raises(ConfigError, match=f"process 1 has other settings or data than process 0 {what}; start all"):
            make_run("together").run()
    assert not Path("together.training").exists()
    monkeypatch.setattr(DistributedContext, "all_gather_object", lambda self, mine: [mine, same])
    check_same_settings(DistributedContext(2, 0), same, {"training_tokens": "8"})


def test_other_options_that_change_nothing_are_no_other_settings(folder: Path) -> None:
    config = TrainConfig(model="model", output="a")
    recipe, data = load_recipe("dynabert"), DataConfig(data="data")
    other = replace(config, output="b", checkpoint_every=1.0, tensorboard=True)
    assert run_settings(config, recipe.to_dict(), data) == run_settings(other, recipe.to_dict(), data)
