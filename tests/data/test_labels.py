"""The task follows from the training labels; labels become ids or scores."""

import pytest

from limbert.core.config import DataConfig
from limbert.data.labels import infer_task, label_parser
from limbert.data.tasks import custom_task
from limbert.errors import DataError


def inferred(labels, *, class_names=None, **settings):
    return infer_task(labels, DataConfig(**settings), class_names=class_names, source="train.csv")[0]


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
    ],
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


def test_scores_are_finite_numbers():
    reader = label_parser(custom_task("regression", ()))
    scores = [reader(value) for value in ("3.800", 4, " 1e1 ")]
    assert scores == [3.8, 4.0, 10.0]
    assert all(type(score) is float for score in scores)
    for value in ("nan", "inf", "high", "1,5"):
        with pytest.raises(ValueError, match=f"label '{value}' is no number, expected a finite number"):
            reader(value)


@pytest.mark.parametrize("text", ["1e39", "-1e308", "1_0.5"])
def test_scores_must_fit_float32(text):
    with pytest.raises(ValueError, match="expected a"):
        label_parser(custom_task("regression", ()))(text)


def test_label_may_hold_thousands_of_digits():
    long = "a" + "7" * 5000
    assert inferred([long, "a1", long, "a1"]).labels == ("a1", long)


def test_messages_shorten_long_label_lists():
    reader = label_parser(custom_task("classification", tuple(f"intent {index}" for index in range(77))))
    with pytest.raises(ValueError, match=r"intent 7, \.\.\. \(77 in all\)"):
        reader("other")
