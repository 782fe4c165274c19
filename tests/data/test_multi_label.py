"""Multi-label tasks: labels from lists, separated cells and columns; predictions."""

import json

import numpy as np
import pytest
import torch

from limbert.core.config import DataConfig
from limbert.data.load import load_evaluation_data, load_task_data
from limbert.data.split import split_validation
from limbert.data.task_registry import decode_predictions, tokenize_for_task
from limbert.data.tasks import custom_task
from limbert.errors import ConfigError, DataError

LINES = '{"text": "a b", "labels": ["x", "z"]}\n{"text": "c d", "labels": []}\n{"text": "e f", "labels": ["y"]}\n'
CSV = "text,labels\na b,z;x\nc d,\ne f,y\n"


def test_lists_and_separated_cells_read_alike(write):
    lines, cells = write("l/train.jsonl", LINES), write("c/train.csv", CSV)
    write("l/dev.jsonl", LINES), write("c/dev.csv", CSV)
    first = load_task_data(DataConfig(data=str(lines.parent)), seed=0)
    config = DataConfig(data=str(cells.parent), task_type="multi-label", label_separator=";")
    second = load_task_data(config, seed=0)
    assert first == second
    assert first.task == custom_task("multi-label", ("x", "y", "z"), has_pairs=False)
    assert first.train.labels == ((0, 2), (), (1,))
    assert load_evaluation_data(config, first.task)["dev"] == first.dev["dev"]
    with pytest.raises(DataError, match=r"train.csv:2: label 'z;x' is unknown, expected one of x, y, z"):
        load_task_data(DataConfig(data=str(cells.parent), task_type="multi-label", label_names=("x", "y", "z")), seed=0)
    with pytest.raises(ConfigError, match="one of classification"):
        DataConfig(task_type="several")


def test_separator_is_for_multi_label_only(write):
    path = str(write("c/train.csv", CSV))
    assert load_task_data(DataConfig(train=path, dev=path, label_separator=";"), seed=0).task.task_type == "multi-label"
    for named, what in (({"task_type": "classification"}, "type classification"), ({"task": "sst2"}, "sst2")):
        with pytest.raises(ConfigError, match=f"label separator is ';'; it is for multi-label, not for task {what}"):
            load_task_data(DataConfig(train=path, dev=path, label_separator=";", **named), seed=0)


@pytest.mark.parametrize("labels", ["[0, 1, 0]", "[true, false]", "[1.0, 0.0]", '["x", 1, 1]'])
def test_number_per_class_is_no_label_list(write, labels):
    path = write("train.jsonl", LINES + f'{{"text": "g h", "labels": {labels}}}\n')
    with pytest.raises(DataError, match=r"train.jsonl:4: a 0 or 1 for each class in column 'labels', expected a list"):
        load_task_data(DataConfig(train=str(path), dev=str(path)), seed=0)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_lists_are_refused_as_single_labels(write, kind):
    path = write("train.jsonl", LINES)
    with pytest.raises(DataError, match="labels are lists"):
        load_task_data(DataConfig(train=str(path), dev=str(path), task_type=kind), seed=0)
    single = write("single.jsonl", LINES.replace('["x", "z"]', '"x"').replace("[]", '"x"').replace('["y"]', '"y"'))
    with pytest.raises(DataError, match=r"train.jsonl:1: a list of labels, expected one label"):
        load_task_data(DataConfig(train=str(single), dev=str(path), task_type="classification"), seed=0)


def test_label_sets_become_vectors_and_back(write, tokenizer):
    random = np.random.default_rng(0)
    labels = (random.random((40, 4)) < 0.4).astype(np.float32)
    rows = [[f"text {number}", [f"c{at}" for at in np.flatnonzero(row)]] for number, row in enumerate(labels)]
    lines = "".join(json.dumps({"text": text, "labels": names}) + "\n" for text, names in rows)
    write("train.jsonl", lines)
    folder = write("dev.jsonl", lines).parent
    data = load_task_data(DataConfig(data=str(folder)), seed=0)
    tokens = tokenize_for_task(data.train, data.task, tokenizer, max_length=16, use_cache=False)
    assert torch.equal(tokens.labels, torch.from_numpy(labels))
    assert tokens.collate([3, 1])["labels"].shape == (2, 4)
    logits = random.normal(size=(40, 4)).astype(np.float32)
    for row, answer in zip(logits, decode_predictions(data.task, logits, tokens), strict=True):
        assert {one["label"] for one in answer["labels"]} == {f"c{at}" for at in np.flatnonzero(row > 0)}
        scores = [one["score"] for one in answer["labels"]]
        assert scores == sorted(scores, reverse=True)
    train, validation = split_validation(data.train, data.task, fraction=0.25, seed=1)
    assert len(validation) == 10
    assert not {*train.texts} & {*validation.texts}


def test_regression_with_held_out_examples(write):
    path = write("all.csv", "text,stars\n" + "".join(f"a text {n},{n / 10}\n" for n in range(30)))
    config = DataConfig(train=str(path), label_column="stars", held_out=0.2)
    data = load_task_data(config, seed=0)
    assert data.task.task_type == "regression"
    assert len(data.dev["dev"]) == 6
    assert load_evaluation_data(config, data.task)["dev"] == data.dev["dev"]
