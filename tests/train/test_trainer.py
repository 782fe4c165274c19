"""What users bring to a Trainer works: datasets, metrics, callbacks, trackers, optimizers, losses of their own."""

import json
import pydoc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from tests.factories.networks import CONFIGS, make_network, most_different
from tests.factories.phases import make_arguments, make_examples, make_model, make_trainer
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from limbert import ElasticModel, ElasticTrainer, LimbertError, Subnet
from limbert.errors import ConfigError
from limbert.train.data import resolve_class_weights


def rows_of(count: int, *, seed: int) -> datasets.Dataset:
    """Tokenised random texts."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(5, 90, size=int(rng.integers(3, 12))).tolist() for _ in range(count)]
    columns = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
    return datasets.Dataset.from_dict(columns | {"label": rng.integers(3, size=count).tolist()})


class Padding:
    """Pads to the longest text, as a tokenizer's collator does."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        padded = {
            name: torch.tensor([row[name] + [0] * (longest - len(row[name])) for row in rows])
            for name in ("input_ids", "attention_mask")
        }
        return padded | {"labels": torch.tensor([row["label"] for row in rows])}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def test_text_columns_are_tokenised(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = {"sentence": ["where is my card", "a", "charged twice again"], "label": ["a", "b", "c"], "idx": [0, 1, 2]}
    labels = {"id2label": dict(enumerate("abc")), "label2id": dict(zip("abc", range(3), strict=True))}
    model = make_model(vocab_size=len(tokenizer), **labels)
    frame = datasets.Dataset.from_pandas(pd.DataFrame(texts))  # columns of large_string
    data = datasets.DatasetDict(train=datasets.Dataset.from_dict(texts), validation=frame)
    settings = {"max_steps": 1, "save_strategy": "no", "eval_dataset": None}
    trainer = make_trainer(tmp_path, model, train_dataset=data, processing_class=tokenizer, **settings)
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] >= 0
    pairs = datasets.Dataset.from_dict({"premise": ["a"], "hypothesis": ["b"], "label": ["a"]})
    both = make_trainer(tmp_path, model, train_dataset=pairs, processing_class=tokenizer).train_dataset.collate([0])
    assert both["input_ids"][0].tolist() == tokenizer("a", "b")["input_ids"]
    with pytest.raises(LimbertError, match="'d'"):
        make_trainer(tmp_path, model, train_dataset=datasets.Dataset.from_dict({"text": ["a"], "label": ["d"]}),
                     processing_class=tokenizer)  # fmt: skip


def test_torch_datasets_are_trained_on(tmp_path: Path) -> None:
    rows = rows_of(8, seed=1)
    trainer = make_trainer(tmp_path, train_dataset=torch.utils.data.Subset([*rows], range(8)), data_collator=Padding(),
                           max_steps=2, save_strategy="no")  # fmt: skip
    assert trainer.train().global_step == 2


def test_gradients_accumulate_to_those_of_one_batch(tmp_path: Path) -> None:
    weights = []
    for size, parts in ((8, 1), (4, 2), (2, 4)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "max_steps": 3}
        trainer = make_trainer(tmp_path, make_model("bert"), **settings, optim="sgd", save_strategy="no")
        trainer.elastic.network.double()
        trainer.train()
        weights.append(trainer.model.state_dict())
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            torch.testing.assert_close(other[name], tensor, atol=1e-8, rtol=0, msg=name)


def test_every_subnetwork_is_evaluated_in_order(tmp_path: Path) -> None:
    rows = rows_of(30, seed=2)

    def in_order(prediction: Any) -> dict[str, float]:
        assert prediction.label_ids.tolist() == rows["label"][:]
        return accuracy(prediction)

    trainer = make_trainer(tmp_path, train_dataset=rows_of(8, seed=1), eval_dataset=rows, data_collator=Padding(),
                           compute_metrics=in_order)  # fmt: skip
    metrics, logits = trainer.evaluate(), trainer.predict(rows).predictions[0]
    batch = Padding()([*rows])
    labels, found = batch.pop("labels"), []
    for name, subnet in trainer.elastic.subnets().items():
        expected = trainer.elastic.view(subnet)(**batch).logits.detach()
        found.append(float((expected.argmax(-1) == labels).float().mean()))
        assert metrics[f"eval_{name}/accuracy"] == pytest.approx(found[-1])
        if name == "1x1":
            torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-5, rtol=1e-5)
    assert metrics["eval_accuracy"] == pytest.approx(np.mean(found))
    assert metrics["eval_loss"] > 0


