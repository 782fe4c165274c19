"""Folders and files that are written completely or not at all, JSON lines, digests, and a lock."""

import codecs
import errno
import hashlib
import json
import math
import os
import platform
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

from limbert.errors import CheckpointError, StorageError, first_line


@contextmanager
def atomic_folder(directory: str | Path) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block succeeds, it replaces ``directory``.

    If the block fails, the new folder is deleted and ``directory`` is unchanged. Files are flushed to disk before the
    rename, so after a power cut either the old or the new folder exists. A symbolic link is followed, the mode of an
    existing folder is kept, and the umask decides who may read the files.

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
        _replace_folder(new, target)
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


def _replace_folder(new: Path, target: Path) -> None:
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


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Settings that differ between two JSON objects, by their path: ``{"train.seed": "train.seed 1 -> 2"}``.

    One that an object lacks is null.
    """
    before, after = (
        {path: json.dumps(value, sort_keys=True) for path, value in _flat(values)} for values in (old, new)
    )
    changed = [path for path in before | after if before.get(path, "null") != after.get(path, "null")]
    return {path: f"{path} {before.get(path, 'null')} -> {after.get(path, 'null')}" for path in changed}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and name != "fingerprints":
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file inside the context; the system releases it when the process ends, also if killed.

    Where the file system has no locks, nothing is locked.

    Raises:
        TimeoutError: if another process holds it, unless ``wait``.
        OSError: if the file cannot be created.
    """
    from filelock import FileLock

    lock = FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
