"""Folders that are written whole or not at all, whatever happens in between."""

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from limbert.errors import StorageError


@contextmanager
def replaced_folder(directory: str | Path, *, keep: bool = False) -> Iterator[Path]:
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
        _flush(fresh)
        _swap(fresh, target, keep=keep)
    except (OSError, SafetensorError) as error:
        if isinstance(error, SafetensorError) and "os error" not in str(error).lower():
            raise
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"cannot write {target}: {reason}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(fresh: Path, target: Path, *, keep: bool) -> None:
    try:
        fresh.rename(target)  # fails where a folder with something in it is
        return
    except OSError:
        if not target.exists():
            raise
        if keep:
            return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replaced_file(path: str | Path) -> Iterator[TextIO]:
    """Yield a text file to write; when the block ends well it takes the place of ``path``.

    Raises:
        StorageError: for a full disk or a folder that cannot be written; what was at ``path`` stays.
    """
    target = Path(path).absolute()
    fresh = target.with_name(f".{target.name}.new-{os.getpid()}")
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
