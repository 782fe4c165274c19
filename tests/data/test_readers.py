"""Malformed rows stop with FILE:LINE, or are skipped and counted."""

import pytest

from limbert.core.config import DataConfig
from limbert.data.load import load_task_data
from limbert.data.readers import Examples, parse_text_row, read_examples
from limbert.data.table import open_table
from limbert.data.tasks import Columns
from limbert.errors import DataError

GOOD = "text\tlabel\n" + "good words\ta\nbad words\tb\n" * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("only one column", "1 columns, expected 2 columns as in the header"),
        ("a\tb\tc", "3 columns, expected 2"),
        ("\ta", "no text in column 'text', expected some"),
        ("  \ta", "no text in column 'text', expected some"),
        ("words\t", "no label in column 'label', expected one"),
        ("words\t ", "no label in column 'label', expected one"),
        ("", "a blank line, expected 2 columns"),
        (b"caf\xe9\ta", "the bytes are not UTF-8"),
        ("words\tc", "label 'c' is unknown, expected one of a, b"),
    ],
)
def test_malformed_row_is_named_or_counted(write, line, message):
    train = write("train.tsv", GOOD)
    broken = line if isinstance(line, bytes) else line.encode()
    dev = write("dev.tsv", GOOD.encode() + broken + b"\n" + b"last words\ta\n")
    with pytest.raises(DataError, match=message) as caught:
        load_task_data(DataConfig(train=str(train), dev=str(dev)), seed=0)
    assert str(caught.value).startswith(f"{dev}:6: ")
    assert "\n" not in str(caught.value)
    data = load_task_data(DataConfig(train=str(train), dev=str(dev), skip_bad_rows=True), seed=0)
    assert data.dev["dev"].bad_rows == 1
    assert data.dev["dev"].texts[-1] == "last words"
    assert len(data.dev["dev"]) == 5
    assert data.train.bad_rows == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("null", "no text"),
        ("5", "int in column 'text', expected text"),
        ('"\\ud800"', "invalid Unicode"),
        ('["a"]', "list in column 'text'"),
    ],
)
def test_json_texts_must_be_strings(write, value, message):
    path = write("a.jsonl", f'{{"text": "fine"}}\n{{"text": {value}}}\n')
    with pytest.raises(DataError, match=f"a.jsonl:2: {message}"):
        read_examples(open_table(path), Columns("text"), parse_text_row, skip_bad_rows=False)


@pytest.mark.parametrize("value", ["null", '""', "NaN", "{}"])
def test_json_labels_are_names_or_numbers(write, value):
    path = write("a.jsonl", f'{{"text": "fine", "label": 1}}\n{{"text": "fine", "label": {value}}}\n')
    with pytest.raises(DataError, match=r"a.jsonl:2: (no label|dict) in column 'label', expected"):
        read_examples(open_table(path), Columns("text", None, "label"), parse_text_row, skip_bad_rows=False)


def test_files_without_usable_rows_are_refused(write):
    columns = Columns("text", None, "label")
    with pytest.raises(DataError, match="no rows below the header"):
        read_examples(open_table(write("a.csv", "text,label\n")), columns, parse_text_row, skip_bad_rows=True)
    with pytest.raises(DataError, match="none of the 2 rows can be used"):
        read_examples(open_table(write("a.csv", "text,label\na\nb\n")), columns, parse_text_row, skip_bad_rows=True)


def test_select_keeps_texts_pairs_and_labels_together():
    examples = Examples(("a", "b", "c"), ("x", "y", "z"), (0, 1, 2), bad_rows=3)
    assert examples.select([2, 0]) == Examples(("c", "a"), ("z", "x"), (2, 0), bad_rows=3)
    assert Examples(("a", "b"), None, None).select([1]) == Examples(("b",), None, None)
