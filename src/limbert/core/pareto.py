"""The front of measured things: those that nothing as cheap beats."""

from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")
_TOLERANCE = 1e-9  # slack for comparing metrics


def pareto_front(items: Iterable[_T], *, cost: Callable[[_T], float], value: Callable[[_T], float]) -> list[_T]:
    """Those that no other beats at as little cost, cheapest first.

    Args:
        items: in any order.
        cost: less is better.
        value: more is better.
    """
    best: list[_T] = []
    for item in sorted(items, key=lambda one: (cost(one), -value(one))):
        if not best or value(item) > value(best[-1]) + _TOLERANCE:
            best.append(item)
    return best
