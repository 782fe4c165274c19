"""Augmented examples are read with their labels and the ids of their training examples."""

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


def load(**settings: object) -> AugmentedExamples:
    augmented = load_task_data(DataConfig(**settings), seed=0).augmented
    assert augmented is not None
    return augmented


def load_mrpc(write: Write, content: str, *, skip: bool = False) -> AugmentedExamples:
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    rows = ["1\t10\t11\tA man ran .\tHe ran .", "0\t12\t13\tIt fell .\tIt rose .", "1\t14\t15\tHe ate .\tHe dined ."]
    for name in ("train", "dev"):
        write(f"d/{name}.tsv", "\n".join([header, *rows]) + "\n")
    path = write("aug.tsv", content.replace("HEADER", header))
    return load(task="mrpc", data=str(path.parent / "d"), augmented=str(path), skip_bad_rows=skip)


def load_sst2(write: Write, texts: list[str], *, train: list[tuple[str, int]] = SST2) -> AugmentedExamples:
    """Released files: logits in place of the label."""
    for name, examples in (("train", train), ("dev", SST2)):
        write(f"s/{name}.tsv", "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in examples))
    path = write("aug.tsv", "sentence\tlabel\n" + "".join(f"{text}\t1 -1\n" for text in texts))
    return load(task="sst-2", data=str(path.parent / "s"), augmented=str(path))


def source_ids(*texts: str) -> tuple[str, ...]:
    return tuple(compute_source_id(text.split("|")) for text in texts)


def test_source_ids_and_logits_are_read(write: Write) -> None:
    source_id = compute_source_id(("A man ran .", "He ran ."))
    row = f"1\t10\t11\tA dog ran .\tIt ran .\t{source_id}\t2.5 -1e-1"
    augmented = load_mrpc(write, f"HEADER\taugmented_from\tteacher_logits\n{row}\n")
    assert augmented.examples.texts == ("A dog ran .",)
    assert augmented.examples.labels == (1,)
    assert augmented.source_ids == (source_id,)
    np.testing.assert_allclose(augmented.logits, [[2.5, -0.1]])


def test_released_examples_are_matched_by_cells(write: Write) -> None:
    """In any order of the rows: the ids of the sentences tell the training example."""
    lines = [
        "-1.5 2\t14\t15\tHe ate .\tHe dined .",
        "0.4 0.3\t10\t11\tA dog ran .\tHe ran .",
        "1 -2\t14\t15\tWe ate .\tHe dined .",
    ]
    augmented = load_mrpc(write, "\n".join(["HEADER", *lines]))
    assert augmented.examples.labels == (1, 0, 0)  # the most likely, compared as numbers
    assert augmented.source_ids == source_ids("He ate .|He dined .", "A man ran .|He ran .", "He ate .|He dined .")
    assert augmented.logits is not None
    assert augmented.logits.shape == (3, 2)


def test_released_examples_are_matched_by_order(write: Write) -> None:
    texts = ["a fine film", "a fine movie", "such joy", "a dull film", "a drab film", "what a bore", "what a mess"]
    first, second, third = source_ids("a fine film", "a dull film", "what a bore")
    expected = (first, first, first, second, second, third, third)  # "such joy" equals another example by chance
    assert load_sst2(write, texts).source_ids == expected
    assert load_sst2(write, ["a fine film"] * 3 + texts[3:]).source_ids == expected  # repeated for the second text


def test_repeated_texts_are_matched_in_seconds(write: Write) -> None:
    """Comparing every two occurrences would be a hundred million pairs."""
    texts = ["fine film"] * 5000 + ["a dull film"] + ["fine film"] * 5000
    augmented_texts = [text for original in texts for text in (original, original.replace("film", "movie"))]
    started = time.process_time()
    augmented = load_sst2(write, augmented_texts, train=[(text, int(text == texts[0])) for text in texts])
    assert time.process_time() - started < 10
    assert augmented.source_ids == tuple(source_id for text in texts for source_id in source_ids(text) * 2)


def test_unknown_training_examples_are_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"aug.tsv: 2 of 2"):
        load_sst2(write, ["some movie", "other movie"])
    with pytest.raises(DataError, match=r"aug.tsv: 1 of 1"):
        load_mrpc(write, "HEADER\n1 2\t99\t98\tSome text .\tMore .\n")


