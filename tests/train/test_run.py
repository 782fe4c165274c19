"""A run resumes, or counts as finished, with the same settings and data; command and Python give the same weights."""

import errno
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.factories.networks import make_network
from tests.factories.tokenizers import byte_level
from transformers import AutoModelForSequenceClassification, TrainerCallback

import limbert
from limbert import ElasticModel, Subnet
from limbert.cli.main import app
from limbert.cli.training import baseline_of
from limbert.core.config import DataConfig, TrainConfig
from limbert.data.augmented import AugmentedExamples
from limbert.data.load import load_task_data
from limbert.errors import ConfigError
from limbert.evaluation.results import read_results
from limbert.model.checkpoint import update_record
from limbert.train.recipes import Recipe, load_recipe, override_recipe
from limbert.train.run import task_fingerprint, train_task
from limbert.train.run_folder import describe_differences, is_run_finished, run_folder, run_settings

DATA = {"data": "d", "train": None, "text_column": None}
SETTINGS = {"train": {"model": "a", "seed": 1, "recipe": "x"}, "recipe": {"epochs": 3}, "data": DATA}
MOVED = SETTINGS | {"train": SETTINGS["train"] | {"recipe": "x.toml"}, "data": DATA | {"data": None, "train": "/d/t"}}
OTHER = SETTINGS | {"train": SETTINGS["train"] | {"seed": 2}}


def content(fingerprint: str | None) -> dict[str, Any]:
    return {"content": {"data": fingerprint}}


def test_moved_data_is_the_same_run() -> None:
    known = SETTINGS | content("1")
    assert describe_differences(known, MOVED | content("1")) == ""
    assert describe_differences(known, MOVED | content("2")) == "other data"
    assert describe_differences(SETTINGS, MOVED) == 'data.data "d" -> null, data.train null -> "/d/t"'
    assert describe_differences(known, OTHER | content("1")) == "train.seed 1 -> 2"
    assert describe_differences(SETTINGS, known) == ""  # an older version knew no fingerprint
    younger = known | {"train": known["train"] | {"new": None}}
    assert describe_differences(known, younger) == ""


# -- the work folder


def test_run_folder_reopens_only_with_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with run_folder(path, SETTINGS):
        (path / "finetune" / ".checkpoint-8.new-host-1").mkdir(parents=True)
        (path / "finetune" / "final").mkdir()
    with pytest.raises(ConfigError, match=r"train.seed 1 -> 2"), run_folder(path, OTHER):
        pass
    with run_folder(path, SETTINGS):  # after a kill in the middle of a save
        assert [entry.name for entry in (path / "finetune").iterdir()] == ["final"]
    with run_folder(path, OTHER, overwrite=True):
        assert not (path / "finetune").exists()
        (path / "width").mkdir()
    with run_folder(path, OTHER):
        pass


def test_a_run_without_results_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), run_folder(tmp_path / "run", SETTINGS):
        raise KeyboardInterrupt
    assert not [*tmp_path.iterdir()]


def test_output_of_another_run_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert not is_run_finished(output, SETTINGS)
    output.mkdir()
    assert not is_run_finished(output, SETTINGS)
    (output / "thesis.tex").write_text("")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="not a model"):
            is_run_finished(output, SETTINGS, overwrite=overwrite)
    (output / "limbert.json").write_text(json.dumps({"settings": SETTINGS}))
    assert is_run_finished(output, SETTINGS)
    with pytest.raises(ConfigError, match=r"train\.seed 1 -> 2"):
        is_run_finished(output, OTHER)
    assert not is_run_finished(output, OTHER, overwrite=True)


def test_a_killed_run_holds_no_lock(tmp_path: Path) -> None:
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        with run_folder(tmp_path / "run", SETTINGS):
            os.write(told, b"held")
            time.sleep(60)
        os._exit(0)
    assert os.read(ready, 4) == b"held"
    with pytest.raises(ConfigError, match="another run"), run_folder(tmp_path / "run", SETTINGS):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with run_folder(tmp_path / "run", SETTINGS), run_folder(tmp_path / "other", SETTINGS):
        pass
    assert not [*tmp_path.glob("*.lock")]


