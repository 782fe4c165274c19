"""Files as users have them: long cells, backslash quotes, other encodings, gzip, lists, moved data."""

import csv
import gzip
import io
import json
import os
from dataclasses import replace

import pytest

from limbert.core.config import DataConfig
from limbert.data.labels import label_parser
from limbert.data.load import load_evaluation_data, load_task_data
from limbert.data.table import open_table
from limbert.errors import ConfigError, DataError

ROWS = [(f"short text {number}", "ham" if number % 2 else "spam") for number in range(20)]


def csv_text(rows, header=("text", "label")):
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return file.getvalue()


def load(path, **settings):
    return load_task_data(DataConfig(train=str(path), dev=str(path), **settings), seed=0)


@pytest.mark.parametrize("skip", [False, True])
def test_cell_of_any_length_is_one_cell(write, skip):
    inner = "\n".join(["x" * 140_000, *(f"a line inside the cell {number},spam" for number in range(5)), "end"])
    data = load(write("a.csv", csv_text([*ROWS, (inner, "ham"), *ROWS])), skip_bad_rows=skip)
    assert len(data.train) == 41
    assert data.train.texts[20] == inner
    assert data.train.bad_rows == 0


def test_backslash_quotes_over_several_lines_are_read(write):
    record = '"He said \\"hi\\", and then\nthe second line,spam\nthe third line, with a comma",ham\n'
    path = write("a.csv", csv_text(ROWS) + record + csv_text(ROWS).split("\n", 1)[1])
    data = load(path, skip_bad_rows=True)
    assert len(data.train) == 41
    assert data.train.bad_rows == 0
    assert data.train.texts[20] == 'He said "hi", and then\nthe second line,spam\nthe third line, with a comma'


@pytest.mark.parametrize(
    "record",
    [
        '"He said "hi" and then\nthe second line,spam\nthe third line",ham\n',
        '"one" more,ham\n',
        '"a "b" c\nsecond,spam\n\nfourth "x" y\nlast",ham\n',
    ],
)
def test_broken_quotes_are_one_bad_row(write, record):
    path = write("a.csv", csv_text(ROWS) + record + csv_text(ROWS).split("\n", 1)[1])
    with pytest.raises(DataError, match=r"a.csv:22: broken CSV"):
        load(path)
    data = load(path, skip_bad_rows=True)
    assert (len(data.train), data.train.bad_rows) == (40, 1)
    assert {*data.train.texts} == {text for text, _ in ROWS}
    data = load(write("b.csv", csv_text(ROWS) + '"open,ham\n' + csv_text(ROWS)), skip_bad_rows=True)
    assert (len(data.train), data.train.bad_rows) == (20, 1)  # an open quote takes the rest


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_are_detected(write, name, encoding):
    if name == "a.jsonl":
        text = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)
    else:
        text = csv_text([("naïve café", "ham"), *ROWS]).replace(",", "\t" if name == "a.tsv" else ",")
    assert {*ROWS} <= {
        (row.cells["text"], row.cells["label"]) for row in open_table(write(name, text.encode(encoding))).rows()
    }


@pytest.mark.parametrize("name", ["train.csv.gz", "train.jsonl.gz"])
def test_gzipped_files_are_read(write, name):
    lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)
    path = write(name, gzip.compress((csv_text(ROWS) if ".csv" in name else lines).encode()))
    data = load_task_data(DataConfig(data=str(path.parent), held_out=0.2), seed=0)
    assert len(data.train) + len(data.dev["dev"]) == 20


def test_cells_that_look_like_lists_are_lists(write):
    rows = [(text, str(labels)) for (text, _), labels in zip(ROWS, [["sport", "news"], ["art"], []] * 7, strict=False)]
    data = load(write("a.csv", csv_text(rows)))
    assert (data.task.task_type, data.task.labels) == ("multi-label", ("art", "news", "sport"))
    assert data.train.labels[:3] == ((1, 2), (0,), ())


