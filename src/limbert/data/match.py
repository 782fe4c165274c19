"""Trace copies that do not say which training row they were made of: by what else their rows hold, or by their order.

The released programs keep a row's other cells (an index, the ids of a pair) and write a row unchanged before its
copies, in the order of the training file.
"""

from collections import defaultdict
from collections.abc import Sequence

from limbert.errors import DataError

_AHEAD = 10  # the next unchanged row is looked for among so many training rows: a copy may equal a far one by chance
_DISAGREEMENT = 0.05  # share of unchanged rows that may have other cells than their training row, by chance


def match_origins(
    copies: Sequence[str],
    identities: Sequence[tuple[str, ...]],
    *,
    train: Sequence[str],
    train_identities: Sequence[tuple[str, ...]],
    name: str,
) -> tuple[str | None, ...]:
    """The mark of the training row that each copy was made of; None where it is not known.

    Args:
        copies: the marks of the copies' own texts, in the order of the file.
        identities: the copies' other cells.
        train, train_identities: the same of the training rows.
        name: of the file, for messages.

    Raises:
        DataError: if more than half of the copies cannot be traced.
    """
    found = _by_identity(copies, identities, train=train, train_identities=train_identities)
    if found is None or _unknown(found) > len(copies) / 2:
        found = _by_order(copies, train)
    if _unknown(found) > len(copies) / 2:
        raise DataError(
            f"{name}: {_unknown(found)} of {len(copies)} rows cannot be traced to training rows, by their other cells "
            "or their order, so that copies of validation rows would train; make the file with limbert augment"
        )
    return found


def _by_identity(
    copies: Sequence[str],
    identities: Sequence[tuple[str, ...]],
    *,
    train: Sequence[str],
    train_identities: Sequence[tuple[str, ...]],
) -> tuple[str | None, ...] | None:
    """By the other cells, where they tell the training rows apart and agree on the copies that are unchanged."""
    marks: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for identity, mark in zip(train_identities, train, strict=True):
        marks[identity].add(mark)
    known = {identity: min(found) for identity, found in marks.items() if len(found) == 1}
    found = tuple(known.get(identity) for identity in identities)
    rows = {*train}
    unchanged = [(mine, other) for mine, other in zip(copies, found, strict=True) if mine in rows and other is not None]
    wrong = sum(mine != other for mine, other in unchanged)
    return found if unchanged and wrong <= _DISAGREEMENT * len(unchanged) else None


def _by_order(copies: Sequence[str], train: Sequence[str]) -> tuple[str | None, ...]:
    """By the last unchanged row above; all None where too few of the training rows are met on the way."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, mark in enumerate(train):
        places[mark].append(place)
    current, met = -1, 0
    found: list[str | None] = []
    for mark in copies:
        ahead = [place for place in places.get(mark, ()) if current < place <= current + _AHEAD]
        if ahead:
            current, met = ahead[0], met + 1
        found.append(train[current] if current >= 0 else None)
    return tuple(found) if 2 * met > len(train) else (None,) * len(copies)


def _unknown(found: Sequence[str | None]) -> int:
    return sum(mark is None for mark in found)
