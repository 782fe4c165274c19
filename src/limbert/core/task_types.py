"""What a model can be asked to predict: the facts about each kind of task that every layer needs, as a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbert.core.config import TaskKind

IGNORED = -100  # label of a token that has none: padding, special tokens, all but the first token of a word


@dataclass(frozen=True)
class KindFacts:
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
    network: str
    problem_type: str | None = None
    at_tokens: bool = False


def _sequence(problem_type: str) -> KindFacts:
    return KindFacts("sequence-classification", "ForSequenceClassification", problem_type)


KINDS: Mapping[TaskKind, KindFacts] = {
    "classification": _sequence("single_label_classification"),
    "regression": _sequence("regression"),
    "multi-label": _sequence("multi_label_classification"),
    "token-classification": KindFacts("token-classification", "ForTokenClassification", at_tokens=True),
    "question-answering": KindFacts("question-answering", "ForQuestionAnswering", at_tokens=True),
}


def head_of(record: Mapping[str, Any]) -> str:
    """The head that a checkpoint's ``limbert.json`` speaks of; that for sequence classification where it names none."""
    kind = (record.get("task") or {}).get("kind", "classification")
    return KINDS[kind].head if kind in KINDS else "sequence-classification"
