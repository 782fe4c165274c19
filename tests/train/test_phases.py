"""Phases run in order, resume bit for bit, graft and rewire by the validation split, and refuse other runs' folders."""

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.factories.distributed_worker import make_case
from tests.factories.networks import make_network
from tests.factories.phases import make_arguments, make_examples, make_model, make_trainer, train_phase
from tests.train.test_trainer import Padding, RequestStop, accuracy, rows_of
from transformers import TrainerCallback

import limbert
from limbert import ElasticModel, ElasticTrainer, Phase, Space
from limbert.core.config import PhaseConfig
from limbert.core.task_types import IGNORE_INDEX
from limbert.errors import ConfigError, TrainingInterrupted
from limbert.evaluation.results import read_results
from limbert.method.calibration import fit_temperature
from limbert.method.importance import importance_from_micro_batches
from limbert.model.width_gates import WidthGates
from limbert.train import callbacks as train_callbacks
from limbert.train.checkpoints import last_checkpoint

STEPS = {"batch_size": 30, "epochs": 3.0, "logit_weight": 1.0, "hidden_weight": 0.1, "learning_rate": 1e-4}


class InterruptAt(TrainerCallback):
    """Interrupts a training at a step of its own count, over all phases."""

    def __init__(self, step: int) -> None:
        self.left = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.left -= 1

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.left == 0:
            raise KeyboardInterrupt


