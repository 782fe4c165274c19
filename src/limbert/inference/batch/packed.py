"""A checkpoint's files as one value, so that workers need no disk in common with whoever started them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limbert.data.tokenize import default_cache_dir
from limbert.errors import CheckpointError, StorageError
from limbert.inference.batch.store import StoragePath
from limbert.model.checkpoint import RECORD_FILENAME, find_file

_CHECKPOINT_SUFFIXES = {".json", ".safetensors", ".txt", ".model"}  # what a checkpoint is opened from
_CHUNK_BYTES = 2**24  # bytes compared at a time


@dataclass(frozen=True)
class PackedCheckpoint:
    """The files of one checkpoint.

    Attributes:
        files: content by name; arrays of bytes, which Ray hands to processes of a machine without copies.
        digest: of all names and contents.
    """

    files: Mapping[str, np.ndarray]
    fingerprint: str


def pack_checkpoint(checkpoint: str | Path) -> PackedCheckpoint:
    """Read a checkpoint's files.

    Raises:
        CheckpointError: if they cannot be read.
    """
    config = find_file(checkpoint, "config.json")
    if config is None:
        raise CheckpointError(f"{checkpoint} is not a model checkpoint: it has no config.json")
    try:
        paths = sorted(
            path for path in config.parent.iterdir() if path.suffix in _CHECKPOINT_SUFFIXES and path.is_file()
        )
        files = {path.name: np.fromfile(path, dtype=np.uint8) for path in paths}
    except OSError as error:
        raise CheckpointError(f"{checkpoint} cannot be read: {error.strerror or error}") from error
    return PackedCheckpoint(files, _fingerprint(files))


def inference_fingerprint(packed: PackedCheckpoint) -> str:
    """A digest of what decides the answers of a policy: all but ``limbert.json``, which other verbs add to."""
    return _fingerprint({name: content for name, content in packed.files.items() if name != RECORD_FILENAME})


def unpack_checkpoint(packed: PackedCheckpoint) -> Path:
    """A folder on this machine with the files, in Limbert's cache.

    Files that are there are compared byte for byte: a power cut may have left anything, and they are read anyway when
    they are opened. Each is replaced by itself and only where it differs: workers that do this at a time disturb
    neither each other nor those that have opened the old ones.

    Raises:
        StorageError: if it cannot be written.
    """
    try:
        store = StoragePath.from_uri(str(default_cache_dir() / "checkpoints" / packed.fingerprint))
    except RuntimeError:
        raise StorageError("no folder for the model's files; set LIMBERT_CACHE to one") from None
    store.mkdir()
    store.remove_stale_files()
    folder = Path(store.path)
    for name, content in packed.files.items():
        if not _file_equals(folder / name, content):
            store.write(name, content)
    return folder


def _file_equals(path: Path, content: np.ndarray) -> bool:
    try:
        if path.stat().st_size != content.nbytes:
            return False
        with path.open("rb") as file:
            return all(
                np.array_equal(np.fromfile(file, np.uint8, _CHUNK_BYTES), content[start : start + _CHUNK_BYTES])
                for start in range(0, content.nbytes, _CHUNK_BYTES)
            )
    except OSError:  # none, or one that cannot be read
        return False


def _fingerprint(files: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)} ".encode())
        digest.update(np.ascontiguousarray(content).data)
    return digest.hexdigest()
