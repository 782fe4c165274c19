"""Columns are given by the settings, known from GLUE, or guessed."""

import pytest

from limbert.core.config import DataConfig
from limbert.data.columns import choose_columns
from limbert.data.table import Table, TableRow
from limbert.data.tasks import Columns, column_layouts, find_glue_task
from limbert.errors import DataError


def table(*columns, row=None):
    cells = dict(zip(columns, row or ["some words"] * len(columns), strict=True))
    return Table("file.tsv", columns, lambda: iter([TableRow(2, cells)] * 3))


def chosen(source, glue=None, *, labelled=True, **settings):
    config = DataConfig(**settings)
    layouts = column_layouts(find_glue_task(glue, None), None)
    return choose_columns(source, config, layouts, labelled=labelled)[1]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("id", "text", "label"), Columns("text", None, "label")),
        (("Label", "Sentence"), Columns("Sentence", None, "Label")),
        (("text", "category"), Columns("text", None, "category")),
        (("index", "sentence1", "sentence2", "score"), Columns("sentence1", "sentence2", "score")),
        (("premise", "hypothesis", "label"), Columns("premise", "hypothesis", "label")),
    ],
)
def test_common_names_are_guessed(columns, expected):
    assert chosen(table(*columns)) == expected


def test_first_column_of_several_words_is_text():
    source = table("label", "id", "date", "remark", "note", row=["a", "x17", "2024", "some words", "more words"])
    assert chosen(source) == Columns("remark", None, "label")
    with pytest.raises(DataError, match=r"none with texts of several words .*; columns: label, id"):
        chosen(table("label", "id", row=["two words", "x17"]))


def test_given_columns_are_taken():
    source = table("sentence1", "sentence2", "label", "other")
    assert chosen(source, text_column="sentence1") == Columns("sentence1", None, "label")
    assert chosen(source, text_column="other", pair_column="sentence2", label_column="sentence1") == Columns(
        "other", "sentence2", "sentence1"
    )
    assert chosen(source, labelled=False, label_column="absent") == Columns("sentence1", "sentence2", None)


def test_glue_columns_of_both_layouts():
    assert chosen(table("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"), "mrpc") == Columns(
        "#1 String", "#2 String", "Quality"
    )
    assert chosen(table("sentence1", "sentence2", "label", "idx"), "mrpc") == Columns("sentence1", "sentence2", "label")
    assert chosen(table("sentence", "other", "label"), "sst2", text_column="other") == Columns("other", None, "label")


@pytest.mark.parametrize(
    ("columns", "glue", "settings", "message"),
    [
        (("a", "b"), None, {"text_column": "a"}, "no label column .* file.tsv; columns: a, b"),
        (("text", "b", "c"), None, {"label_column": "b,c"}, "'b,c' not found .*--label-columns"),
        (("text", "label"), None, {"text_column": "body"}, "column 'body' not found in file.tsv; columns: text, label"),
        (("a", "b"), "cola", {}, "column 'sentence' not found"),
        (("text", "label"), "mrpc", {}, "column '#1 String' not found"),
        (("text", "label"), "sst2", {"text_column": "5", "label_column": "7"}, "column '5' not found"),
        (("text", "text", "label"), None, {}, r"2 columns are named 'text'"),
    ],
)
def test_missing_columns_are_named_with_the_others(columns, glue, settings, message):
    with pytest.raises(DataError, match=message):
        chosen(table(*columns), glue, **settings)
