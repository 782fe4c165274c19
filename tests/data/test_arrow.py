"""Parquet files and `datasets`: class names come with the data."""

import pyarrow
import pyarrow.parquet
import pytest

from limbert.core.config import DataConfig
from limbert.data import sources
from limbert.data import table as arrow
from limbert.data.load import load_task_data, load_texts
from limbert.data.table import dataset_tables, parquet_table
from limbert.errors import DataError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hub"))


def reviews(labels):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    return datasets.Dataset.from_dict(
        {"text": [f"review number {index}" for index in range(len(labels))], "label": labels}, features=features
    )


@pytest.mark.parametrize("kind", [datasets.Sequence, datasets.List, lambda feature: [feature]])
def test_lists_of_class_ids_become_names(tmp_path, kind):
    names = datasets.ClassLabel(names=["zeal", "anger", "joy"])
    features = datasets.Features({"text": datasets.Value("string"), "labels": kind(names)})
    rows = {"text": ["a b", "c d", "e f"], "labels": [[0, 2], [], [1]]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    data = load_task_data(DataConfig(train=str(tmp_path / "a.parquet"), dev=str(tmp_path / "a.parquet")), seed=0)
    assert data.task.labels == ("zeal", "anger", "joy")
    assert data.train.labels == ((0, 2), (), (1,))


def test_class_ids_become_names(tmp_path):
    folder = tmp_path / "reviews"
    folder.mkdir()
    reviews([1, 0, -1, 1]).to_parquet(folder / "train.parquet")
    reviews([0, 1]).to_parquet(folder / "validation.parquet")
    tables = dataset_tables(str(folder))
    assert set(tables) == {"train", "validation"}
    for table in (tables["train"], parquet_table(folder / "train.parquet")):
        assert table.class_names == {"label": ("neg", "pos")}
        assert [row.cells["label"] for row in table.rows()] == ["pos", "neg", None, "pos"]
        assert [row.cells["text"] for row in table.rows()] == [f"review number {index}" for index in range(4)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nor a Hub data set"):
        dataset_tables(str(tmp_path / "empty"))


def test_glue_from_the_hub(tmp_path, monkeypatch):
    """A local copy of the Hub's layout stands in for the Hub: same columns, splits and class names."""
    names = ["entailment", "neutral", "contradiction"]
    features = datasets.Features(dict.fromkeys(("premise", "hypothesis"), datasets.Value("string")))
    features["label"] = datasets.ClassLabel(names=names)
    files = {}
    for split, labels in (("train", [0, 1, 2, 0]), ("validation_matched", [2, 1]), ("validation_mismatched", [0])):
        rows = {"premise": ["one thing"] * len(labels), "hypothesis": ["another"] * len(labels), "label": labels}
        files[split] = str(tmp_path / f"{split}.parquet")
        datasets.Dataset.from_dict(rows, features=features).to_parquet(files[split])
    asked = []

    def local(name, configuration=None):
        asked.append((name, configuration))
        loaded = datasets.load_dataset("parquet", data_files=files)
        return {split: arrow.dataset_table(split, dataset) for split, dataset in loaded.items()}

    monkeypatch.setattr(sources, "dataset_tables", local)
    data = load_task_data(DataConfig(task="MNLI"), seed=0)
    assert asked == [("nyu-mll/glue", "mnli")]
    assert data.train.labels == (0, 1, 2, 0)
    assert data.train.pairs == ("another",) * 4
    assert {part: examples.labels for part, examples in data.dev.items()} == {"matched": (2, 1), "mismatched": (0,)}


def test_invalid_utf8_is_named_with_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "_BATCH_ROWS", 1)  # row numbers continue over batches
    texts = pyarrow.array([b"fine", b"caf\xe9", b"fine too"]).cast(pyarrow.binary())
    column = pyarrow.StringArray.from_buffers(3, *texts.buffers()[1:])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    rows = [*parquet_table(tmp_path / "a.parquet").rows()]
    found = [(row.line_number, row.cells.get("text"), row.problem is None) for row in rows]
    assert found == [(1, "fine", True), (2, None, False), (3, "fine too", True)]
    with pytest.raises(DataError, match=r"a.parquet:2: the bytes are not UTF-8"):
        load_texts(tmp_path / "a.parquet", DataConfig())
    assert load_texts(tmp_path / "a.parquet", DataConfig(skip_bad_rows=True)).texts == ("fine", "fine too")
