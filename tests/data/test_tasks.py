"""The GLUE table and the task value."""

import json

import pytest

from limbert.data.tasks import GLUE, Columns, Task, custom_task, glue_task
from limbert.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("SST-2", "sst2"), ("sst2", "sst2"), ("STS_B", "stsb"), ("CoLA", "cola"), ("RTE", "rte"), ("MNLI", "mnli")],
)
def test_common_spellings_name_the_same_task(spelling, name):
    assert glue_task(spelling) is GLUE[name]


def test_unknown_task_lists_allowed_names():
    with pytest.raises(ConfigError, match=r"'sst3'.*cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli"):
        glue_task("sst3")


@pytest.mark.parametrize("pairs", [True, False, None])
def test_check_inputs_wants_pairs_as_trained(pairs):
    task = custom_task("regression", (), has_pairs=pairs)
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    for given in (True, False):
        if pairs in (None, given):
            task.check_inputs(has_pairs=given)
        else:
            with pytest.raises(DataError, match=f"on {'pairs of' if pairs else 'single'} texts; "):
                task.check_inputs(has_pairs=given)


def test_old_checkpoints_know_pairs_from_glue():
    for name, pairs in (("sst2", False), ("mrpc", True)):
        values = glue_task(name).task.to_dict()
        assert values.pop("pairs") is pairs
        assert Task.from_dict(values).has_pairs is pairs


def test_standard_label_order_and_metrics():
    assert glue_task("rte").task.labels == ("entailment", "not_entailment")
    assert glue_task("wnli").task.labels == ("not_entailment", "entailment")
    assert glue_task("mnli").task.labels == ("entailment", "neutral", "contradiction")
    assert {name: entry.task.metrics for name, entry in GLUE.items()} == {
        "cola": ("matthews",),
        "sst2": ("accuracy",),
        "mrpc": ("accuracy", "f1"),
        "stsb": ("pearson", "spearman"),
        "qqp": ("accuracy", "f1"),
        "mnli": ("accuracy",),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
        "wnli": ("accuracy",),
    }


@pytest.mark.parametrize("task", [*(entry.task for entry in GLUE.values()), custom_task("classification", ("a", "b"))])
def test_task_survives_json(task):
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert task.num_outputs == (len(task.labels) or 1)
    assert task.primary_metric == task.metrics[0]


@pytest.mark.parametrize(
    ("kind", "labels"), [("classification", ("one",)), ("classification", ("a", "a")), ("regression", ("a", "b"))]
)
def test_impossible_tasks_are_refused(kind, labels):
    with pytest.raises(DataError, match="label names"):
        custom_task(kind, labels)


def test_columns_are_positions_if_all_are():
    assert Columns("1", None, "0").are_positions
    assert not Columns("1", None, "label").are_positions
    assert not Columns(None, None, None).are_positions
