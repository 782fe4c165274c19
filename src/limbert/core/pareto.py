"""The Pareto front of cost against value."""

from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")
_TOLERANCE = 1e-9  # slack for comparing values


def pareto_front(items: Iterable[_T], *, cost: Callable[[_T], float], value: Callable[[_T], float]) -> list[_T]:
    """The non-dominated items, in order of rising cost.

    Args:
        items: in any order.
        cost: of an item; less is better.
        value: of an item; more is better.
    """
    front: list[_T] = []
    for item in sorted(items, key=lambda item: (cost(item), -value(item))):
        if not front or value(item) > value(front[-1]) + _TOLERANCE:
            front.append(item)
    return front