def test_released_mnli_logits_are_reordered(write: Write) -> None:
    header = "index\tsentence1\tsentence2\tgold_label"
    rows = ["0\tA .\tB .\tneutral", "1\tC .\tD .\tentailment", "2\tE .\tF .\tcontradiction"]
    for name in ("train", "dev_matched"):
        write(f"m/{name}.tsv", "\n".join([header, *rows]))
    lines = ["0\tA .\tB .\t-1 1 3", "0\tA x .\tB .\t5 1 2", "1\tC .\tD .\t-1 8 3", "2\tE .\tF .\t1 -8 -3"]
    path = write("aug.tsv", "\n".join([header, *lines]))
    augmented = load(task="mnli", data=str(path.parent / "m"), augmented=str(path))
    assert augmented.examples.labels == (1, 2, 0, 2)  # entailment, neutral, contradiction
    np.testing.assert_allclose(augmented.logits, [[1, 3, -1], [1, 2, 5], [8, 3, -1], [-8, -3, 1]])


@pytest.mark.parametrize(
    ("rows", "expected_ids", "labels"),
    [
        (["-1 2\t\tHe ran .", "-1 2\t\tHe sat .", "3 2\t*\tRan he ."], ("He ran .", "He ran .", "Ran he ."), (1, 1, 0)),
        (["1\t\tHe sat .\tabc\t1 2"], ("abc",), (1,)),
        (["1\t\tHe sat .\tabc"], ("abc",), (1,)),
    ],
)
def test_files_without_header(
    write: Write, rows: list[str], expected_ids: tuple[str, ...], labels: tuple[int, ...]
) -> None:
    for name in ("train", "dev"):
        write(f"c/{name}.tsv", "gj\t1\t\tHe ran .\ngj\t0\t*\tRan he .")
    path = write("aug.tsv", "".join(f"gj\t{row}\n" for row in rows))
    augmented = load(task="cola", data=str(path.parent / "c"), augmented=str(path))
    assert augmented.source_ids == (source_ids(*expected_ids) if len(rows) > 1 else expected_ids)
    assert augmented.examples.labels == labels
    write("aug.tsv", "gj\t1\t\tHe sat .\tabc\t1 2\tmore")
    with pytest.raises(DataError, match="7 columns"):
        load(task="cola", data=str(path.parent / "c"), augmented=str(path))


def test_trainable_examples_exclude_validation(write: Write) -> None:
    rows = [{"text": f"row {row}", "label": ["low", "high"][row % 2]} for row in range(4)]
    train = write("train.jsonl", "\n".join(json.dumps(row) for row in rows))
    copies = [json.dumps(row | {"text": "line", "augmented_from": compute_source_id((row["text"],))}) for row in rows]
    path = write("aug.jsonl", "\n".join(copies))
    data = load_task_data(DataConfig(train=str(train), dev=str(train), augmented=str(path)), seed=0)
    augmented = data.augmented
    assert augmented is not None
    assert augmented.examples.labels == data.train.labels
    assert augmented.logits is None
    usable = augmented.trainable_indices(train=data.train.select([0, 1, 3]), validation=data.train.select([2, 3]))
    assert usable.tolist() == [0, 1]
    with pytest.raises(DataError, match="none of 4"):
        augmented.trainable_indices(train=data.train.select([2]), validation=data.train.select([2]))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("HEADER\taugmented_from\n2\t1\t1\ta\tb\tx\n", r"aug.tsv:2: .*'2'"),
        ("HEADER\taugmented_from\tteacher_logits\n1\t1\t1\ta\tb\tx\t1 2 3\n", r"aug.tsv:2: .*'1 2 3'"),
        ("HEADER\n1 nan\t1\t1\ta\tb\n", r"aug.tsv:2: .*'1 nan'"),
        ("HEADER\taugmented_from\n1\t1\t1\t \tb\tx\n", r"aug.tsv:2: no text"),
        ("Quality\tone\n1\ta\n", "'#1 String'"),
        ("HEADER\n1 2\t10\t11\tA man ran .\tHe ran .\n1\t10\t11\tA man sat .\tHe ran .\n", "1 rows have no logits"),
    ],
)
def test_bad_rows_are_named(write: Write, content: str, named: str) -> None:
    with pytest.raises(DataError, match=named):
        load_mrpc(write, content)
    if "augmented_from" in content:
        good = f"1\t1\t1\ta\tb\t{compute_source_id(('A man ran .', 'He ran .'))}"
        more = "\t1 2\n" if "teacher_logits" in content else "\n"
        assert len(load_mrpc(write, content + good + more, skip=True)) == 1
