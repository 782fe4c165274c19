"""Folders that are written whole or not at all, whatever happens in between."""

import errno
import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

from limbert.errors import CheckpointError, DataError, StorageError


@contextmanager
def atomic_folder(directory: str | Path, *, keep_existing: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends well it takes the place of ``directory``.

    If the block fails, what it wrote is deleted and ``directory`` is as before. Files are flushed to the disk before
    the renaming, so that a power cut leaves the old folder or the new one.

    Args:
        directory: the folder to be.
        keep: leave one that is there by then, or appears meanwhile, as it is: for caches that several write alike.

    Raises:
        StorageError: for a full disk or a folder that cannot be written, naming it and the reason.
    """
    target = Path(directory).absolute()
    fresh = target.with_name(f".{target.name}.new-{platform.node()}-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        yield fresh
        _fsync_folder(fresh)
        _replace_folder(fresh, target, keep_existing=keep_existing)
    except (OSError, SafetensorError) as error:
        if isinstance(error, SafetensorError) and "os error" not in str(error).lower():
            raise
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"cannot write {target}: {reason}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _fsync_folder(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace_folder(fresh: Path, target: Path, *, keep_existing: bool) -> None:
    try:
        fresh.rename(target)  # fails where a folder with something in it is
        return
    except OSError:
        if not target.exists():
            raise
        if keep_existing:
            return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[TextIO]:
    """Yield a text file to write; when the block ends well it takes the place of ``path``.

    Raises:
        StorageError: for a full disk or a folder that cannot be written; what was at ``path`` stays.
    """
    target = Path(path).absolute()
    fresh = target.with_name(f".{target.name}.new-{platform.node()}-{os.getpid()}")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, target)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        fresh.unlink(missing_ok=True)


def json_fingerprint(value: object) -> str:
    """Of values that JSON can hold; of others, what they are printed as."""
    return hashlib.blake2b(json.dumps(value, default=str).encode(), digest_size=16).hexdigest()


def files_fingerprint(path: str, *, exclude: Collection[str] = (), algorithm: str = "blake2b") -> str:
    """Of a file, or of the weights, configs and tokenizer in a folder; empty for what is not on this disk.

    Args:
        path: of the file or the folder.
        without: names of files that do not count.
        algorithm: for the files themselves; sha256 is the quickest where the processor has instructions for it.

    Raises:
        DataError: if a file cannot be read.
    """
    place = Path(path)
    files = [place] if place.is_file() else sorted([*place.glob("*.safetensors"), *place.glob("*.json")])
    counted = [file for file in files if file.name not in exclude]
    digest = hashlib.blake2b(digest_size=16)
    try:
        for file in counted:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, algorithm).digest())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest() if counted else ""


def read_json_lines(path: str | Path, *, required_keys: Mapping[str, type]) -> list[dict[str, Any]]:
    """The objects of a JSON lines file in their order; blank lines are skipped.

    Args:
        path: the file.
        needs: keys that every object must have, with the type of their value; whole numbers serve as ``float``.

    Raises:
        CheckpointError: if the file cannot be read, or a line is no object, lacks a key or has a value of another
            type, naming file and line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CheckpointError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise CheckpointError(f"{path}, line {number}: {type(row).__name__}, not an object")
        for key, wanted in required_keys.items():
            if key not in row:
                raise CheckpointError(f"{path}, line {number}: lacks {key!r}")
            if not _has_type(row[key], wanted):
                raise CheckpointError(f"{path}, line {number}: {key} is {row[key]!r}; it must be a {wanted.__name__}")
        rows.append(row)
    return rows


def write_json_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON lines file.

    Raises:
        StorageError: as `atomic_file`.
    """
    with atomic_file(path) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _has_type(value: Any, expected_type: type) -> bool:
    if expected_type is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, expected_type)


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNSUPPORTED_ERRORS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def try_lock(path: Path) -> int | None:
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
            if _is_same_file(descriptor, path):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno in _UNSUPPORTED_ERRORS:
                path.unlink(missing_ok=True)
                return None
            raise
        os.close(descriptor)  # of a file that its owner deleted between our two calls


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
