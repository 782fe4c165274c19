"""A base model counts as fine-tuned if its head has the task's labels, in any order."""

from pathlib import Path

import pytest
from tests.factories.runs import ENCODER, needs_encoder
from transformers import AutoConfig, AutoTokenizer

from limbert.core.config import TrainConfig
from limbert.data.tasks import custom_task
from limbert.inference.base_model import load_base_checkpoint

pytestmark = needs_encoder


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("us", "US"), ("US", "us"), ("us", "US")),  # names that differ in case only
        (("B", "A"), ("a", "b"), ("b", "a")),  # the task's spelling in the model's order
        (("us", "Us"), ("US", "us"), None),  # ambiguous
        (("a", "A", "b"), ("a", "b", "B"), None),
        (("a", "b"), ("a", "c"), None),
        (("LABEL_0", "LABEL_1"), ("yes", "no"), ("yes", "no")),
    ],
)
def test_labels_take_the_order_of_the_model(
    tmp_path: Path, names: tuple[str, ...], labels: tuple[str, ...], expected: tuple[str, ...] | None
) -> None:
    config = AutoConfig.for_model("bert", num_hidden_layers=2, id2label=dict(enumerate(names)))
    config.architectures = ["BertForSequenceClassification"]
    config.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(ENCODER).save_pretrained(tmp_path)
    base = load_base_checkpoint(
        TrainConfig(model=str(tmp_path), output="unused"), custom_task("classification", labels)
    )
    assert base.is_finetuned == (expected is not None)
    assert base.task.labels == (expected or labels)
