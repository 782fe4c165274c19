"""Real data sets have the sizes that their authors state."""

import pytest

from limbert.core.config import DataConfig
from limbert.data.load import load_task_data, load_texts


@pytest.mark.parametrize(
    ("task", "folder", "train", "dev"),
    [
        ("mrpc", "MRPC", 3668, {"dev": 408}),
        ("sts-b", "STS-B", 5749, {"dev": 1500}),
        ("sst-2", "SST-2", 67349, {"dev": 872}),
        ("rte", "RTE", 2490, {"dev": 277}),
        ("wnli", "WNLI", 635, {"dev": 71}),
        ("qnli", "QNLI-subset", 9999, {"dev": 5463}),
        ("mnli", "MNLI-subset", 22641, {"matched": 9815}),
        (None, "Banking77", 10003, {"dev": 3080}),
    ],
)
def test_real_data_has_the_stated_sizes(real_data, task, folder, train, dev):
    data = load_task_data(DataConfig(task=task, data=str(real_data(folder))), seed=0)
    assert len(data.train) == train
    assert {part: len(examples) for part, examples in data.dev.items()} == dev
    assert data.train.bad_rows == 0
    if data.task.task_type == "classification":
        assert set(data.train.labels) == set(range(data.task.num_outputs))
    else:
        assert min(data.train.labels) >= 0
        assert max(data.train.labels) <= 5
    if folder == "Banking77":
        assert data.task.num_outputs == 77


def test_majority_classes_of_glue(real_data):
    mrpc = load_task_data(DataConfig(task="mrpc", data=str(real_data("MRPC"))), seed=0)
    assert sum(mrpc.dev["dev"].labels) == 279  # equivalent, 68.4 %
    rte = load_task_data(DataConfig(task="rte", data=str(real_data("RTE"))), seed=0)
    assert rte.dev["dev"].labels.count(0) == 146  # entailment, 52.7 %


def test_spam_without_header(real_data):
    path = str(real_data("SMSSpam") / "SMSSpamCollection")
    data = load_task_data(DataConfig(train=path, dev=path, text_column="1", label_column="0"), seed=0)
    assert len(data.train) == 5574
    assert data.task.labels == ("ham", "spam")


def test_glue_test_file_is_read_for_prediction(real_data):
    texts = load_texts(real_data("RTE") / "test.tsv", DataConfig(task="rte"))
    assert len(texts) == 3000
    assert texts.pairs is not None
    assert texts.labels is None
