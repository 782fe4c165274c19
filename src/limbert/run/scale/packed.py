"""A checkpoint's files as one value, so that workers need no disk in common with whoever started them."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limbert.data.tokens import cache_folder
from limbert.errors import CheckpointError, StorageError
from limbert.model.checkpoint import RECORD_NAME, find_file

_SUFFIXES = {".json", ".safetensors", ".txt", ".model"}  # what a checkpoint is opened from


@dataclass(frozen=True)
class Packed:
    """The files of one checkpoint.

    Attributes:
        files: content by name; arrays of bytes, which Ray hands to processes of a machine without copies.
        digest: of all names and contents.
    """

    files: Mapping[str, np.ndarray]
    digest: str


def pack(run: str | Path) -> Packed:
    """Read a checkpoint's files.

    Raises:
        CheckpointError: if they cannot be read.
    """
    config = find_file(run, "config.json")
    if config is None:
        raise CheckpointError(f"{run} is not a model checkpoint: it has no config.json")
    try:
        paths = sorted(path for path in config.parent.iterdir() if path.suffix in _SUFFIXES and path.is_file())
        files = {path.name: np.fromfile(path, dtype=np.uint8) for path in paths}
    except OSError as error:
        raise CheckpointError(f"{run} cannot be read: {error.strerror or error}") from error
    return Packed(files, _digest(files))


def answering_digest(packed: Packed) -> str:
    """A digest of what decides the answers of a policy: all but ``limbert.json``, which other verbs add to."""
    return _digest({name: content for name, content in packed.files.items() if name != RECORD_NAME})


def unpack(packed: Packed) -> Path:
    """A folder on this machine with the files, in Limbert's cache; made once a checkpoint, whoever asks first.

    Raises:
        StorageError: if it cannot be written.
    """
    folder = cache_folder() / "checkpoints" / packed.digest
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
        try:
            for name, content in packed.files.items():
                content.tofile(fresh / name)
            os.rename(fresh, folder)
        except OSError:
            if not folder.is_dir():  # else another worker of this machine was faster
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def _digest(files: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)} ".encode())
        digest.update(np.ascontiguousarray(content).data)
    return digest.hexdigest()
