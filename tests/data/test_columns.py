"""Where data is found, and which columns are read: given by the settings, known from GLUE, or guessed."""

import pytest

from limbert.core.config import DataConfig
from limbert.data.columns import choose_columns
from limbert.data.sources import find_sources
from limbert.data.table import Table, TableRow
from limbert.data.tasks import Columns, column_layouts, find_glue_task
from limbert.errors import ConfigError, DataError

ROW = "text\tlabel\nsome words\ta\n"


def table(*columns, row=None):
    cells = dict(zip(columns, row or ["some words"] * len(columns), strict=True))
    return Table("file.tsv", columns, lambda: iter([TableRow(2, cells)] * 3))


def chosen(source, glue=None, *, labelled=True, **settings):
    config = DataConfig(**settings)
    layouts = column_layouts(find_glue_task(glue, None), None)
    return choose_columns(source, config, layouts, labelled=labelled)[1]


@pytest.mark.parametrize(
    ("columns", "glue", "settings", "expected"),
    [
        (("id", "text", "label"), None, {}, ("text", None, "label")),
        (("Label", "Sentence"), None, {}, ("Sentence", None, "Label")),
        (("text", "category"), None, {}, ("text", None, "category")),
        (("index", "sentence1", "sentence2", "score"), None, {}, ("sentence1", "sentence2", "score")),
        (("premise", "hypothesis", "label"), None, {}, ("premise", "hypothesis", "label")),
        (("sentence1", "sentence2", "label"), None, {"text_column": "sentence1"}, ("sentence1", None, "label")),
        (("a", "b", "c"), None, {"text_column": "c", "pair_column": "b", "label_column": "a"}, ("c", "b", "a")),
        (("Quality", "#1 ID", "#1 String", "#2 String"), "mrpc", {}, ("#1 String", "#2 String", "Quality")),
        (("sentence1", "sentence2", "label", "idx"), "mrpc", {}, ("sentence1", "sentence2", "label")),
        (("sentence", "other", "label"), "sst2", {"text_column": "other"}, ("other", None, "label")),
    ],
)
def test_columns_are_given_known_or_guessed(columns, glue, settings, expected):
    assert chosen(table(*columns), glue, **settings) == Columns(*expected)


def test_first_column_of_several_words_is_text():
    source = table("label", "id", "date", "remark", "note", row=["a", "x17", "2024", "some words", "more words"])
    assert chosen(source) == Columns("remark", None, "label")
    with pytest.raises(DataError, match=r"none with texts of several words .*; columns: label, id"):
        chosen(table("label", "id", row=["two words", "x17"]))
    assert chosen(table("text", "label"), labelled=False, label_column="absent") == Columns("text", None, None)


@pytest.mark.parametrize(
    ("columns", "glue", "settings", "message"),
    [
        (("a", "b"), None, {"text_column": "a"}, "no label column .* file.tsv; columns: a, b"),
        (("text", "b", "c"), None, {"label_column": "b,c"}, "'b,c' not found .*--label-columns"),
        (("text", "label"), None, {"text_column": "body"}, "column 'body' not found in file.tsv; columns: text, label"),
        (("a", "b"), "cola", {}, "column 'sentence' not found"),
        (("text", "label"), "sst2", {"text_column": "5", "label_column": "7"}, "column '5' not found"),
        (("text", "text", "label"), None, {}, r"2 columns are named 'text'"),
    ],
)
def test_missing_columns_are_named_with_the_others(columns, glue, settings, message):
    with pytest.raises(DataError, match=message):
        chosen(table(*columns), glue, **settings)


@pytest.mark.parametrize(
    ("files", "dev"),
    [
        (["dev.tsv", "test.tsv"], "dev.tsv"),
        (["validation.tsv", "test.tsv"], "validation.tsv"),
        (["valid.TSV"], "valid.TSV"),
        (["test.tsv"], "test.tsv"),
    ],
)
def test_test_split_replaces_missing_dev(write, tmp_path, files, dev):
    for name in ["train.tsv", *files]:
        write(name, ROW)
    sources = find_sources(DataConfig(data=str(tmp_path)), None, None)
    assert sources.train is not None
    assert {part: table.name for part, table in sources.dev.items()} == {"dev": str(tmp_path / dev)}


def test_folders_without_data_are_named(write, tmp_path, monkeypatch):
    for settings, message in (({"data": "a", "train": "b"}, "data is 'a' beside train or dev"), ({}, "no data given")):
        with pytest.raises(ConfigError, match=message):
            find_sources(DataConfig(**settings), None, None)
    write("data/notes.md", "x")
    monkeypatch.chdir(tmp_path)
    for data, message in (
        ("data", r"no train\.\* or dev\.\* ending in .csv.*; it holds notes.md"),
        (str(tmp_path / "absent"), "no such folder"),
        ("data/mrcp", "data/mrcp: no such folder"),  # mistyped, and no name on the Hub
        ("data/notes.md", "a file; data must be a folder"),
    ):
        with pytest.raises(DataError, match=message):
            find_sources(DataConfig(data=data), None, None)
    for name in ("train.tsv", "train.csv"):
        write(f"data/{name}", ROW)
    with pytest.raises(DataError, match=r"train.csv and train.tsv are both there; expected one"):
        find_sources(DataConfig(data="data"), None, None)
