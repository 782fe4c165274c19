"""Entities out of tags, and how many of them were found: exact boundaries and type, as CoNLL counts them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Entity(NamedTuple):
    """Consecutive words of one type."""

    type: str
    first: int
    end: int  # the word after its last


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities that tags such as ``B-person, I-person, O`` mark, in their order.

    As in the evaluation script of CoNLL-2000: an entity begins with ``B`` or ``S``, and with an ``I`` or ``E`` that
    does not go on with an entity of its type; it ends with ``E`` or ``S``, and before whatever begins or is ``O``.
    ``U`` means ``S``, ``L`` means ``E`` (BILOU), and ``M`` means ``I`` (BMES).
    """
    found = []
    running: tuple[str, int] | None = None
    before = "O"
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if running is not None and (prefix in "BSUO" or before in "ESLU" or kind != running[0]):
            found.append(Entity(running[0], running[1], place))
            running = None
        if running is None and prefix != "O":
            running = (kind, place)
        before = prefix
    return found


def entity_scores(gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]) -> dict[str, float]:
    """Micro-averaged F1, precision and recall of entities; 0 where there is nothing to divide by.

    Args:
        gold, predicted: tags of the words, text by text.
    """
    right = there = claimed = 0
    for ours, theirs in zip(gold, predicted, strict=True):
        wanted, found = {*entities(ours)}, {*entities(theirs)}
        right += len(wanted & found)
        there += len(wanted)
        claimed += len(found)
    return {
        "entity_f1": _share(2 * right, there + claimed),
        "entity_precision": _share(right, claimed),
        "entity_recall": _share(right, there),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
