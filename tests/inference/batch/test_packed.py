"""A checkpoint that travels arrives whole, whatever was in the cache before."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from limbert.errors import StorageError
from limbert.inference.batch import packed as module
from limbert.inference.batch.packed import PackedCheckpoint, unpack_checkpoint

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(1, 251)) * 40, "vocab.txt": b""}


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackedCheckpoint:
    monkeypatch.setenv("LIMBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_CHUNK_BYTES", 999)
    return PackedCheckpoint({name: np.frombuffer(content, np.uint8) for name, content in FILES.items()}, "digest")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def written(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_files_are_written_once(packed: PackedCheckpoint) -> None:
    folder = unpack_checkpoint(packed)
    assert contents(folder) == FILES
    before = written(folder)
    assert unpack_checkpoint(packed) == folder
    assert written(folder) == before


@pytest.mark.parametrize(
    "cut",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(bytes(10_000)),  # of the right size, and nothing in it
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"),
    ],
    ids=["missing", "empty", "short", "zeros", "last byte"],
)
def test_what_a_power_cut_left_is_replaced(packed: PackedCheckpoint, cut: Callable[[Path], object]) -> None:
    folder = unpack_checkpoint(packed)
    before = written(folder)
    cut(folder / "model.safetensors")
    assert contents(unpack_checkpoint(packed)) == FILES
    assert written(folder)["config.json"] == before["config.json"], "what is whole stays"


def test_a_cache_that_cannot_be_written_is_said(packed: PackedCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write .*cache/checkpoints/digest: Not a directory"):
        unpack_checkpoint(packed)
