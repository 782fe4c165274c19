"""A lock that vanishes with its process, however that ends: for what one run at a time may write."""

import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def locked(path: Path) -> int | None:
    """Make a file and lock it, without waiting.

    Returns:
        Its descriptor: delete the file, then close this, to unlock it. None on a system or disk without such locks.

    Raises:
        BlockingIOError: if another has locked it.
        OSError: if it cannot be made.
    """
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # network file systems lock what may be written
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno in _WITHOUT_LOCKS:
                path.unlink(missing_ok=True)
                return None
            raise
        os.close(descriptor)  # of a file that its owner deleted between our two calls


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
