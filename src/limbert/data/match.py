"""Trace copies that do not say which training row they were made of: by what else their rows hold, or by their order.

The released programs keep a row's other cells (an index, the ids of a pair) and write a row unchanged before its
copies, in the order of the training file.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence

from limbert.errors import DataError

_NEAR = 8  # a text that stands often in both files is met again about as often in one as in the other
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
    """By the last unchanged row above; all None where less than half of the training rows are met on the way.

    A copy may equal another training row by chance, so the unchanged rows are those that rise together longest.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, mark in enumerate(train):
        places[mark].append(place)
    met: Counter[str] = Counter()
    pairs = []
    for row, mark in enumerate(copies):
        near = places.get(mark, ())[max(0, met[mark] - _NEAR) : met[mark] + _NEAR + 1]
        pairs += [(row, place) for place in reversed(near)]
        met[mark] += mark in places
    unchanged = _longest_rise(pairs)
    if 2 * len(unchanged) <= len(train):
        return (None,) * len(copies)
    current: str | None = None
    found = []
    for row in range(len(copies)):
        current = train[unchanged[row]] if row in unchanged else current
        found.append(current)
    return tuple(found)


def _longest_rise(pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The most pairs ``row -> place`` of which both rise, each row and place once; of equal places the first row.

    Args:
        pairs: by rising row, and by falling place for the same row.
    """
    lowest: list[int] = []  # lowest[n]: the lowest place that ends a rise of n + 1 pairs
    ends: list[int] = []  # and the number of its pair
    before: list[int] = []  # of each pair: the pair before it in its rise
    for number, (_, place) in enumerate(pairs):
        length = bisect_left(lowest, place)
        before.append(ends[length - 1] if length else -1)
        if length == len(lowest):
            lowest.append(place)
            ends.append(number)
        elif place < lowest[length]:
            lowest[length], ends[length] = place, number
    found: dict[int, int] = {}
    number = ends[-1] if ends else -1
    while number >= 0:
        found[pairs[number][0]] = pairs[number][1]
        number = before[number]
    return found


def _unknown(found: Sequence[str | None]) -> int:
    return sum(mark is None for mark in found)
