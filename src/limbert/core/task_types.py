"""What a model can be asked to predict: the facts about each kind of task that every layer needs, as a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbert.core.config import TaskType

IGNORE_INDEX = -100  # label of a token that has none: padding, special tokens, all but the first token of a word
MULTI_LABEL_THRESHOLD = 0.5  # of a multi-label task, a label is predicted if its probability is over this


@dataclass(frozen=True)
class TaskTypeSpec:
    """What a kind of task means for the model.

    Attributes:
        head: of ``limbert.model.checkpoint.HEADS``.
        network: how the names of the stock classes with that head end.
        problem_type: what stock sequence classifiers call it in their config; None for other heads.
        at_tokens: whether answers stand at tokens, ``(batch, tokens, outputs)``, instead of one a text. All tokens of a
            text run through the same layers, so that exits and gates, which give every answer a size of its own, have
            no meaning there.
    """

    head: str
    class_suffix: str
    problem_type: str | None = None
    token_level: bool = False


def _sequence_classification(problem_type: str) -> TaskTypeSpec:
    return TaskTypeSpec("sequence-classification", "ForSequenceClassification", problem_type)


TASK_TYPE_SPECS: Mapping[TaskType, TaskTypeSpec] = {
    "classification": _sequence_classification("single_label_classification"),
    "regression": _sequence_classification("regression"),
    "multi-label": _sequence_classification("multi_label_classification"),
    "token-classification": TaskTypeSpec("token-classification", "ForTokenClassification", token_level=True),
    "question-answering": TaskTypeSpec("question-answering", "ForQuestionAnswering", token_level=True),
}


def head_for_record(record: Mapping[str, Any]) -> str:
    """The head that a checkpoint's ``limbert.json`` speaks of; that for sequence classification where it names none."""
    kind = (record.get("task") or {}).get("kind", "classification")
    return TASK_TYPE_SPECS[kind].head if kind in TASK_TYPE_SPECS else "sequence-classification"
