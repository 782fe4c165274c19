"""What Ctrl-C does while modules are imported, and what other signals that end a command do."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def quiet_interrupt() -> Iterator[None]:
    """Within the block Ctrl-C ends the process at once with status 130: importing leaves nothing to clean up.

    An exception in the middle of an import would be printed with its traceback, or be swallowed by a library.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    if not is_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def clean_up_on_signals() -> None:
    """Let SIGTERM end the process by SystemExit, so that half-written files and copies of pipes are deleted.

    A second one ends it at once. A closed terminal (SIGHUP) is as SIGTERM, unless it is ignored as by ``nohup``.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, _clean_up)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # Windows has none
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def _clean_up(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    sys.exit(128 + number)


def _exit(number: int, frame: FrameType | None) -> None:
    os.write(2, b"limbert: interrupted\n")
    os._exit(130)
