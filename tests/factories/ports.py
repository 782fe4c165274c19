"""Free ports, outside of the range that systems use for outgoing connections."""

import itertools
import os
import socket

_PORTS = itertools.count(20_000 + os.getpid() * 101 % 10_000)  # each test process begins elsewhere


def free_port() -> int:
    """A free port; each call returns another."""
    for port in _PORTS:
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("counting does not end")
