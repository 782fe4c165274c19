"""Every file format gives the same rows, and broken rows are named with their line."""

import csv
import json

import pytest

from limbert.data.table import TableRow, lines_table, open_table
from limbert.errors import DataError

TEXTS = ["plain", 'a "quoted" word', "comma, and 'apostrophe'", "separators \u2028 and \x85 in text", "čšž 😀"]


def cells(table):
    return [tuple(row.cells.values()) for row in table.rows()]


def problems(table):
    return [(row.line_number, row.problem) for row in table.rows() if row.problem is not None]


def test_every_format_gives_the_same_rows(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{text}\tx\n" for text in TEXTS), encoding="utf-8")
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((text, "x") for text in TEXTS)])
    lines = (json.dumps({"text": text, "label": "x"}, ensure_ascii=False) for text in TEXTS)
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "label": ["x"] * len(TEXTS)}), tmp_path / "a.parquet")
    for kind in ("tsv", "csv", "jsonl", "parquet"):
        table = open_table(tmp_path / f"a.{kind}")
        assert table.columns == ("text", "label"), kind
        assert cells(table) == [(text, "x") for text in TEXTS], kind
        assert cells(table) == cells(table), f"{kind}: the second walk starts from the top"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_mark_are_dropped(write, end, mark):
    for name, cut in (("a.tsv", "\t"), ("a.csv", ",")):
        table = open_table(write(name, mark + end.join([f"text{cut}label", f"one{cut}1", f"two{cut}2", "", ""])))
        assert table.columns == ("text", "label")
        assert cells(table) == [("one", "1"), ("two", "2")]


@pytest.mark.parametrize("sign", [";", "\t"])
def test_csv_with_semicolons_or_tabs(write, sign):
    table = open_table(write("a.csv", f'text{sign}score\n"one; two\t, three"{sign}1,5\nfour{sign}2\n'))
    assert table.columns == ("text", "score")
    assert cells(table) == [("one; two\t, three", "1,5"), ("four", "2")]
    assert cells(open_table(write("b.csv", "text\none; two\n"))) == [("one; two",)]
    assert open_table(write("c.csv", "a;b,c\n1,2\n")).columns == ("a;b", "c")


def test_tsv_without_header_numbers_its_columns(write):
    table = open_table(write("SMSSpamCollection", 'ham\tGo until "jurong\nspam\tFree entry\n')).without_header()
    assert table.columns == ("0", "1")
    assert cells(table) == [("ham", 'Go until "jurong'), ("spam", "Free entry")]


def test_long_csv_row_is_named_by_first_line(write):
    table = open_table(write("a.csv", 'text,label\n"one\ntwo\nthree",a\nfour,b\n'))
    assert list(table.rows()) == [
        TableRow(2, {"text": "one\ntwo\nthree", "label": "a"}),
        TableRow(5, {"text": "four", "label": "b"}),
    ]


def test_wrong_number_of_fields_is_a_problem(write):
    for name, cut in (("a.tsv", "\t"), ("a.csv", ",")):
        table = open_table(write(name, f"text{cut}label\none{cut}1\ntwo\n\nthree{cut}1{cut}2\nfour{cut}4\n\n\n"))
        assert problems(table) == [
            (3, "1 columns, expected 2 columns as in the header"),
            (4, "a blank line, expected 2 columns as in the header"),
            (5, "3 columns, expected 2 columns as in the header"),
        ]
        assert cells(table)[-1] == ("four", "4")


def test_invalid_utf8_is_one_bad_row(write):
    for name, cut in (("a.tsv", b"\t"), ("a.csv", b",")):
        rows = [b"text" + cut + b"label", b"caf\xe9" + cut + b"1", b"tea" + cut + b"2"]
        table = open_table(write(name, b"\n".join(rows)))
        assert problems(table) == [(2, "the bytes are not UTF-8; expected UTF-8 text")]
        assert cells(table)[-1] == ("tea", "2")
    table = open_table(write("a.jsonl", b'{"text": "one"}\n{"text": "caf\xe9"}\n{"text": "two"}\n'))
    assert problems(table) == [(2, "the bytes are not UTF-8; expected UTF-8 text")]


def test_broken_json_lines_are_named(write):
    table = open_table(write("a.jsonl", '{"text": "one"}\n{"text": \n[1]\n\n{"text": "two", "extra": 1}\n\n'))
    assert [line for line, _ in problems(table)] == [2, 3, 4]
    assert all("expected one JSON object per line" in problem for _, problem in problems(table))
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


def test_folder_in_place_of_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        open_table(tmp_path)


def test_plain_text_is_one_column(write):
    assert cells(lines_table(write("a.txt", "one\ttab\n\ntwo, three\n\n"))) == [("one\ttab",), ("",), ("two, three",)]
