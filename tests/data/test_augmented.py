"""Augmented rows are read back with their labels, and traced to the rows they were made of."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from limbert.core.config import DataConfig
from limbert.data.augmented import AugmentedExamples, compute_source_id
from limbert.data.load import load_task_data
from limbert.errors import DataError

Write = Callable[[str, str], Path]
SST2 = [("a fine film", 1), ("a dull film", 0), ("what a bore", 0), ("such joy", 1)]


def mrpc(write: Write, copies: str, *, skip: bool = False) -> AugmentedExamples:
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    rows = ["1\t10\t11\tA man ran .\tHe ran .", "0\t12\t13\tIt fell .\tIt rose .", "1\t14\t15\tHe ate .\tHe dined ."]
    write("d/train.tsv", "\n".join([header, *rows]) + "\n")
    write("d/dev.tsv", "\n".join([header, *rows]) + "\n")
    path = write("aug.tsv", copies.replace("HEADER", header))
    config = DataConfig(task="mrpc", data=str(path.parent / "d"), augmented=str(path), skip_bad_rows=skip)
    found = load_task_data(config, seed=0).augmented
    assert found is not None
    return found


def sst2(write: Write, copies: str) -> AugmentedExamples:
    train = "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in SST2)
    write("s/train.tsv", train)
    write("s/dev.tsv", train)
    path = write("aug.tsv", copies)
    found = load_task_data(DataConfig(task="sst-2", data=str(path.parent / "s"), augmented=str(path)), seed=0).augmented
    assert found is not None
    return found


def marks(*texts: str) -> tuple[str, ...]:
    return tuple(compute_source_id(text.split("|")) for text in texts)


def test_copies_with_their_origin_and_logits(write: Write) -> None:
    mark = compute_source_id(("A man ran .", "He ran ."))
    found = mrpc(
        write, f"HEADER\taugmented_from\tteacher_logits\n1\t10\t11\tA dog ran .\tIt ran .\t{mark}\t2.5 -1e-1\n"
    )
    assert found.examples.texts == ("A dog ran .",)
    assert found.examples.labels == (1,)
    assert found.source_ids == (mark,)
    np.testing.assert_allclose(found.logits, [[2.5, -0.1]])


def test_released_logits_are_the_labels_and_other_cells_say_the_origin(write: Write) -> None:
    """In any order of the rows: the ids of the sentences tell where each is from."""
    lines = [
        "-1.5 2\t14\t15\tHe ate .\tHe dined .",
        "0.4 0.3\t10\t11\tA dog ran .\tHe ran .",
        "1 -2\t14\t15\tWe ate .\tHe dined .",
    ]
    found = mrpc(write, "\n".join(["HEADER", *lines]))
    assert found.examples.labels == (1, 0, 0)  # the likeliest, as numbers: "-1.5" is no text to compare
    assert found.source_ids == marks("He ate .|He dined .", "A man ran .|He ran .", "He ate .|He dined .")
    assert found.logits is not None
    assert found.logits.shape == (3, 2)


def test_without_other_cells_the_order_says_the_origin(write: Write) -> None:
    texts = ["a fine film", "a fine movie", "such joy", "a dull film", "a drab film", "what a bore", "what a mess"]
    found = sst2(write, "sentence\tlabel\n" + "".join(f"{text}\t{1} {-1}\n" for text in texts))
    first, second, third = marks("a fine film", "a dull film", "what a bore")
    assert found.source_ids == (
        first,
        first,
        first,
        second,
        second,
        third,
        third,
    )  # "such joy" equals another row by chance
    rows = ["a fine film"] * 3 + texts[3:]  # written again for the second text of a pair
    found = sst2(write, "sentence\tlabel\n" + "".join(f"{text}\t{1} {-1}\n" for text in rows))
    assert found.source_ids == (first, first, first, second, second, third, third)


def test_a_text_that_stands_often_is_traced_in_seconds(write: Write) -> None:
    """Without a pair for each two of its rows, which would be a hundred million."""
    rows = ["fine film"] * 5000 + ["a dull film"] + ["fine film"] * 5000
    write("s/train.tsv", "sentence\tlabel\n" + "".join(f"{text}\t{int(text == rows[0])}\n" for text in rows))
    write("s/dev.tsv", "sentence\tlabel\na dull film\t0\n")
    copies = [text for row in rows for text in (row, row.replace("film", "movie"))]
    path = write("aug.tsv", "sentence\tlabel\n" + "".join(f"{text}\t1 -1\n" for text in copies))
    began = time.process_time()
    found = load_task_data(DataConfig(task="sst-2", data=str(path.parent / "s"), augmented=str(path)), seed=0).augmented
    assert time.process_time() - began < 10  # with all pairs more than 30
    assert found is not None
    assert found.source_ids == tuple(mark for row in rows for mark in marks(row) * 2)


def test_copies_that_cannot_be_traced_are_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"aug.tsv: 2 of 2 rows cannot be traced"):
        sst2(write, "sentence\tlabel\nsome movie\t1 0\nother movie\t0 1\n")
    with pytest.raises(DataError, match="cannot be traced"):
        mrpc(write, "HEADER\n1 2\t99\t98\tSome text .\tMore .\n")


def test_mnli_has_another_order_of_classes_there(write: Write) -> None:
    header = "index\tsentence1\tsentence2\tgold_label"
    rows = ["0\tA .\tB .\tneutral", "1\tC .\tD .\tentailment", "2\tE .\tF .\tcontradiction"]
    write("m/train.tsv", "\n".join([header, *rows]))
    write("m/dev_matched.tsv", "\n".join([header, *rows]))
    lines = ["0\tA .\tB .\t-1 1 3", "0\tA x .\tB .\t5 1 2", "1\tC .\tD .\t-1 8 3", "2\tE .\tF .\t1 -8 -3"]
    path = write("aug.tsv", "\n".join([header, *lines]))
    found = load_task_data(DataConfig(task="mnli", data=str(path.parent / "m"), augmented=str(path)), seed=0).augmented
    assert found is not None
    assert found.examples.labels == (1, 2, 0, 2)  # entailment, neutral, contradiction
    np.testing.assert_allclose(found.logits, [[1, 3, -1], [1, 2, 5], [8, 3, -1], [-8, -3, 1]])


def test_a_file_without_header(write: Write) -> None:
    rows = ["gj\t1\t\tHe ran .", "gj\t0\t*\tRan he ."]
    write("c/train.tsv", "\n".join(rows))
    write("c/dev.tsv", "\n".join(rows))
    config = DataConfig(task="cola", data=str(write("c/x", "").parent))
    plain, marked = "gj\t-1 2\t\tHe ran .\ngj\t-1 2\t\tHe sat .\ngj\t3 2\t*\tRan he .", "gj\t1\t\tHe sat .\tabc\t1 2"
    for content, origins, labels in (
        (plain, (*marks("He ran ."), *marks("He ran ."), *marks("Ran he .")), (1, 1, 0)),
        (marked, ("abc",), (1,)),
        ("gj\t1\t\tHe sat .\tabc", ("abc",), (1,)),
    ):
        path = write("aug.tsv", content)
        found = load_task_data(DataConfig(**{**vars(config), "augmented": str(path)}), seed=0).augmented
        assert found is not None
        assert (found.source_ids, found.examples.labels) == (origins, labels)
    path = write("aug.tsv", "gj\t1\t\tHe sat .\tabc\t1 2\tmore")
    with pytest.raises(DataError, match="7 columns; expected the 4"):
        load_task_data(DataConfig(**{**vars(config), "augmented": str(path)}), seed=0)


def test_own_data_in_json_lines(write: Write) -> None:
    rows = [{"text": f"row {place}", "label": ["low", "high"][place % 2]} for place in range(4)]
    lines = [json.dumps(row) for row in rows]
    train = write("train.jsonl", "\n".join(lines))
    copies = [json.dumps(row | {"text": "line", "augmented_from": compute_source_id((row["text"],))}) for row in rows]
    path = write("aug.jsonl", "\n".join(copies))
    found = load_task_data(DataConfig(train=str(train), dev=str(train), augmented=str(path)), seed=0)
    assert found.augmented is not None
    assert found.augmented.examples.labels == found.train.labels
    assert found.augmented.logits is None
    usable = found.augmented.trainable_indices(
        train=found.train.select([0, 1, 3]), validation=found.train.select([2, 3])
    )
    assert usable.tolist() == [0, 1]
    with pytest.raises(DataError, match="none of the 4 augmented rows"):
        found.augmented.trainable_indices(train=found.train.select([2]), validation=found.train.select([2]))


@pytest.mark.parametrize(
    ("copies", "message"),
    [
        ("HEADER\taugmented_from\n2\t1\t1\ta\tb\tx\n", r"aug.tsv:2: label '2' is unknown"),
        ("HEADER\taugmented_from\tteacher_logits\n1\t1\t1\ta\tb\tx\t1 2 3\n", r"aug.tsv:2: logits '1 2 3', expected 2"),
        ("HEADER\n1 nan\t1\t1\ta\tb\n", r"aug.tsv:2: logits '1 nan', expected 2 finite"),
        ("HEADER\taugmented_from\n1\t1\t1\t \tb\tx\n", r"aug.tsv:2: no text"),
        ("Quality\tone\n1\ta\n", "no column '#1 String'"),
        ("HEADER\n1 2\t10\t11\tA man ran .\tHe ran .\n1\t10\t11\tA man sat .\tHe ran .\n", "1 rows have no logits"),
    ],
)
def test_what_is_wrong_with_a_row(write: Write, copies: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        mrpc(write, copies)
    if "aug.tsv:2" in message:
        good = f"1\t1\t1\ta\tb\t{compute_source_id(('A man ran .', 'He ran .'))}"
        more = "\t1 2\n" if "teacher_logits" in copies else "\n"
        if "augmented_from" in copies:
            assert len(mrpc(write, copies + good + more, skip=True)) == 1
