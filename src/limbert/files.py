"""Folders and files that are written completely or not at all, JSON lines, digests of files, and a lock."""

import codecs
import errno
import hashlib
import json
import math
import os
import platform
import shutil
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

from limbert.errors import CheckpointError, DataError, StorageError, first_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic_folder(directory: str | Path, *, keep_existing: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block succeeds, it replaces ``directory``.

    If the block fails, the new folder is deleted and ``directory`` is unchanged. Files are flushed to disk before the
    rename, so after a power cut either the old or the new folder exists. A symbolic link is followed, the mode of an
    existing folder is kept, and the umask decides who may read the files.

    Args:
        directory: the folder to create or replace.
        keep_existing: if ``directory`` is not empty when the block ends, leave it as it is. For caches that several
            processes may write with the same content.

    Raises:
        StorageError: if the disk is full, or ``directory`` cannot be written or is not a folder.
    """
    target = Path(os.path.realpath(directory))
    new = target.with_name(f".{target.name}.new-{platform.node()}-{os.getpid()}")
    try:
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        yield new
        _apply_umask(new)
        if target.is_dir():
            shutil.copymode(target, new)
        _fsync_folder(new)
        _replace_folder(new, target, keep_existing=keep_existing)
    except (OSError, SafetensorError) as error:
        if isinstance(error, SafetensorError) and "os error" not in str(error).lower():
            raise
        raise StorageError(f"cannot write {target}: {_reason(error)}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _apply_umask(folder: Path) -> None:
    """Give every file the read and write bits that the umask allows; safetensors writes its files with mode 0600."""
    allowed = folder.stat().st_mode & 0o666  # the folder was made with 0o777 & ~umask
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(stat.S_IMODE(path.stat().st_mode) | allowed)


def _fsync_folder(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace_folder(new: Path, target: Path, *, keep_existing: bool) -> None:
    if target.is_dir() and os.path.samefile(target, os.curdir) and not any(target.iterdir()):
        for path in new.iterdir():  # replaced as a whole, the current folder would no longer be in its place
            path.rename(target / path.name)
        return
    try:
        new.rename(target)  # fails if the target is a folder that is not empty
        return
    except OSError:
        if not target.exists():
            raise
        if keep_existing:
            return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[TextIO]:
    """Yield a text file to write; when the block succeeds, it replaces ``path``.

    A symbolic link is followed, and mode and owner of an existing file are kept. A device, pipe or socket cannot be
    replaced: it is written directly.

    Raises:
        StorageError: if the disk is full or ``path`` cannot be written; an existing file is unchanged.
    """
    try:
        if is_special_file(Path(path)):
            with open(path, "w", encoding="utf-8") as file:
                yield file
            return
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        new = target.with_name(f".{target.name}.new-{platform.node()}-{os.getpid()}")
        try:
            with new.open("w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _copy_mode_and_owner(target, new)
            os.replace(new, target)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {_reason(error)}") from error


def is_special_file(path: Path) -> bool:
    """Whether a path is a device, pipe or socket, or below ``/dev`` or ``/proc``."""
    if path.parts[:2] in (("/", "dev"), ("/", "proc")):  # /dev/stdout may be a link to a regular file
        return True
    return path.exists() and not path.is_file() and not path.is_dir()


def _copy_mode_and_owner(source: Path, target: Path) -> None:
    if source.exists():
        with suppress(AttributeError, PermissionError):  # Windows has no owners; only root gives files away
            os.chown(target, source.stat().st_uid, source.stat().st_gid)
        shutil.copymode(source, target)


def _reason(error: OSError | UnicodeDecodeError | SafetensorError) -> str:
    return getattr(error, "strerror", None) or first_line(error)


def read_json_lines(path: str | Path, *, required_keys: Mapping[str, type]) -> list[dict[str, Any]]:
    """Read the objects of a JSON lines file in order; blank lines are skipped.

    Args:
        path: the file.
        required_keys: keys that every object must have, with the type of their value; an integer is a valid ``float``.

    Raises:
        CheckpointError: if the file cannot be read, or a line is not an object, lacks a key or has a value of another
            type; names file and line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from error
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
        for key, expected_type in required_keys.items():
            if key not in row:
                raise CheckpointError(f"{path}, line {number}: lacks {key!r}")
            if not _has_type(row[key], expected_type):
                raise CheckpointError(
                    f"{path}, line {number}: {key} is {row[key]!r}; it must be a {expected_type.__name__}"
                )
        rows.append(row)
    return rows


def _has_type(value: Any, expected_type: type) -> bool:
    if expected_type is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, expected_type)


def json_line(value: object, file: TextIO) -> str:
    """A JSON value in one line; where the file's encoding is not UTF-8, as of some terminals, in ASCII."""
    encoding = getattr(file, "encoding", None) or "utf-8"
    ensure_ascii = codecs.lookup(encoding).name != "utf-8"
    return json.dumps(value, ensure_ascii=ensure_ascii, default=str) + "\n"


def write_json_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON lines file.

    Raises:
        StorageError: as `atomic_file`.
    """
    with atomic_file(path) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def json_fingerprint(value: object) -> str:
    """Digest of a value as JSON; parts that JSON has no type for count as their ``str``."""
    return hashlib.blake2b(json.dumps(value, default=str).encode(), digest_size=16).hexdigest()


def files_fingerprint(path: str, *, exclude: Collection[str] = (), algorithm: str = "blake2b") -> str:
    """Digest of a file, or of the weights, configs and tokenizer in a folder; empty if there are none.

    Args:
        path: the file or folder.
        exclude: names of files to leave out.
        algorithm: for the content of each file; sha256 is fastest on processors with SHA instructions.

    Raises:
        DataError: if a file cannot be read.
    """
    root = Path(path)
    candidates = [root] if root.is_file() else sorted([*root.glob("*.safetensors"), *root.glob("*.json")])
    files = [file for file in candidates if file.name not in exclude]
    digest = hashlib.blake2b(digest_size=16)
    try:
        for file in files:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, algorithm).digest())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest() if files else ""


_UNSUPPORTED_ERRORS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def try_lock(path: Path) -> int | None:
    """Create a file and lock it without waiting. The system releases the lock when the process ends, also if killed.

    (The ``filelock`` library leaves the file behind, and where the file system has no locks it either fails or leaves a
    lock that outlives a killed process.)

    Returns:
        The file's descriptor; to unlock, delete the file, then close the descriptor. None if the system or the file
        system does not support locks.

    Raises:
        BlockingIOError: if another process holds the lock.
        OSError: if the file cannot be created.
    """
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # network file systems lock only writable files
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
        os.close(descriptor)  # its owner deleted the file between open and flock


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of `try_lock` inside the context; where there are no locks, nothing is locked.

    Raises:
        BlockingIOError: if another process holds the lock, unless ``wait``.
        OSError: if the file cannot be created.
    """
    while True:
        try:
            descriptor = try_lock(path)
            break
        except BlockingIOError:
            if not wait:
                raise
            time.sleep(0.1)
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
