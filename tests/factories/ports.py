"""Ports for what must be told its port: outside of the range from which systems give ports to connections."""

import itertools
import os
import socket

_TRIED = itertools.count(20_000 + os.getpid() * 101 % 10_000)  # other processes of these tests begin elsewhere


def free_port() -> int:
    """A port that nobody has, and a second call gives another."""
    for port in _TRIED:
        with socket.socket() as listening:
            try:
                listening.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("counting does not end")