def test_without_locks_runs_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with run_folder(tmp_path / "run", SETTINGS), run_folder(tmp_path / "run", SETTINGS):
        pass
    assert not [*tmp_path.glob("*.lock")]


def test_processes_of_one_run_have_equal_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = SETTINGS | content("1")
    for other, what in ((SETTINGS | content("2"), "other data"), (OTHER | content("1"), "train.seed 1 -> 2")):
        monkeypatch.setattr("limbert.train.run_folder.all_gather_object", lambda value, other=other: [value, other])
        with pytest.raises(ConfigError, match=rf"process 1 .*{what}"), run_folder(tmp_path / "run", mine):
            pass
    monkeypatch.setattr("limbert.train.run_folder.all_gather_object", lambda value: [value, value])
    with run_folder(tmp_path / "run", mine):
        pass


# -- whole runs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and rows to train it on, named as they lie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMBERT_CACHE", str(tmp_path / "cache"))
    tokenizer = byte_level(trim=True)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
    make_network("roberta", num_labels=2, hidden_dropout_prob=0.1, **sizes).save_pretrained("model")
    tokenizer.save_pretrained("model")
    rows = [f"a {['dog', 'cat'][number % 2]} {number},{['no', 'yes'][number % 2]},{number}" for number in range(40)]
    Path("data").mkdir()
    for name in ("train", "dev"):
        Path("data", f"{name}.csv").write_text("\n".join(["text,label,number", *rows]) + "\n")
    return tmp_path