@pytest.mark.parametrize("optim", ["sgd", "adafactor", "adamw_torch", "rmsprop"])
def test_other_optimizers_resume_with_equal_weights(optim: str, tmp_path: Path) -> None:
    settings = {"optim": optim, "max_steps": 6, "save_steps": 2, "lr_scheduler_type": "cosine", "learning_rate": 1e-4}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    half = make_trainer(tmp_path / "half", **settings)
    half.add_callback(StopAt(4))
    half.train()
    resumed = make_trainer(tmp_path / "half", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


class StopAt(TrainerCallback):
    """Ends a training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= state.global_step == self.step


def test_early_stopping_ends_and_continues_its_count(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "best", "max_steps": 20,
                "load_best_model_at_end": True, "metric_for_best_model": "m", "learning_rate": 1e-9}  # fmt: skip
    scores = iter([0.5, 0.4, 0.3, 0.2, 0.1])

    def falling(model: ElasticModel, subnets: dict[str, Subnet]) -> dict[str, dict[str, float]]:
        score = next(scores)
        return {name: {"m": score} for name in subnets}

    first = make_trainer(tmp_path, evaluate_subnets=falling, callbacks=[EarlyStoppingCallback(3)], **settings)
    first.add_callback(RequestStop(first, 5))
    with pytest.raises(Exception, match="Interrupted"):
        first.train()
    second = make_trainer(tmp_path, evaluate_subnets=falling, callbacks=[EarlyStoppingCallback(3)], **settings)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 8  # best at 2; worse at 4 (before the interruption), 6 and 8
    assert second.state.best_global_step == 2


class RequestStop(TrainerCallback):
    """Asks for a graceful stop after a step."""

    def __init__(self, trainer: ElasticTrainer, step: int) -> None:
        self.trainer, self.step = trainer, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step - 1:
            self.trainer.stop.requested = True


def test_of_equal_metrics_the_lower_loss_is_best(tmp_path: Path) -> None:
    scores = iter([(0.5, 1.0), (0.5, 0.8), (0.5, 0.9), (0.4, 0.1), (0.5, 0.8)])

    def scored(model: ElasticModel, subnets: dict[str, Subnet]) -> dict[str, dict[str, float]]:
        metric, loss = next(scores)
        return {name: {"m": metric, "loss": loss} for name in subnets}

    best = []

    class Notes(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            best.append(state.best_global_step)

    trainer = make_trainer(tmp_path, evaluate_subnets=scored, eval_strategy="steps", eval_steps=1, max_steps=5,
                           save_strategy="best", load_best_model_at_end=True, metric_for_best_model="m",
                           callbacks=[Notes()])  # fmt: skip
    trainer.train()
    assert best == [None, 1, 2, 2, 2]
    assert trainer.state.best_global_step == 5
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-5"


def test_class_weights_and_smoothing_reach_the_loss(tmp_path: Path) -> None:
    rows = rows_of(12, seed=1)
    trainer = make_trainer(tmp_path, train_dataset=rows, data_collator=Padding(), class_weights="balanced",
                           label_smoothing_factor=0.1)  # fmt: skip
    trainer.get_train_dataloader()
    counts = torch.bincount(torch.tensor(rows["label"][:]), minlength=3)
    expected = torch.nn.CrossEntropyLoss(weight=12 / (3 * counts), label_smoothing=0.1)
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    torch.testing.assert_close(trainer.label_loss(logits, labels, None), expected(logits, labels))
    with pytest.raises(ConfigError, match="class_weights"):
        make_trainer(tmp_path, class_weights=[1.0]).get_train_dataloader()
    several = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    weights = resolve_class_weights("balanced", several, num_labels=2, task_type="multi-label")
    torch.testing.assert_close(weights, torch.tensor([1 / 3, 3.0]))  # the positives weigh as much as the negatives
    with pytest.raises(ConfigError, match="class_weights"):
        resolve_class_weights("balanced", torch.tensor([0.5, 0.1]), num_labels=1, task_type="regression")


def test_trackers_get_settings_and_every_subnetwork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the boundary that the callbacks of W&B and MLflow use: they send the settings and every log."""
    settings: list[str] = []

    class Tracker(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            settings.append(json.dumps(args.to_sanitized_dict() | model.config.to_dict()))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.update(logs)

    seen: dict[str, float] = {}
    known = "transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK"
    monkeypatch.setitem(pydoc.locate(known), "wandb", Tracker)
    make_trainer(tmp_path, report_to="wandb", max_steps=2, eval_strategy="steps", eval_steps=1, logging_steps=1,
                 save_strategy="no").train()  # fmt: skip
    assert "hidden_weight" in settings[0]
    assert {"loss", "eval_accuracy", "eval_0.5x0.75/accuracy"} <= {*seen}


@pytest.mark.slow
@pytest.mark.parametrize("library", ["wandb", "mlflow"])
def test_offline_trackers_write_a_run(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"WANDB_MODE": "offline", "MLFLOW_ALLOW_FILE_STORE": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # version 3 asks for a database otherwise
    make_trainer(tmp_path / "run", report_to=library, max_steps=2, logging_steps=1, save_strategy="no").train()
    assert [*tmp_path.glob({"wandb": "wandb/offline-run-*", "mlflow": "mlruns/*/*/metrics/*"}[library])]


def test_own_losses_override_one_method(tmp_path: Path) -> None:
    class Mine(ElasticTrainer):
        def subnet_loss(self, subnet, outputs, teacher_outputs, batch, loss_scale):
            return outputs.logits.square().mean()

    trainer = Mine(make_model(), make_arguments(tmp_path, max_steps=20, learning_rate=1e-2, save_strategy="no"),
                   train_dataset=make_examples(24, seed=1))  # fmt: skip
    before = trainer.predict(make_examples(8, seed=3)).predictions[0]
    trainer.train()
    assert np.square(trainer.predict(make_examples(8, seed=3)).predictions[0]).mean() < np.square(before).mean() / 4


@pytest.mark.parametrize(
    "settings",
    [
        {"torch_compile": True}, {"auto_find_batch_size": True}, {"fp16": True}, {"deepspeed": {"a": 1}},
        {"fsdp": "full_shard"}, {"save_total_limit": 1}, {"batch_eval_metrics": True}, {"sampled_subnets": 1},
        {"teacher_width": "half"}, {"train_sampling_strategy": "sequential"}, {"task_type": "poetry"},
    ],
)  # fmt: skip
def test_options_that_would_be_ignored_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))) as error:
        make_arguments(tmp_path, **settings)
    assert "\n" not in str(error.value)


