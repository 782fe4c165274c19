"""What Ctrl-C does while modules are imported."""

import os
import signal
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


def _exit(number: int, frame: FrameType | None) -> None:
    os.write(2, b"limbert: interrupted\n")
    os._exit(130)