class Interrupt(TrainerCallback):
    """Ctrl-C in the first step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        raise KeyboardInterrupt


def run(output: str = "run", *, data: str = "data", rate: float = 1e-4, callbacks: Any = ()) -> dict[str, Any]:
    """A short run; its settings."""
    config = TrainConfig(model="model", output=output, phases=("finetune",), validation=0.2)
    steps = {"max_steps": 2, "batch_size": 8, "learning_rate": rate}
    recipe = override_recipe(load_recipe("dynabert"), every_phase=steps, phases=config.phases)
    data_config = DataConfig(data=data)
    loaded = load_task_data(data_config, seed=config.seed)
    train_task(config, recipe, data_config, data=loaded, callbacks=[*callbacks])
    return run_settings(config, recipe.to_dict(), loaded.config, fingerprint=task_fingerprint(loaded))


def edited(path: str, old: str, new: str) -> Callable[[], None]:
    """Edits a file; the way back."""
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new, 1))
    return lambda: Path(path).write_text(text) and None


def test_run_resumes_only_with_unchanged_data(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[Interrupt()])
    for path, old, new in (("data/train.csv", "a dog 8,no", "a dog 8,yes"), ("data/dev.csv", "a dog 8", "a fox 8")):
        back = edited(path, old, new)
        with pytest.raises(ConfigError, match="other data"):
            run()
        back()
    with pytest.raises(ConfigError, match="learning_rate"):
        run(rate=1e-3)
    Path("data").rename("moved")
    edited("moved/train.csv", "a cat 9,yes,9", "a cat 9,yes,-1")  # a column that is not read
    settings = run(data="moved")
    assert is_run_finished("run", settings)
    before = Path("run/model.safetensors").stat().st_mtime_ns
    run(data="moved")
    assert Path("run/model.safetensors").stat().st_mtime_ns == before
    edited("moved/train.csv", "a cat 11", "a cat 12")
    with pytest.raises(ConfigError, match="other data"):
        run(data="moved")


def test_two_runs_do_not_write_into_one_output(folder: Path) -> None:
    refused = []

    class Another(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            with pytest.raises(ConfigError, match="another run"):
                run()
            refused.append(Path("run.training/settings.json").exists())

    run(callbacks=[Another()])
    assert refused == [True, True]
    assert sorted(path.name for path in folder.glob("run*")) == ["run"]


def test_augmented_examples_count(folder: Path) -> None:
    data = load_task_data(DataConfig(data="data"), seed=0)
    copies = AugmentedExamples(data.train.select([0]), ("a",))
    others = AugmentedExamples(data.train.select([1]), ("a",))
    found = {task_fingerprint(replace(data, augmented=augmented)) for augmented in (None, copies, others)}
    assert len(found) == 3


def test_options_that_change_nothing_are_no_settings() -> None:
    config = TrainConfig(model="model", output="a")
    recipe, data = load_recipe("dynabert").to_dict(), DataConfig(data="data")
    other = replace(config, output="b", checkpoint_every=1.0, tensorboard=True)
    assert run_settings(config, recipe, data) == run_settings(other, recipe, data)


def test_command_and_python_give_the_same_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.toml").write_text(
        "[space]\nwidths = [0.5, 1.0]\ndepths = [0.5, 1.0]\nlayers = 'first'\n"
        + "".join(f"[phases.{name}]\nmax_steps = 3\nbatch_size = 8\n" for name in ("finetune", "width", "depth"))
        + "[phases.gates]\nepochs = 1\n"
    )
    options = ["--data", "data", "--model", "model", "--recipe", "mine.toml", "--validation", "0.2", "--seed", "3"]
    phases = ("finetune", "width", "depth", "gates")
    words = ["train", *options, "--phases", ",".join(phases), "--output", "command"]
    monkeypatch.setattr("sys.argv", ["limbert", *words])
    app(words, standalone_mode=False)
    results = limbert.train(
        "model", data="data", output="python", recipe="mine.toml", validation=0.2, seed=3, phases=phases
    )
    for name in ("model.safetensors", "gates.safetensors", "config.json"):
        assert Path("command", name).read_bytes() == Path("python", name).read_bytes()
    assert [result.subnet for result in results] == ["1x1", "0.5x1", "1x0.5", "0.5x0.5"]
    rows = [json.loads(line) for line in Path("command/results.jsonl").read_text().splitlines()]
    count = sum(map(len, load_task_data(DataConfig(data="data"), seed=3).dev.values()))
    assert [row["examples"] for row in rows] == [count] * 4
    assert all({*row["baseline"]} == {*row["metrics"]} for row in rows)
    card = Path("command/README.md").read_text()
    for part in ("# command", "Base model: model", "| 0.5x0.5 |", " M |", "text-classification", "Recipe: mine.toml"):
        assert part in card
    records = [json.loads(Path(name, "limbert.json").read_text()) for name in ("command", "python")]
    assert records[0].pop("command") == " ".join(["limbert", *words])
    assert records[0] == records[1]
    assert records[0]["settings"]["data"]["fingerprints"]
    assert records[0]["phases"] == [*phases]


def test_class_weights_reach_the_trainer(folder: Path) -> None:
    seen = []

    class Weights(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seen.append(args.class_weights)

    for weights in ("1,3.5", [2, 1]):
        limbert.train("model", data="data", output="run", overwrite=True, phases=("finetune",), validation=0.2,
                      recipe=short_recipe(), class_weights=weights, callbacks=[Weights()])  # fmt: skip
    assert seen == [[1.0, 3.5], [2.0, 1.0]]
    for weights in ("even", "1,x", "1,,2"):
        with pytest.raises(ConfigError, match="balanced"):
            TrainConfig(model="m", output="o", class_weights=weights)
    with pytest.raises(ConfigError, match="2 numbers"):
        limbert.train("model", data="data", output="other", recipe=short_recipe(), class_weights="1,2,3")


def short_recipe(phases: tuple[str, ...] = ("finetune",), **changes: Any) -> Recipe:
    """Two steps of fine-tuning."""
    settings = {"max_steps": 2, "batch_size": 8} | changes
    return override_recipe(load_recipe("dynabert"), every_phase=settings, phases=phases)


def test_seeds_write_mean_and_standard_deviation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = limbert.train("model", data="data", output="runs", recipe=short_recipe(), phases=("finetune",),
                          validation=0.2, seeds=(1, 2))  # fmt: skip
    rows = [json.loads(line) for line in Path("runs/seeds.jsonl").read_text().splitlines()]
    for seed, results in found.items():
        assert read_results(f"runs/seed-{seed}") == results
    values = [results[0].metrics["accuracy"] for results in found.values()]
    assert rows[0]["metrics"]["accuracy"] == pytest.approx(sum(values) / 2)
    assert rows[0]["spread"]["accuracy"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert rows[0]["seeds"] == [1, 2]
    command = "--recipe dynabert --phases finetune --max-steps 2 --batch-size 8 --validation 0.2 --seeds 1,2"
    app(["train", "--data", "data", "--model", "model", "--output", "runs", *command.split()], standalone_mode=False)
    table = capsys.readouterr().out
    assert f"{50 * sum(values):.1f} ± " in table
    assert "runs/seed-1, runs/seed-2" in table
    with pytest.raises(ConfigError, match="different"):
        limbert.train("model", data="data", output="runs", recipe=short_recipe(), seeds=(1, 1))


def test_one_subnet_is_specialised_and_exported(folder: Path) -> None:
    limbert.train("model", data="data", output="run", recipe=short_recipe(), validation=0.2)
    found = Subnet((0, 1), (1, 2), (16, 32))  # another width in each layer, as a search finds them
    update_record("run", lambda record: record.update(subnets={"found-1": found.to_dict()}))
    steps = {"max_steps": 4, "learning_rate": 1e-3}
    recipe = override_recipe(load_recipe("limbert"), every_phase=steps, phases=["specialise"])
    before = ElasticModel.from_pretrained("run").extract(found)
    (result,) = limbert.train("run", subnet="found-1", output="special", recipe=recipe, validation=0.2)
    assert result.subnet == "found-1"
    assert read_results("special") == [result]
    assert not Path("special/limbert.json").exists()
    assert not Path("special.elastic").exists()
    after = AutoModelForSequenceClassification.from_pretrained("special", trust_remote_code=True)
    shapes = {name: weight.shape for name, weight in before.state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in after.state_dict().items()}
    assert after.config.id2label == {0: "no", 1: "yes"}
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert any(not torch.equal(*pair) for pair in pairs)
    with pytest.raises(ConfigError, match="holds an export"):
        limbert.train("run", subnet="found-1", output="special")
    lengths: list[int] = []

    class Longest(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, processing_class: Any = None, **_: Any) -> None:
            lengths.append(processing_class.model_max_length)

    for given in ({}, {"max_length": 128}):  # equal to the default, and given
        options = {"recipe": short_recipe(phases=("specialise",)), "validation": 0.2, "callbacks": [Longest()]}
        update_record("run", lambda record: record["settings"]["data"].update(max_length=10))
        limbert.train("run", subnet="0.5x0.5", output=f"other-{len(given)}", **options, **given)
    assert lengths[0] == 10 < lengths[1]
    with pytest.raises(ConfigError, match="specialise"):
        limbert.train("run", data="data", output="other", phases=("specialise",))


def test_what_a_run_will_do_is_said_before(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="limbert")
    recipe = override_recipe(load_recipe("limbert"), every_phase={"epochs": 1.0, "batch_size": 8}, phases=["finetune"])
    recipe.phases["finetune"] = replace(recipe.phases["finetune"], min_steps=10)
    limbert.train("model", data="data", output="run", recipe=recipe, validation=0.2, max_length=10)
    text = caplog.text
    for part in ("columns: text 'text'", "task: classification", "no = 0 (20)",
                 "examples: 32 train, 8 validation, 40 dev", "label ids: the order of the training data's names",
                 "finetune 10 steps (2.5 epochs, instead of 1", "estimated time in all: ",
                 "baseline, always predicting the same: accuracy 50.0", "truncated"):  # fmt: skip
        assert part in text
    rows = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) == 10


def test_a_degenerate_run_ends_with_advice(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    class Baselines(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
            seen.append((args.metric_for_best_model, args.baseline))

    for name in ("train", "dev"):  # texts that say nothing about their labels
        Path("data", f"{name}.csv").write_text("text,label\n" + "a dog,no\na dog,yes\n" * 20)
    limbert.train("model", data="data", output="run", recipe=short_recipe(), validation=0.2, metric="macro_f1",
                  callbacks=[Baselines()])  # fmt: skip
    assert seen[-1] == ("macro_f1", pytest.approx(1 / 3))
    assert "no sub-network is better" in caplog.text
    assert baseline_of("run") == {"macro_f1": pytest.approx(1 / 3), "accuracy": 0.5}
