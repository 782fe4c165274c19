"""Devices, cores, broken files and fine-tuned base models when a checkpoint is loaded."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.factories.runs import ENCODER, needs_encoder
from tests.factories.servers import make_run
from transformers import AutoConfig, AutoTokenizer

import limbert
from limbert.core.config import DataConfig, TrainConfig
from limbert.data.tasks import custom_task
from limbert.errors import CheckpointError, ConfigError
from limbert.inference.base_model import TaskBaseCheckpoint, load_base_checkpoint
from limbert.inference.load import load_checkpoint, override_data_config, resolve_device, usable_cores

pytestmark = needs_encoder


@pytest.mark.parametrize("gpus", [0, 2])
def test_only_existing_devices_resolve(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto") == torch.device("cuda" if gpus else "cpu")
    for name in ("cuda", "cuda:1", "cuda:2"):
        if name == "cuda:2" or not gpus:
            with pytest.raises(ConfigError, match=name):
                resolve_device(name)
        else:
            assert resolve_device(name) == torch.device(name)
    for name in ("gpu", "cuda:x", ""):
        with pytest.raises(ConfigError, match="cuda:NUMBER"):
            resolve_device(name)


def test_cores_are_counted_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == 7


@pytest.mark.parametrize("path", ["runs/nope", "./nope", "~/nope"])
def test_a_missing_folder_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(CheckpointError, match=r"folder .*nope"):
        load_checkpoint(path)


def test_given_files_replace_the_trainings_files() -> None:
    saved = DataConfig(data="glue", dev="dev.csv", text_column="text", skip_bad_rows=True)
    assert override_data_config(saved, data=None, text_column="body") == replace(saved, text_column="body")
    assert override_data_config(saved, data="other") == DataConfig(data="other", text_column="text")
    with pytest.raises(ConfigError, match="txt_column"):
        override_data_config(saved, txt_column="body")


@pytest.mark.parametrize(
    ("key", "value"), [("settings", []), ("task", "x"), ("space", 1), ("settings", {"data": 1}), ("task", ["a", "b"])]
)
def test_broken_records_are_named(key: str, value: Any, tmp_path: Path) -> None:
    path = make_run(tmp_path / "run") / "limbert.json"
    record = json.loads(path.read_text())
    if key == "task" and isinstance(value, list):
        value = record["task"] | {"labels": value}  # the model has three outputs
    path.write_text(json.dumps(record | {key: value}))
    with pytest.raises(CheckpointError, match=r"limbert\.json"):
        load_checkpoint(path.parent)


def test_outputs_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    weights = load_file(run / "model.safetensors")
    save_file(weights | {"classifier.bias": torch.full((3,), torch.nan)}, run / "model.safetensors", {"format": "pt"})
    for options in ({}, {"policy": "cascade:0.5x0.5,1x1", "exit_threshold": 0.1}):
        with pytest.raises(CheckpointError, match="NaN"):
            limbert.pipeline(run, device="cpu", **options)("a text")


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("us", "US"), ("US", "us"), ("us", "US")),  # names that differ in case only
        (("B", "A"), ("a", "b"), ("b", "a")),  # the task's spelling in the model's order
        (("us", "Us"), ("US", "us"), None),  # ambiguous
        (("a", "A", "b"), ("a", "b", "B"), None),
        (("a", "b"), ("a", "c"), None),
        (("LABEL_0", "LABEL_1"), ("yes", "no"), None),  # they say nothing
    ],
)
def test_labels_take_the_order_of_the_model(
    tmp_path: Path, names: tuple[str, ...], labels: tuple[str, ...], expected: tuple[str, ...] | None
) -> None:
    base = load_base(tmp_path, names, labels)
    assert base.is_finetuned == (expected is not None)
    assert base.task.labels == (expected or labels)


def load_base(
    folder: Path, names: tuple[str, ...], labels: tuple[str, ...], *, phases: tuple[str, ...] | None = None
) -> TaskBaseCheckpoint:
    config = AutoConfig.for_model("bert", num_hidden_layers=2, id2label=dict(enumerate(names)))
    config.architectures = ["BertForSequenceClassification"]
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(ENCODER).save_pretrained(folder)
    task = custom_task("classification" if labels else "regression", labels)
    return load_base_checkpoint(TrainConfig(model=str(folder), output="unused", phases=phases), task)


@pytest.mark.parametrize("phases", [None, ("width", "depth"), ("finetune", "width")])
def test_numbered_labels_count_where_phases_say_so(tmp_path: Path, phases: tuple[str, ...] | None) -> None:
    base = load_base(tmp_path, ("LABEL_0", "LABEL_1"), ("yes", "no"), phases=phases)
    assert base.is_finetuned == (phases == ("width", "depth"))
    assert base.task.labels == ("yes", "no")
    score = load_base(tmp_path, ("LABEL_0",), (), phases=phases)
    assert score.is_finetuned == (phases == ("width", "depth"))
    assert load_base(tmp_path, ("score",), ()).is_finetuned
