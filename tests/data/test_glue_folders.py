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
        majority = {"MRPC": (1, 279), "RTE": (0, 146)}.get(folder)  # 68.4 % equivalent, 52.7 % entailment
        assert majority is None or data.dev["dev"].labels.count(majority[0]) == majority[1]
    else:
        assert min(data.train.labels) >= 0
        assert max(data.train.labels) <= 5
    if folder == "Banking77":
        assert data.task.num_outputs == 77


def test_glue_test_file_is_read_for_prediction(real_data):
    texts = load_texts(real_data("RTE") / "test.tsv", DataConfig(task="rte"))
    assert len(texts) == 3000
    assert texts.pairs is not None
    assert texts.labels is None
