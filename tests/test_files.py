"""A folder or file is replaced completely or stays as it was; links, modes and devices are respected."""

import os
import stat
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from limbert.errors import CheckpointError, StorageError
from limbert.files import atomic_file, atomic_folder, read_json_lines


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folder_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    for text in ("one", "two"):
        with atomic_folder(target) as folder:
            (folder / text).write_text(text)
            assert not (target / text).exists()
        assert [path.name for path in target.iterdir()] == [text]
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_current_folder_is_filled_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic_folder(".") as folder:
        (folder / "part").mkdir()
        (folder / "text").write_text("new")
    assert {path.name for path in Path().iterdir()} == {"part", "text"}
    assert os.path.samefile(tmp_path, ".")


def test_failure_leaves_only_the_old_folder(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", ["file/model", "file"])
def test_folder_error_names_the_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(StorageError) as caught, atomic_folder(tmp_path / name):
        pass
    assert str(tmp_path / name) in str(caught.value)
    assert (tmp_path / "file").read_text() == "kept"


def test_folder_follows_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "model", tmp_path / "model"
    real.mkdir(parents=True, mode=0o750)
    (real / "old").touch()
    link.symlink_to(real)
    with atomic_folder(link) as folder:
        (folder / "weights").touch()
    assert link.is_symlink()
    assert [path.name for path in real.iterdir()] == ["weights"]
    assert mode(real) == 0o750
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "model"}
    assert [path.name for path in real.parent.iterdir()] == ["model"]


def test_file_is_whole_or_as_before(tmp_path: Path) -> None:
    target = tmp_path / "predictions.jsonl"
    with atomic_file(target) as file:
        file.write("good")
    with pytest.raises(ZeroDivisionError), atomic_file(target) as file:
        file.write("half")
        raise ZeroDivisionError
    assert target.read_text() == "good"
    assert [*tmp_path.iterdir()] == [target]
    for path in (tmp_path / "absent" / "x", tmp_path):
        with pytest.raises(StorageError), atomic_file(path):
            pass


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_umask_decides_the_mode_of_weights(tmp_path: Path, umask: int, expected: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "model") as folder:
            save_file({"weight": torch.ones(2)}, folder / "model.safetensors")
    finally:
        os.umask(before)
    assert mode(tmp_path / "model" / "model.safetensors") == expected


def test_file_follows_a_link_and_keeps_the_mode(tmp_path: Path) -> None:
    target, link, dangling = tmp_path / "target", tmp_path / "link", tmp_path / "dangling"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "created")
    for path in (link, dangling):
        with atomic_file(path) as file:
            file.write("new")
        assert path.is_symlink()
        assert path.resolve().read_text() == "new"
    assert mode(target) == 0o640


def test_pipes_and_devices_are_written_directly(tmp_path: Path) -> None:
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    with atomic_file(pipe) as file:
        file.write("text")
    reader.join(timeout=60)
    assert received == ["text"]
    assert pipe.is_fifo()
    with atomic_file("/dev/null") as file:
        file.write("text")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{half", "JSON"),
        ("[1]", "list"),
        ('{"name": "x"}', "'value'"),
        ('{"name": "x", "value": "1"}', "'1'"),
        ('{"name": "x", "value": true}', "True"),
        ('{"name": "x", "value": NaN}', "nan"),
    ],
)
def test_broken_json_line_is_named(tmp_path: Path, line: str, named: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": "a", "value": 1}\n\n' + line + "\n")
    with pytest.raises(CheckpointError) as caught:
        read_json_lines(path, required_keys={"name": str, "value": float})
    assert "rows.jsonl, line 3" in str(caught.value)
    assert named in str(caught.value)
    path.write_text('{"name": "a", "value": 1}\n\n{"name": "b", "value": 0.5, "more": null}\n')
    assert [row["name"] for row in read_json_lines(path, required_keys={"name": str, "value": float})] == ["a", "b"]
    with pytest.raises(CheckpointError, match=r"nowhere\.jsonl"):
        read_json_lines(tmp_path / "nowhere.jsonl", required_keys={})
