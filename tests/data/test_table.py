"""Every file format gives the same rows; malformed rows stop with FILE:LINE, or are skipped and counted."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from limbert.core.config import DataConfig
from limbert.data.load import load_task_data
from limbert.data.readers import parse_text_row, read_examples
from limbert.data.table import TableRow, open_table
from limbert.data.tasks import Columns
from limbert.errors import DataError

TEXTS = ["plain", 'a "quoted" word', "comma, and 'apostrophe'", "separators \u2028 and \x85 in text", "čšž 😀"]
GOOD = "text\tlabel\n" + "good words\ta\nbad words\tb\n" * 2


def cells(table):
    return [tuple(row.cells.values()) for row in table.rows()]


def test_every_format_gives_the_same_rows(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{text}\tx\n" for text in TEXTS), encoding="utf-8")
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((text, "x") for text in TEXTS)])
    lines = (json.dumps({"text": text, "label": "x"}, ensure_ascii=False) for text in TEXTS)
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "label": ["x"] * len(TEXTS)}), tmp_path / "a.parquet")
    for kind in ("tsv", "csv", "jsonl", "parquet"):
        table = open_table(tmp_path / f"a.{kind}")
        assert table.columns == ("text", "label"), kind
        assert cells(table) == cells(table) == [(text, "x") for text in TEXTS], kind


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_mark_are_dropped(write, end, mark):
    for name, cut in (("a.tsv", "\t"), ("a.csv", ",")):
        table = open_table(write(name, mark + end.join([f"text{cut}label", f"one{cut}1", f"two{cut}2", "", ""])))
        assert table.columns == ("text", "label")
        assert cells(table) == [("one", "1"), ("two", "2")]
        assert [row.line_number for row in table.rows()] == [2, 3]


@pytest.mark.parametrize("sign", [";", "\t"])
def test_csv_with_semicolons_or_tabs(write, sign):
    table = open_table(write("a.csv", f'text{sign}score\n"one; two\t, three"{sign}1,5\nfour{sign}2\n'))
    assert table.columns == ("text", "score")
    assert cells(table) == [("one; two\t, three", "1,5"), ("four", "2")]
    assert cells(open_table(write("b.csv", "text\none; two\n"))) == [("one; two",)]
    assert open_table(write("c.csv", "a;b,c\n1,2\n")).columns == ("a;b", "c")


def test_long_csv_row_is_named_by_first_line(write):
    table = open_table(write("a.csv", 'text,label\n"one\ntwo\nthree",a\nfour,b\n'))
    rows = [TableRow(2, {"text": "one\ntwo\nthree", "label": "a"}), TableRow(5, {"text": "four", "label": "b"})]
    assert [*table.rows()] == rows


def test_broken_json_lines_are_named(write):
    content = b'{"text": "one"}\n{"text": \n[1]\n\n{"text": "caf\xe9"}\n{"text": "two", "extra": 1}\n\n'
    table = open_table(write("a.jsonl", content))
    problems = {row.line_number: row.problem for row in table.rows() if row.problem is not None}
    assert [*problems] == [2, 3, 4, 5]
    assert "UTF-8" in problems.pop(5)
    assert all("one JSON object per line" in problem for problem in problems.values())
    assert table.columns == ("text", "extra")
    assert cells(table)[-1] == ("two", 1)


def test_late_json_keys_are_in_their_rows(write):
    rows = [{"text": str(row)} for row in range(150)] + [{"id": 1}, {"text": "last", "note": None}]
    table = open_table(write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert table.columns == ("text",)
    assert [row.cells for row in table.rows()] == rows


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.parquet", "a"])
def test_missing_and_empty_files_are_refused(write, tmp_path, name):
    with pytest.raises(DataError, match="no such file"):
        open_table(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: the file is empty"):
        open_table(write(name, ""))
    with pytest.raises(DataError, match="cannot be read"):
        open_table(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", "x", r"format '.xlsx' is not read; expected one of .csv"),
        ("a.parquet", "no parquet", "valid Parquet"),
        ("a.json", '[{"text": "one"}]', "a.json:1: JSON of type list"),
        ("a.tsv", "\ntext\n", "a.tsv:1: the line is blank; expected the names of the columns"),
        ("a.csv", b"\xff\xfet", "a.csv: the bytes are not UTF-16"),
        ("a.csv.gz", b"text,label", "a.csv.gz: cannot be read"),
    ],
)
def test_files_of_another_format_are_refused(write, name, content, message):
    with pytest.raises(DataError, match=message):
        open_table(write(name, content))


@pytest.mark.parametrize("cut", ["\t", ","])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("only one column", "1 columns, expected 2 columns as in the header"),
        ("a\tb\tc", "3 columns, expected 2"),
        ("  \ta", "no text in column 'text', expected some"),
        ("words\t ", "no label in column 'label', expected one"),
        ("", "a blank line, expected 2 columns"),
        (b"caf\xe9\ta", "the bytes are not UTF-8"),
        ("words\tc", "label 'c' is unknown, expected one of a, b"),
    ],
)
def test_malformed_row_is_named_or_counted(write, line, message, cut):
    ending, comma = ".csv" if cut == "," else ".tsv", cut.encode()
    train = write(f"train{ending}", GOOD.replace("\t", cut))
    broken = line if isinstance(line, bytes) else line.encode()
    dev = write(f"dev{ending}", (GOOD.encode() + broken + b"\nlast words\ta\n").replace(b"\t", comma))
    with pytest.raises(DataError, match=message) as caught:
        load_task_data(DataConfig(train=str(train), dev=str(dev)), seed=0)
    assert str(caught.value).startswith(f"{dev}:6: ")
    assert "\n" not in str(caught.value)
    data = load_task_data(DataConfig(train=str(train), dev=str(dev), skip_bad_rows=True), seed=0)
    assert (len(data.dev["dev"]), data.dev["dev"].bad_rows, data.train.bad_rows) == (5, 1, 0)
    assert data.dev["dev"].texts[-1] == "last words"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": null, "label": 1}', "no text"),
        ('{"text": 5, "label": 1}', "int in column 'text', expected text"),
        ('{"text": "\\ud800", "label": 1}', "invalid Unicode"),
        ('{"text": ["a"], "label": 1}', "list in column 'text'"),
        ('{"text": "fine", "label": null}', "no label"),
        ('{"text": "fine", "label": NaN}', "no label"),
        ('{"text": "fine", "label": {}}', "dict in column 'label'"),
    ],
)
def test_json_values_of_other_types_are_named(write, row, message):
    path = write("a.jsonl", f'{{"text": "fine", "label": 1}}\n{row}\n')
    with pytest.raises(DataError, match=f"a.jsonl:2: {message}"):
        read_examples(open_table(path), Columns("text", None, "label"), parse_text_row, skip_bad_rows=False)


@pytest.mark.parametrize(("rows", "message"), [("", "no rows below the header"), ("a\nb\n", "none of the 2 rows")])
def test_files_without_usable_rows_are_refused(write, rows, message):
    table = open_table(write("a.csv", f"text,label\n{rows}"))
    with pytest.raises(DataError, match=message):
        read_examples(table, Columns("text", None, "label"), parse_text_row, skip_bad_rows=True)
