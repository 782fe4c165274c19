"""Checkpoints with missing weights are refused; only a new task head may be random, and only for training."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.factories.gated_models import make_model
from tests.factories.networks import make_inputs, make_network
from transformers import AutoModel, AutoModelForMaskedLM

from limbert import ElasticModel
from limbert.errors import CheckpointError
from limbert.model import elastic

HEAD_KEY = "classifier.weight"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    ElasticModel(make_network("bert")).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop(part: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: edit_weights(folder, lambda w: {f"module.{k}": v for k, v in w.items()}), "module."),
        (lambda folder: edit_weights(folder, drop("layer.2.")), "layer.2."),
        (lambda folder: edit_config(folder, num_hidden_layers=5), "layer.4."),
        (lambda folder: edit_config(folder, intermediate_size=70), "(70, 48)"),
    ],
    ids=["prefix", "layer", "depth", "size"],
)
def test_missing_encoder_weights_are_refused(saved: Path, damage: Any, named: str, training: bool) -> None:
    damage(saved)
    with pytest.raises(CheckpointError) as caught:
        ElasticModel.from_pretrained(saved, new_head=training)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_head_is_random_only_for_training(saved: Path) -> None:
    encoder = load_file(saved / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    edit_weights(saved, drop("classifier"))
    with pytest.raises(CheckpointError, match=HEAD_KEY):
        ElasticModel.from_pretrained(saved)
    with pytest.raises(CheckpointError, match=HEAD_KEY):
        ElasticModel.from_pretrained(saved, num_labels=7, new_head=False)
    for arguments in ({"num_labels": 5}, {"new_head": True}):
        model = ElasticModel.from_pretrained(saved, **arguments)
        assert model.config.num_labels == arguments.get("num_labels", 3)
        assert torch.equal(model.network.get_input_embeddings().weight, encoder)


def test_exported_subnetwork_is_no_base_model(saved: Path) -> None:
    edit_weights(saved, lambda w: {k: v[:24].contiguous() if "self.query" in k else v for k, v in w.items()})
    edit_config(saved, limbert={"heads": [3] * 4})
    with pytest.raises(CheckpointError, match="exported"):
        ElasticModel.from_pretrained(saved, num_labels=2)


@torch.no_grad()
def test_encoder_without_pooler_loads_without_one(tmp_path: Path) -> None:
    masked = make_network("bert", AutoModelForMaskedLM)
    masked.save_pretrained(tmp_path)
    model = ElasticModel.from_pretrained(tmp_path, head="none").eval()
    output = model(**make_inputs())
    assert output.pooler_output is None
    torch.testing.assert_close(output.last_hidden_state, masked.base_model(**make_inputs()).last_hidden_state)
    model.save_pretrained(tmp_path / "encoder")
    assert ElasticModel.from_pretrained(tmp_path / "encoder", num_labels=2).config.num_labels == 2
    assert AutoModel.from_pretrained(tmp_path / "encoder") is not None


@torch.no_grad()
def test_elastic_model_behaves_like_a_module() -> None:
    model, inputs = make_model("bert"), make_inputs()
    for part in ("BertForSequenceClassification", "4 layers", "0.34, 0.5, 0.67, 1", "'first'", "4 width gates"):
        assert part in repr(model)
    subnet = model.subnet("0.5x0.5")
    expected, small = model.network(**inputs).logits, model.view(subnet)(**inputs).logits
    assert torch.equal(model(**inputs).logits, expected)
    with model.at(subnet):
        torch.testing.assert_close(model(**inputs).logits, small)
        assert len([*model.parameters()]) == len([*model.network.parameters()]) + 2 * 16
        assert model.train() is model
    assert all(layer.training for layer in model.layers())
    assert not model.eval().training
    with model.at(subnet):
        assert model.to(torch.float64) is model
    assert model.dtype == model.gates.gate[0].dense_in.weight.dtype == torch.float64
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert model.device == torch.device("cpu")
    assert model.config is model.network.config


def test_push_to_hub_uploads_the_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads: dict[str, Any] = {}

    class StubbedHub:
        def __init__(self, token: str | None = None) -> None:
            uploads["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> SimpleNamespace:
            return SimpleNamespace(repo_id=f"user/{repo_id}", options=options)

        def upload_folder(self, *, folder_path: Path, **options: Any) -> SimpleNamespace:
            uploads["files"] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            uploads["options"] = options
            return SimpleNamespace(commit_url="https://hub.example/commit")

    monkeypatch.setattr(elastic, "HfApi", StubbedHub)
    model = make_model("bert")
    model.record = {
        "task": {"kind": "classification", "labels": ["no", "yes", "maybe"]},
        "settings": {"train": {"model": "google-bert/bert-base-uncased"}},
        "metrics": {"1x1": {"accuracy": 0.915}},
    }
    assert model.push_to_hub("tiny", token="secret", commit_message="New") == "https://hub.example/commit"
    assert {"config.json", "model.safetensors", "limbert.json", "gates.safetensors", "README.md"} == {*uploads["files"]}
    assert uploads["token"] == "secret"
    assert uploads["options"]["repo_id"] == "user/tiny"
    card = uploads["files"]["README.md"].decode()
    for part in ("base_model: google-bert/bert-base-uncased", "pipeline_tag: text-classification", "| 1x1 |", "0.9150"):
        assert part in card
    assert "secret" not in card
    model.record["settings"]["train"]["model"] = str(tmp_path / "private" / "encoder")
    model.save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert str(tmp_path) not in card  # paths of this machine are not published
    assert "encoder" in card
