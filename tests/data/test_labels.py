"""The task is named as in GLUE or follows from the training labels; labels become ids or scores."""

import json

import pytest

from limbert.core.config import DataConfig
from limbert.data.labels import infer_task, label_parser
from limbert.data.tasks import GLUE, Task, custom_task, glue_task
from limbert.errors import DataError


def inferred(labels, *, class_names=None, **settings):
    return infer_task(labels, DataConfig(**settings), class_names=class_names, source="train.csv")[0]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("SST-2", "sst2"), ("sst2", "sst2"), ("STS_B", "stsb"), ("CoLA", "cola"), ("RTE", "rte"), ("MNLI", "mnli")],
)
def test_common_spellings_name_the_same_task(spelling, name):
    assert glue_task(spelling) is GLUE[name]


def test_label_order_is_that_of_glue():
    assert glue_task("rte").task.labels == ("entailment", "not_entailment")
    assert glue_task("wnli").task.labels == ("not_entailment", "entailment")
    assert glue_task("mnli").task.labels == ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize("task", [*(entry.task for entry in GLUE.values()), custom_task("classification", ("a", "b"))])
def test_tasks_survive_json(task):
    values = json.loads(json.dumps(task.to_dict()))
    assert Task.from_dict(values) == task
    pairs = values.pop("pairs", None)  # which old checkpoints lack
    assert Task.from_dict(values).has_pairs is pairs


@pytest.mark.parametrize(
    ("kind", "labels"), [("classification", ("one",)), ("classification", ("a", "a")), ("regression", ("a", "b"))]
)
def test_impossible_tasks_are_refused(kind, labels):
    with pytest.raises(DataError, match="label names"):
        custom_task(kind, labels)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["spam", "ham", "ham"], ("ham", "spam")),
        (["1", "0", "0"], ("0", "1")),
        ([10, 9, 10, 2, 9, 2], ("2", "9", "10")),
        (["class 10", "class 9"] * 2, ("class 9", "class 10")),
        ([True, False, True], ("false", "true")),
        (["1", "2", "many", "1"], ("1", "2", "many")),
        (["-1", "1", "1"], ("-1", "1")),
        (["a" + "7" * 5000, "a1"] * 2, ("a1", "a" + "7" * 5000)),  # more digits than an int may be read from
    ],
    ids=lambda value: str(value)[:20],
)
def test_classes_are_in_natural_order(labels, names):
    assert inferred(labels) == custom_task("classification", names)


@pytest.mark.parametrize("labels", [[0.5, 1.0, 3], ["0.5", "1", "2e-1"], ["0.5", "1.5", "2.5", "oops"]])
def test_decimal_numbers_are_scores(labels):
    assert inferred(labels) == custom_task("regression", ())


def test_given_settings_decide():
    assert inferred([0, 1, 2], task_type="regression").task_type == "regression"
    assert inferred(["0.0", "1.0", "1.0"], task_type="classification").labels == ("0.0", "1.0")
    assert inferred(["b", "a"], label_names=("b", "a", "c")).labels == ("b", "a", "c")
    assert inferred(["neg", "pos", "neg"], class_names=("pos", "neg", "neutral")).labels == ("pos", "neg", "neutral")
    with pytest.raises(DataError, match="regression; it has none"):
        inferred([0.5], task_type="regression", label_names=("a", "b"))


def test_implausible_classifications_are_refused():
    with pytest.raises(DataError, match=r"train.csv: every label is 'a'; a classification needs at least two"):
        inferred(["a", "a", "a"])
    with pytest.raises(DataError, match="3 different labels in 3 rows"):
        inferred(["a", "b", "c"])
    with pytest.raises(DataError, match="30 different labels in 40 rows"):
        inferred([str(index % 30) for index in range(40)])


def test_ids_are_read_only_if_unambiguous():
    task = custom_task("classification", ("ham", "spam"))
    assert [label_parser(task, task.labels)(value) for value in ("spam", " ham ", "1", 0)] == [1, 0, 1, 0]
    with pytest.raises(ValueError, match="label '0' is unknown, expected one of ham, spam"):
        label_parser(task)("0")
    assert label_parser(task, ("spam", "ham"))("0") == 1  # ids in another order than the model's
    stars = label_parser(custom_task("classification", ("1", "2", "3")), ("1", "2", "3"))
    assert [stars(value) for value in ("1", 3)] == [0, 2]
    with pytest.raises(ValueError, match="label '0' is unknown"):
        stars(0)
    intents = label_parser(custom_task("classification", tuple(f"intent {index}" for index in range(77))))
    with pytest.raises(ValueError, match=r"intent 7, \.\.\. \(77 in all\)"):
        intents("other")


def test_scores_are_finite_numbers():
    reader = label_parser(custom_task("regression", ()))
    assert [reader(value) for value in ("3.800", 4, " 1e1 ")] == [3.8, 4.0, 10.0]
    for value in ("nan", "inf", "high", "1,5", "1e39", "-1e308", "1_0.5"):  # in float32
        with pytest.raises(ValueError, match=f"label '{value}' is .*expected a"):
            reader(value)
