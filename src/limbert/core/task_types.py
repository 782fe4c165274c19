"""Table of task types: the task head and the output shape that each needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbert.core.config import TaskType

IGNORE_INDEX = -100  # label of tokens that have none: padding, special tokens, all but the first token of a word
MULTI_LABEL_THRESHOLD = 0.5  # a label of a multi-label task is predicted if its probability is above this


@dataclass(frozen=True)
class TaskTypeSpec:
    """What a task type means for the model.

    Attributes:
        head: key of ``limbert.model.checkpoint.TASK_HEADS``.
        class_suffix: end of the names of the stock classes with that head.
        problem_type: value of the config option of that name for stock sequence classifiers; None for other heads.
        token_level: whether logits are ``(batch, tokens, outputs)`` instead of ``(batch, outputs)``. All tokens of a
            text run through the same layers, so exits and gates, which choose a sub-network per prediction, do not
            apply.
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
    """The head for the task in a checkpoint's ``limbert.json``; sequence classification if it names none."""
    task_type = (record.get("task") or {}).get("kind", "classification")
    return TASK_TYPE_SPECS[task_type].head if task_type in TASK_TYPE_SPECS else "sequence-classification"