def test_grafting_three_times_an_epoch_until_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train_phase("width", PhaseConfig(**STEPS), tmp_path / "plain")
    real, calls = train_callbacks.graft, []

    def noted(model: ElasticModel, scores: Any, **settings: float) -> None:
        trainer = make_trainer(tmp_path / "other", model, eval_dataset=make_examples(60, seed=2),
                               per_device_train_batch_size=30)  # fmt: skip
        expected = importance_from_micro_batches(model, trainer.importance_batches())
        torch.testing.assert_close(scores.heads, expected.heads)  # the validation split's, at this moment
        calls.append(settings)
        real(model, scores, **settings)

    monkeypatch.setattr(train_callbacks, "graft", noted)
    config = PhaseConfig(**STEPS, grafts=3, graft_rate=0.2, graft_share=0.25)
    grafted = train_phase("width", config, tmp_path / "grafted")
    assert calls == [{"rate": 0.2, "weak_fraction": 0.25}] * 6  # three steps an epoch: after each of the first six
    pairs = zip(plain.network.parameters(), grafted.network.parameters(), strict=True)
    assert any(not torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("is_rewired", [True, False])
@pytest.mark.parametrize("phase", ["width", "joint"])
def test_an_order_that_was_trained_is_kept(phase: str, is_rewired: bool, tmp_path: Path) -> None:
    """Rewiring would put other heads first than those that were trained to run alone."""
    model = make_model()
    model.gates = WidthGates(num_gates=1, hidden_size=48, widths=(0.5, 1.0))
    model.record["phases"] = ["joint" if phase == "width" else "width"] * is_rewired

    def small_logits() -> torch.Tensor:
        return model.view(model.subnet("0.5x1"))(input_ids=torch.arange(5, 15)[None]).logits

    before = small_logits()
    model = train_phase(phase, PhaseConfig(logit_weight=1.0, learning_rate=1e-12, max_steps=1), tmp_path, model)
    assert torch.allclose(before, small_logits(), atol=1e-3) is is_rewired
    assert model.gates is None  # they were trained on another encoder


@pytest.mark.parametrize("case", ["final", "finetune", "tokens"])
def test_scores_do_not_depend_on_micro_batches(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several processes scores whole batches, with no more rows in memory than it trains on."""
    model, data, task_type = make_case(case)
    model.network.double()
    trainers = [
        make_trainer(tmp_path, model, **data, task_type=task_type, per_device_train_batch_size=24 // count)
        for count in (1, 3, 24)
    ]
    whole = importance_from_micro_batches(model, trainers[0].importance_batches())
    assert whole.neurons.min() > 0
    for trainer, count in zip(trainers[1:], (3, 24), strict=True):
        monkeypatch.setattr(type(trainer.args), "world_size", count)
        batches = [[*pieces] for pieces in trainer.importance_batches()]
        assert max(len(piece["input_ids"]) for pieces in batches for piece, _ in pieces) == 24 // count
        assert all(sum(part for _, part in pieces) == pytest.approx(1) for pieces in batches)
        found = importance_from_micro_batches(model, batches)
        torch.testing.assert_close(found.heads, whole.heads, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.neurons, whole.neurons, rtol=1e-6, atol=1e-9)
    if case == "tokens":
        data["eval_dataset"].labels.fill_(IGNORE_INDEX)
        assert importance_from_micro_batches(model, trainers[0].importance_batches()).heads.max() == 0


# -- limbert.train(model, ...)

DATA = {"train_dataset": rows_of(40, seed=1), "eval_dataset": rows_of(20, seed=2), "data_collator": Padding(),
        "compute_metrics": accuracy}  # fmt: skip


def train(
    folder: Path, *, phases: Any = ("finetune", "width", "depth", "gates"), callbacks: Any = (), **changes: Any
) -> Any:
    settings = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-3} | changes
    network = make_network("bert", hidden_dropout_prob=0.1)
    model = ElasticModel(network, space=Space(widths=(0.5, 1.0), depths=(0.5, 1.0), layers="first"))
    arguments = make_arguments(folder, **settings)
    return limbert.train(model, recipe="flexible-bert", phases=phases, args=arguments, callbacks=[*callbacks], **DATA)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder


def test_a_run_ends_in_a_loadable_checkpoint(whole: Path) -> None:
    model = ElasticModel.from_pretrained(whole)
    assert model.record["phases"] == ["finetune", "width", "depth", "gates"]
    assert model.record["task"]["kind"] == "classification"
    assert model.gates is not None
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(row["phase"] for row in rows)) == ["finetune", "width", "depth", "gates"]
    keys = [{"phase", "step", "loss", "learning_rate", "examples_per_second"}, {"phase", "step", "validation"}]
    assert all({*row} in keys for row in rows)
    assert sorted(path.name for path in whole.parent.iterdir()) == [whole.name]
    results = read_results(whole)
    assert [result.subnet for result in results] == [*model.subnets()]
    assert all(0 <= result.metrics["accuracy"] <= 1 for result in results)
    card = (whole / "README.md").read_text()
    assert card.splitlines().count("# run") == 1
    assert f"| {results[-1].subnet} |" in card


@pytest.mark.parametrize("step", [9, 16])  # in the second and in the third phase
def test_interrupted_anywhere_the_same_call_ends_equal(step: int, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", callbacks=[InterruptAt(step)], save_seconds=1e-9)
    train(tmp_path / "run", save_seconds=1e-9)
    for name in ("model.safetensors", "gates.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (whole, tmp_path / "run")]
    assert len(logs[0]) == len(logs[1])


def test_a_finished_run_is_loaded_and_others_refused(whole: Path) -> None:
    before = (whole / "model.safetensors").stat().st_mtime_ns
    again = train(whole)
    assert (whole / "model.safetensors").stat().st_mtime_ns == before
    assert again.record["phases"] == ["finetune", "width", "depth", "gates"]
    with pytest.raises(ConfigError, match="learning_rate"):
        train(whole, learning_rate=1e-4)


def test_given_arguments_replace_the_recipes(tmp_path: Path) -> None:
    seen = []

    class Settings(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seen.append((args.learning_rate, args.per_device_train_batch_size, args.weight_decay, args.warmup_steps))

    defaults = {"learning_rate": 5e-5, "per_device_train_batch_size": 8}  # those of transformers, named all the same
    arguments = make_arguments(tmp_path, max_steps=1, **defaults)
    arguments.weight_decay = 0.3
    limbert.train(make_model(), recipe="limbert", phases=["finetune"], args=arguments, callbacks=[Settings()], **DATA)
    assert seen == [(5e-5, 8, 0.3, 0.1)]
    copied = replace(arguments, max_steps=2)
    assert {"max_steps", "weight_decay"} <= copied.given
    assert "learning_rate" not in copied.given  # all are named then


def test_tensorboard_has_every_phase(tmp_path: Path) -> None:
    train(tmp_path / "run", phases=("finetune", "gates"), report_to=["tensorboard"], logging_steps=2)
    for phase in ("finetune", "gates"):
        (file,) = (tmp_path / "run" / "tensorboard" / phase).iterdir()
        events = EventAccumulator(str(file))
        events.Reload()
        assert {"train/loss", "eval/loss"} <= {*events.Tags()["scalars"]}


def test_datasets_in_memory_are_calibrated(tmp_path: Path) -> None:
    args = make_arguments(tmp_path / "run", max_steps=4)
    trained = limbert.train(make_model(), recipe="dynabert", phases=["finetune"], args=args, **DATA)
    temperatures = trained.record["temperatures"]
    batch = Padding()([*DATA["eval_dataset"]])
    labels = batch.pop("labels").numpy()
    for name, subnet in trained.subnets().items():
        logits = trained.view(subnet)(**batch).logits.detach().numpy()
        assert temperatures[name] == pytest.approx(fit_temperature(logits, labels, task_type="classification"), 1e-3)
    assert {result.calibration.temperature for result in read_results(tmp_path / "run")} == {*temperatures.values()}


def test_own_phases_run_and_know_the_baseline(tmp_path: Path) -> None:
    own = Phase("smallest", select_subnets=lambda model: {"0.5x0.5": model.subnet("0.5x0.5")})
    arguments = make_arguments(tmp_path / "run", max_steps=1)
    data = DATA | {"compute_metrics": None}
    model = limbert.train(make_model(), recipe="dynabert", phases=[own], args=arguments, **data)
    assert model.record["phases"] == ["smallest"]
    (row, *_) = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    most_frequent = Counter(DATA["train_dataset"]["label"][:]).most_common(1)[0][0]
    assert row["baseline"] == {"accuracy": DATA["eval_dataset"]["label"][:].count(most_frequent) / 20}
    arguments = make_arguments(tmp_path / "tenth", max_steps=1)  # without an evaluation set a tenth is taken
    assert limbert.train(make_model(), phases=[own], args=arguments, **data | {"eval_dataset": None})
    with pytest.raises(ConfigError, match="eval_dataset"):
        limbert.train(model, args=make_arguments(tmp_path / "b"), train_dataset=make_examples(9, seed=1))


def test_a_graceful_stop_saves_and_names_the_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=9, phase="width")
    trainer.add_callback(RequestStop(trainer, 4))
    with pytest.raises(TrainingInterrupted, match="phase width at step 4 of 9"):
        trainer.train()
    assert last_checkpoint(tmp_path).name == "checkpoint-4"


def test_partial_checkpoints_are_passed_over(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=6, save_steps=2)
    trainer.train()
    expected = copy.deepcopy(trainer.model.state_dict())
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"epoch": ')
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / ".checkpoint-8.new-1").mkdir()
    assert last_checkpoint(tmp_path).name == "checkpoint-4"
    resumed = make_trainer(tmp_path, max_steps=6, save_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(resumed.model.state_dict()[name], tensor) for name, tensor in expected.items())


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    make_trainer(tmp_path, max_steps=2, save_steps=2).train()
    names = {path.suffix for path in (tmp_path / "checkpoint-2").iterdir()}
    assert names <= {".json", ".safetensors", ".md"}
    pickled = {".bin", ".pt", ".pth", ".pkl"}
    assert not [path for path in tmp_path.rglob("*") if path.suffix in pickled]


def test_a_moved_run_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "best", "load_best_model_at_end": True,
                "metric_for_best_model": "m", "max_steps": 8, "learning_rate": 1e-3}  # fmt: skip

    def run(folder: Path, scores: list[float], stop: int | None = None) -> ElasticTrainer:
        left = iter(scores)

        def score(model: Any, subnets: Any) -> Any:
            value = next(left)
            return {name: {"m": value} for name in subnets}

        trainer = make_trainer(folder, evaluate_subnets=score, **settings)
        if stop:
            trainer.add_callback(RequestStop(trainer, stop))
        trainer.train(resume_from_checkpoint=True)
        return trainer

    expected = run(tmp_path / "whole", [0.9, 0.1, 0.1, 0.1]).model.state_dict()
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "a", [0.9, 0.1, 0.1], stop=5)
    (tmp_path / "a").rename(tmp_path / "b")
    found = run(tmp_path / "b", [0.1, 0.1]).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
