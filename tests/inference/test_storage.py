"""Patterns find the documented files, and files are written whole or not at all, on disks and in object stores."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.factories.object_store import object_store, use_keys

from limbert.errors import ConfigError, DataError, StorageError
from limbert.inference.storage import Storage


@pytest.fixture(params=["disk", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    if request.param == "disk":
        yield Storage.from_uri(str(tmp_path))
    elif request.param == "memory":
        yield Storage.from_uri(f"memory://{tmp_path.name}")
    else:
        use_keys(monkeypatch)
        with object_store({}) as options:
            yield Storage.from_uri(f"s3://bucket/{tmp_path.name}{options}")


def write_files(storage: Storage, *paths: str) -> None:
    for path in paths:
        inner = Storage(storage.filesystem, f"{storage.path}/{path}".rpartition("/")[0])
        inner.write(path.rpartition("/")[2], b"content of " + path.encode())


def list_paths(folder: Storage, pattern: str) -> list[str]:
    """Relative to the folder."""
    files = Storage(folder.filesystem, f"{folder.path}/{pattern}".rstrip("/")).list_files()
    return [path.removeprefix(f"{folder.path}/") for path in files]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a1.parquet", "a2.parquet"]),
        ("a?.parquet", ["a1.parquet", "a2.parquet"]),
        ("a[!1].*", ["a2.parquet"]),
        ("*/*.parquet", ["in/b.parquet"]),
        ("**/*.parquet", ["a1.parquet", "a2.parquet", "in/b.parquet", "in/deeper/c.parquet"]),
        ("*/_odd/*.parquet", ["in/_odd/f.parquet"]),
        ("in/deeper", ["in/deeper/c.parquet"]),
        ("in", ["in/b.parquet", "in/d.csv", "in/deeper/c.parquet"]),
        ("", ["a1.parquet", "a2.parquet", "in/b.parquet", "in/d.csv", "in/deeper/c.parquet"]),
        ("note.md", ["note.md"]),
    ],
)
def test_patterns_match_as_documented(folder: Storage, pattern: str, expected: list[str]) -> None:
    write_files(folder, "a2.parquet", "a1.parquet", "in/b.parquet", "in/deeper/c.parquet", "in/d.csv", "note.md")
    write_files(folder, "_hidden.parquet", ".temporary/e.parquet", "in/_odd/f.parquet")
    assert list_paths(folder, pattern) == expected


def test_output_folders_are_no_input(folder: Storage) -> None:
    write_files(folder, "in/a.parquet", "in/out/part-0.parquet", "in/out/_limbert.json", "in/outer/b.parquet")
    assert list_paths(folder, "in") == list_paths(folder, "in/") == ["in/a.parquet", "in/outer/b.parquet"]
    assert list_paths(folder, "in/out") == list_paths(folder, "in/o*/part*") == ["in/out/part-0.parquet"]


def test_links_are_followed(tmp_path: Path) -> None:
    folder = Storage.from_uri(str(tmp_path))
    write_files(folder, "in/a.parquet", "elsewhere/c.parquet")
    (tmp_path / "in" / "b.parquet").symlink_to("../elsewhere/c.parquet")
    (tmp_path / "in" / "gone.parquet").symlink_to("nowhere")
    (tmp_path / "in" / "day=1").symlink_to("../elsewhere")
    assert list_paths(folder, "in/*.parquet") == ["in/a.parquet", "in/b.parquet"]
    assert [*Storage.from_uri(f"file://{tmp_path}/in/a?parquet").list_files()] == [f"{tmp_path}/in/a.parquet"]
    with pytest.raises(ConfigError, match="carrier-pigeon://loft"):
        Storage.from_uri("carrier-pigeon://loft")
    assert list_paths(folder, "in/*/*.parquet") == list_paths(folder, "in/day=1") == ["in/day=1/c.parquet"]
    everything = ["in/a.parquet", "in/b.parquet", "in/day=1/c.parquet"]
    assert list_paths(folder, "in") == list_paths(folder, "in/**") == everything
    (tmp_path / "in" / "again").symlink_to("..")
    for pattern in ("in", "in/**/*.parquet"):
        with pytest.raises(DataError, match="symbolic links"):
            list_paths(folder, pattern)


def test_files_are_replaced_and_missing_ones_named(folder: Storage) -> None:
    folder.write("one", b"first")
    folder.write("one", b"second")
    assert folder.file_names() == {"one"}
    assert folder.read("one") == b"second"
    missing = Storage(folder.filesystem, folder.path + "/missing")
    assert missing.file_names() == set()
    for path in (missing.path, missing.path + "*"):
        with pytest.raises(DataError, match="missing"):
            Storage(folder.filesystem, path).list_files()
    with pytest.raises(StorageError, match="missing/one"):
        missing.read("one")


def test_a_failed_upload_leaves_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    use_keys(monkeypatch)
    objects: dict[str, bytes] = {}
    with object_store(objects, refuse_over=10_000_000) as options:
        storage = Storage.from_uri(f"s3://bucket/out{options}")
        storage.write("small", b"content")
        with pytest.raises(StorageError, match="bucket/out/large"):
            storage.write("large", bytes(30_000_000))  # in parts, of which only the first arrives
        assert storage.file_names() == {"small"}
    assert [*objects] == ["bucket/out/small"]


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="file/one"):
        Storage.from_uri(str(tmp_path / "file")).write("one", b"content")
    with pytest.raises(TypeError):
        Storage.from_uri(str(tmp_path / "out")).write("one", "text instead of bytes")
    assert not [*(tmp_path / "out").iterdir()]


def test_only_stale_temporary_files_are_removed(tmp_path: Path) -> None:
    storage, hour = Storage.from_uri(str(tmp_path)), 3600
    ages = {".part-0.new-1-ab": 2 * hour, ".part-1.new-2-cd": hour / 2, "part-2": 2 * hour, ".part-3.new-4-ef": 0}
    for name, age in ages.items():
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    storage.remove_stale_files()
    assert storage.file_names() == {*ages} - {".part-0.new-1-ab"}
