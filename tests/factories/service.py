"""Texts for a small model, and asynchronous tests of its service."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

SENTENCE = "the film was a long and slow but in the end rather moving piece of work that nobody will forget soon"
WORDS = SENTENCE.split()
TEXTS = [
    (" ".join(WORDS[i % 7 : i % 7 + 1 + i % 13]), " ".join(WORDS[: i % 5 + 1]) if i % 3 else None) for i in range(40)
]


def together(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(main(), 120))


def in_event_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test."""
    return functools.wraps(test)(lambda **fixtures: together(lambda: test(**fixtures)))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)
