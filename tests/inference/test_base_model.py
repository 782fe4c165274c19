"""A start counts as fine-tuned where its head has the task's labels, in whatever order."""

from pathlib import Path

import pytest
from tests.factories.runs import ENCODER, needs_encoder
from transformers import AutoConfig, AutoTokenizer

from limbert.core.config import TrainConfig
from limbert.data.tasks import custom_task
from limbert.inference.base_model import load_base_checkpoint

pytestmark = needs_encoder


@pytest.mark.parametrize(
    ("names", "labels", "found"),
    [
        (("us", "US"), ("US", "us"), ("us", "US")),  # names that differ in case only
        (("B", "A"), ("a", "b"), ("b", "a")),  # the task's spelling in the model's order
        (("us", "Us"), ("US", "us"), None),  # nobody can say which is which
        (("a", "A", "b"), ("a", "b", "B"), None),
        (("a", "b"), ("a", "c"), None),
        (("LABEL_0", "LABEL_1"), ("yes", "no"), ("yes", "no")),
    ],
)
def test_labels_are_found_in_the_order_of_the_model(
    tmp_path: Path, names: tuple[str, ...], labels: tuple[str, ...], found: tuple[str, ...] | None
) -> None:
    config = AutoConfig.for_model("bert", num_hidden_layers=2, id2label=dict(enumerate(names)))
    config.architectures = ["BertForSequenceClassification"]
    config.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(ENCODER).save_pretrained(tmp_path)
    start = load_base_checkpoint(
        TrainConfig(model=str(tmp_path), output="unused"), custom_task("classification", labels)
    )
    assert start.is_finetuned == (found is not None)
    assert start.task.labels == (found or labels)
