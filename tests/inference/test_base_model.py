"""A base model counts as fine-tuned if its head has the task's labels, in any order."""

from pathlib import Path

import pytest
from tests.factories.runs import ENCODER, needs_encoder
from transformers import AutoConfig, AutoTokenizer

from limbert.core.config import TrainConfig
from limbert.data.tasks import custom_task
from limbert.inference.base_model import TaskBaseCheckpoint, load_base_checkpoint

pytestmark = needs_encoder


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("us", "US"), ("US", "us"), ("us", "US")),  # names that differ in case only
        (("B", "A"), ("a", "b"), ("b", "a")),  # the task's spelling in the model's order
        (("us", "Us"), ("US", "us"), None),  # ambiguous
        (("a", "A", "b"), ("a", "b", "B"), None),
        (("a", "b"), ("a", "c"), None),
        (("LABEL_0", "LABEL_1"), ("yes", "no"), None),  # they say nothing
    ],
)
def test_labels_take_the_order_of_the_model(
    tmp_path: Path, names: tuple[str, ...], labels: tuple[str, ...], expected: tuple[str, ...] | None
) -> None:
    base = load_base(tmp_path, names, labels)
    assert base.is_finetuned == (expected is not None)
    assert base.task.labels == (expected or labels)


def load_base(
    folder: Path, names: tuple[str, ...], labels: tuple[str, ...], *, phases: tuple[str, ...] | None = None
) -> TaskBaseCheckpoint:
    config = AutoConfig.for_model("bert", num_hidden_layers=2, id2label=dict(enumerate(names)))
    config.architectures = ["BertForSequenceClassification"]
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(ENCODER).save_pretrained(folder)
    task = custom_task("classification" if labels else "regression", labels)
    return load_base_checkpoint(TrainConfig(model=str(folder), output="unused", phases=phases), task)


@pytest.mark.parametrize("phases", [None, ("width", "depth"), ("finetune", "width")])
def test_numbered_labels_count_where_phases_say_so(tmp_path: Path, phases: tuple[str, ...] | None) -> None:
    base = load_base(tmp_path, ("LABEL_0", "LABEL_1"), ("yes", "no"), phases=phases)
    assert base.is_finetuned == (phases == ("width", "depth"))
    assert base.task.labels == ("yes", "no")
    score = load_base(tmp_path, ("LABEL_0",), (), phases=phases)
    assert score.is_finetuned == (phases == ("width", "depth"))
    assert load_base(tmp_path, ("score",), ()).is_finetuned
