"""Files appear whole, and patterns find what they say, on a disk and in an object store."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.factories.object_store import object_store, use_keys

from limbert.errors import ConfigError, DataError, StorageError
from limbert.inference.batch.request import open_output, verify_output
from limbert.inference.batch.store import StoragePath


@pytest.fixture(params=["disk", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoragePath]:
    if request.param == "disk":
        yield StoragePath.from_uri(str(tmp_path))
    elif request.param == "memory":
        yield StoragePath.from_uri(f"memory://{tmp_path.name}")
    else:
        use_keys(monkeypatch)
        with object_store({}) as options:
            yield StoragePath.from_uri(f"s3://bucket/{tmp_path.name}{options}")


def put(store: StoragePath, name: str) -> None:
    inner = StoragePath(store.filesystem, f"{store.path}/{name}".rpartition("/")[0])
    inner.mkdir()
    inner.write(name.rpartition("/")[2], b"content of " + name.encode())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a1.parquet", "a2.parquet"]),
        ("a[2-9].parquet", ["a2.parquet"]),
        ("a?.parquet", ["a1.parquet", "a2.parquet"]),
        ("a[!1].*", ["a2.parquet"]),
        ("*/*.parquet", ["in/b.parquet"]),
        ("**/*.parquet", ["a1.parquet", "a2.parquet", "in/b.parquet", "in/deeper/c.parquet"]),
        ("*/_odd/*.parquet", ["in/_odd/f.parquet"]),
        ("in/deeper", ["in/deeper/c.parquet"]),
        ("in", ["in/b.parquet", "in/deeper/c.parquet"]),
        ("", ["a1.parquet", "a2.parquet", "in/b.parquet", "in/deeper/c.parquet"]),
        ("note.md", ["note.md"]),
    ],
)
def test_patterns_find_what_they_say(folder: StoragePath, pattern: str, expected: list[str]) -> None:
    for name in ("a2.parquet", "a1.parquet", "in/b.parquet", "in/deeper/c.parquet", "in/d.csv", "note.md"):
        put(folder, name)
    for name in ("_hidden.parquet", ".temporary/e.parquet", "in/_odd/f.parquet"):
        put(folder, name)
    found = StoragePath(folder.filesystem, f"{folder.path}/{pattern}").list_files((".parquet",))
    base = next(iter(found)).path.partition(folder.path.strip("/"))[0] + folder.path.strip("/") + "/"
    assert [file.path.removeprefix(base) for file in found] == expected
    assert found[0].bytes == len(b"content of " + expected[0].encode())


def test_answers_are_read_only_where_they_are_asked_for(folder: StoragePath) -> None:
    for name in ("in/a.parquet", "in/out/part-0.parquet", "in/out/_limbert.json", "in/outer/b.parquet"):
        put(folder, name)

    def found(pattern: str) -> list[str]:
        files = StoragePath(folder.filesystem, f"{folder.path}/{pattern}").list_files((".parquet",))
        return [file.path.rpartition("/")[2] for file in files]

    assert found("in") == found("in/") == ["a.parquet", "b.parquet"]
    assert found("in/out") == found("in/o*/part*") == ["part-0.parquet"]


@pytest.mark.parametrize("pattern", ["", "/**/*.parquet"])
def test_links_are_followed_but_not_in_circles(tmp_path: Path, pattern: str) -> None:
    for name in ("in/a.parquet", "in/day=1/b.parquet", "elsewhere/c.parquet"):
        put(StoragePath.from_uri(str(tmp_path)), name)
    (tmp_path / "in" / "day=1" / "back").symlink_to("..")
    (tmp_path / "in" / "day=2").symlink_to("../elsewhere")
    (tmp_path / "in" / "gone.parquet").symlink_to("nowhere")
    found = StoragePath.from_uri(f"{tmp_path}/in{pattern}").list_files((".parquet",))
    names = [file.path.removeprefix(f"{tmp_path}/in/") for file in found]
    assert names == ["a.parquet", "day=1/b.parquet", "day=2/c.parquet"]


def test_nothing_there_is_said(folder: StoragePath) -> None:
    with pytest.raises(DataError, match=r"nothing\*: no such file"):
        StoragePath(folder.filesystem, folder.path + "/nothing*").list_files((".parquet",))
    assert StoragePath(folder.filesystem, folder.path + "/nothing").file_names() == set()


def test_what_is_written_is_read_and_replaced(folder: StoragePath) -> None:
    folder.mkdir()
    folder.write("one", b"first")
    folder.write("one", b"second")
    assert folder.file_names() == {"one"}
    assert folder.read("one") == b"second"


def test_what_is_there_is_not_created_again(folder: StoragePath) -> None:
    folder.mkdir()
    assert folder.write_new("one", b"first")
    assert not folder.write_new("one", b"second")
    assert folder.read("one") == b"first"
    assert folder.file_names() == {"one"}


@pytest.mark.parametrize("links", [True, False])
def test_of_two_drivers_at_a_time_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """The other begins after this one has seen an empty folder."""
    store, names = StoragePath.from_uri(str(tmp_path)), StoragePath.file_names
    mine, other = ({"policy": name, "skip_bad_rows": False} for name in ("mine", "other"))
    late = [other]

    def seen(self: StoragePath) -> set[str]:
        found = names(self)
        if late:
            open_output(store, late.pop())
        return found

    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(StoragePath, "file_names", seen)
    with pytest.raises(ConfigError, match=r'other settings \(policy "other" -> "mine"\)'):
        open_output(store, mine)
    assert store.file_names() == {"_limbert.json"}
    assert open_output(store, other) == {"_limbert.json"}
    verify_output(store, other)


def test_of_two_drivers_at_an_object_store_the_first_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, write = StoragePath.from_uri(f"memory://{tmp_path.name}"), StoragePath.write
    mine, other = ({"policy": name, "skip_bad_rows": False} for name in ("mine", "other"))
    late = [other]

    def wrote(self: StoragePath, name: str, content: object) -> None:
        if late:
            open_output(store, late.pop())
        write(self, name, content)

    monkeypatch.setattr(StoragePath, "write", wrote)
    open_output(store, mine)
    verify_output(store, mine)
    with pytest.raises(ConfigError, match=r'other settings \(policy "mine" -> "other"\)'):
        verify_output(store, other)


def test_an_upload_that_fails_leaves_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    use_keys(monkeypatch)
    objects: dict[str, bytes] = {}
    with object_store(objects, refuse_over=10_000_000) as options:
        store = StoragePath.from_uri(f"s3://bucket/out{options}")
        store.write("small", b"content")
        with pytest.raises(StorageError, match="cannot write bucket/out/large: "):
            store.write("large", bytes(30_000_000))  # in parts, of which only the first arrives
        assert store.file_names() == {"small"}
    assert [*objects] == ["bucket/out/small"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = StoragePath.from_uri(str(tmp_path / "missing"))
    with pytest.raises(StorageError, match="missing"):
        store.write("one", b"content")
    store.mkdir()
    with pytest.raises(TypeError):
        store.write("one", "text is no content")
    assert not [*(tmp_path / "missing").iterdir()]


def test_only_halves_that_nobody_writes_any_more_are_swept(tmp_path: Path) -> None:
    store, hour = StoragePath.from_uri(str(tmp_path)), 3600
    ages = {".part-0.new-1-ab": 2 * hour, ".part-1.new-2-cd": hour / 2, "part-2": 2 * hour, ".part-3.new-4-ef": 0}
    for name, age in ages.items():
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    store.remove_stale_files()
    assert store.file_names() == {*ages} - {".part-0.new-1-ab"}
    StoragePath.from_uri(str(tmp_path / "missing")).remove_stale_files()


def test_a_question_mark_is_a_pattern_behind_file_too(tmp_path: Path) -> None:
    put(StoragePath.from_uri(str(tmp_path)), "a1.parquet")
    (found,) = StoragePath.from_uri(f"file://{tmp_path}/a?.parquet").list_files((".parquet",))
    assert found.path == f"{tmp_path}/a1.parquet"


def test_a_scheme_that_nothing_opens_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot open carrier-pigeon://loft"):
        StoragePath.from_uri("carrier-pigeon://loft")