def test_two_whole_values_are_classes(write):
    path = write("a.csv", csv_text([(text, "0.0" if label == "ham" else "1.0") for text, label in ROWS]))
    data = load(path)
    assert (data.task.task_type, data.task.labels) == ("classification", ("0.0", "1.0"))
    assert any("--task-type regression" in line for line in data.description)
    assert load(path, task_type="regression").task.task_type == "regression"
    assert label_parser(data.task)(1) == 1
    scores = load(write("b.csv", csv_text([(text, str(number / 2)) for number, (text, _) in enumerate(ROWS)])))
    assert any("--task-type classification" in line for line in scores.description)


def test_description_names_data_columns_and_counts(write):
    data = load(write("a.csv", csv_text(ROWS)), label_column="label")
    description = "\n".join(data.description)
    for part in ("a.csv", "20 train", "text 'text' (guessed)", "label 'label'", "ham = 0 (10), spam = 1 (10)"):
        assert part in description


def test_columns_of_labels_are_multi_label(write):
    cells = [("1", "0"), ("0", "1"), ("1", "true"), ("0.0", "0")] * 5
    rows = [(text, *flags) for (text, _), flags in zip(ROWS, cells, strict=True)]
    path = write("a.csv", csv_text(rows, ("text", "toxic", "insult")))
    config = DataConfig(train=str(path), dev=str(path), label_columns=("toxic", "insult"))
    data = load_task_data(config, seed=0)
    assert (data.task.task_type, data.task.labels) == ("multi-label", ("toxic", "insult"))
    assert data.train.labels[:4] == ((0,), (1,), (0, 1), ())
    assert load_evaluation_data(config, data.task) == data.dev
    with pytest.raises(DataError, match=r"a.csv:2: 'short text 0' in label column 'text'"):
        load_task_data(replace(config, label_columns=("text",), text_column="text"), seed=0)
    with pytest.raises(DataError, match="column 'hate' not found"):
        load_task_data(replace(config, label_columns=("toxic", "hate")), seed=0)
    for settings in ({"label_column": "toxic"}, {"label_names": ("a", "b")}):
        with pytest.raises(ConfigError):
            DataConfig(label_columns=("toxic", "insult"), **settings)
    with pytest.raises(ConfigError, match="multi-label"):
        load_task_data(replace(config, task_type="classification"), seed=0)


def test_saved_paths_are_absolute(write, monkeypatch, tmp_path):
    write("a/data/train.csv", csv_text(ROWS))
    monkeypatch.chdir(tmp_path / "a")
    config = load_task_data(DataConfig(data="data", held_out=0.2), seed=0).config
    monkeypatch.chdir(tmp_path)
    assert config.data == str(tmp_path / "a" / "data")
    assert DataConfig(data="nyu-mll/glue").data == "nyu-mll/glue"


def test_other_data_than_in_training_is_refused(write):
    train, dev = write("train.csv", csv_text(ROWS)), write("dev.csv", csv_text(ROWS[:10]))
    data = load_task_data(DataConfig(data=str(train.parent)), seed=0)
    assert load_evaluation_data(data.config, data.task) == data.dev
    assert load_evaluation_data(data.config, replace(data.task, labels=data.task.labels[::-1])).keys() == {"dev"}
    os.utime(dev, (0, 0))
    dev.write_text(csv_text([(text, "ham") for text, _ in ROWS[:10]]))
    with pytest.raises(DataError, match="development data"):
        load_evaluation_data(data.config, data.task)
    assert load_task_data(data.config, seed=1).train == data.train
    train.write_text(csv_text(ROWS[1:]))
    with pytest.raises(DataError, match="training data"):
        load_task_data(data.config, seed=0)
    assert len(load_evaluation_data(replace(data.config, fingerprints=None), data.task)["dev"]) == 10


def test_datasets_are_read_like_files(write, tmp_path):
    datasets = pytest.importorskip("datasets")
    columns = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)})
    splits["validation"] = splits["train"].select(range(6))
    splits.save_to_disk(tmp_path / "saved")
    write("files/train.csv", csv_text(ROWS))
    write("files/dev.csv", csv_text(ROWS[:6]))
    expected = load_task_data(DataConfig(data=str(tmp_path / "files")), seed=0)
    assert load_task_data(DataConfig(data=str(tmp_path / "saved")), seed=0) == expected