def test_wrong_data_is_refused(tmp_path: Path) -> None:
    unlabelled = make_examples(8, seed=1)
    unlabelled = type(unlabelled)(unlabelled.tokens, None, 0, 0)
    with pytest.raises(ConfigError, match="labels"):
        make_trainer(tmp_path, train_dataset=unlabelled, save_strategy="no").train()
    with pytest.raises(ConfigError, match="subnet_loss"):
        ElasticTrainer(make_model(), make_arguments(tmp_path), compute_loss_func=lambda *_: None)
    with pytest.raises(ConfigError, match="processing_class"):
        make_trainer(tmp_path, train_dataset=datasets.Dataset.from_dict({"text": ["a"], "label": [0]}))
    with pytest.raises(ConfigError, match="IterableDataset"):
        rows = rows_of(8, seed=1).to_iterable_dataset()
        make_trainer(tmp_path, train_dataset=rows, max_steps=1).train()


@pytest.mark.parametrize("case", most_different(CONFIGS))
def test_every_family_trains_and_resumes(case: str, tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-3}
    losses = []
    for folder in ("whole", "half"):
        trainer = make_trainer(tmp_path / folder, make_model(case), teacher=make_model(case), **settings)
        if folder == "half":
            trainer.add_callback(StopAt(2))
            trainer.train()
            trainer = make_trainer(tmp_path / folder, make_model(case), teacher=make_model(case), **settings)
        trainer.train(resume_from_checkpoint=True)
        losses.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


def test_activation_checkpointing_gives_equal_gradients(tmp_path: Path) -> None:
    weights = []
    for checkpointing in (False, True):
        trainer = make_trainer(tmp_path, teacher=make_model(), max_steps=2, save_strategy="no",
                               activation_checkpointing=checkpointing)  # fmt: skip
        trainer.train()
        weights.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-6, rtol=1e-5, msg=name)


def test_tags_and_answers_train_from_datasets(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = rows_of(8, seed=1).to_dict()
    tags = datasets.Dataset.from_dict(
        {name: rows[name] for name in ("input_ids", "attention_mask")}
        | {"labels": [[index % 3 for index in row] for row in rows["input_ids"]]}
    )
    model = ElasticModel(make_network("bert", AutoModelForTokenClassification))
    collator = DataCollatorForTokenClassification(tokenizer)
    trainer = make_trainer(tmp_path, model, train_dataset=tags, eval_dataset=tags, data_collator=collator,
                           teacher=ElasticModel(make_network("bert", AutoModelForTokenClassification)),
                           max_steps=2, save_strategy="no", class_weights="balanced")  # fmt: skip
    assert trainer.task_type == "token-classification"
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0

    class Spans(Padding):
        def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            batch = super().__call__([row | {"label": 0} for row in rows])
            del batch["labels"]
            ones = torch.ones(len(rows), dtype=torch.long)
            return batch | {"start_positions": ones, "end_positions": ones}

    model = ElasticModel(make_network("bert", AutoModelForQuestionAnswering, num_labels=2))
    trainer = make_trainer(tmp_path, model, train_dataset=tags, eval_dataset=tags, data_collator=Spans(), max_steps=2,
                           save_strategy="no")  # fmt: skip
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


def test_the_hub_gets_the_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import trainer as stock

    uploads = []

    class Hub:
        def create_repo(self, name: str, **_: Any) -> SimpleNamespace:
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, *, folder_path: str, **_: Any) -> None:
            uploads.append({path.name for path in Path(folder_path).iterdir()})

    monkeypatch.setattr(stock, "hf_api", Hub)
    trainer = make_trainer(tmp_path / "out", max_steps=1, save_strategy="no", compute_metrics=None)
    trainer.train()
    trainer.evaluate()
    trainer.push_to_hub()
    assert {"config.json", "model.safetensors", "limbert.json", "README.md"} <= uploads[0]
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("# out", "| 0.5x0.75 |", "accuracy", " M |", " G |"):
        assert part in card
    assert json.loads((tmp_path / "out" / "limbert.json").read_text())["space"]
