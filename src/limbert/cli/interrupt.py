"""What Ctrl-C does while modules are imported."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def quiet_interrupt() -> Iterator[None]:
    """Within the block Ctrl-C ends the process at once with status 130: importing leaves nothing to clean up.

    An exception in the middle of an import would be printed with its traceback, or be swallowed by a library.
    """
    with _handler(signal.SIGINT, _exit, only_if=signal.default_int_handler):
        yield


@contextmanager
def _handler(number: signal.Signals, handler: Any, *, only_if: Any = None) -> Iterator[None]:
    previous = signal.getsignal(number)
    in_main_thread = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    if not in_main_thread or (only_if is not None and previous is not only_if):
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


def _exit(number: int, frame: FrameType | None) -> None:
    os.write(2, b"limbert: interrupted\n")
    os._exit(130)
