"""A folder or file is replaced whole or stays as it was."""

from pathlib import Path

import pytest

from limbert.errors import StorageError
from limbert.files import atomic_file, atomic_folder


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    for text in ("one", "two"):
        with atomic_folder(target) as folder:
            (folder / text).write_text(text)
            assert not (target / text).exists()
        assert [path.name for path in target.iterdir()] == [text]
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_a_cache_keeps_what_another_wrote_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "cache"
    with (
        atomic_folder(target, keep_existing=True) as mine,
        atomic_folder(target.with_name("other"), keep_existing=True) as other,
    ):
        (mine / "ids").write_text("mine")
        (other / "ids").write_text("other")
        other.rename(target)
        other.mkdir()  # for its own end
    assert (target / "ids").read_text() == "other"
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "other"}


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "weights").write_text("good")
    full_disk = OSError(28, "No space left on device")
    for error, raised in ((ZeroDivisionError(), ZeroDivisionError), (full_disk, StorageError)):
        with pytest.raises(raised), atomic_folder(target) as folder:
            (folder / "weights").write_text("half")
            raise error
        assert (target / "weights").read_text() == "good"
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_error_names_the_place_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    reason = r"cannot write .*file/model: (Not a directory|File exists)"
    with pytest.raises(StorageError, match=reason), atomic_folder(tmp_path / "file" / "model"):
        pass


def test_a_file_is_whole_or_as_before(tmp_path: Path) -> None:
    target = tmp_path / "answers.jsonl"
    with atomic_file(target) as file:
        file.write("good")
    with pytest.raises(ZeroDivisionError), atomic_file(target) as file:
        file.write("half")
        raise ZeroDivisionError
    assert target.read_text() == "good"
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]
    with pytest.raises(StorageError, match="cannot write"), atomic_file(tmp_path / "absent" / "x"):
        pass
