"""A run's unfinished business is kept for the same run and for no other."""

import errno
import fcntl
import json
import os
import signal
import time
from pathlib import Path

import pytest

from limbert.errors import ConfigError
from limbert.train.run_folder import LOG_NAME, Workspace, is_finished

SETTINGS = {"train": {"seed": 1}, "recipe": {"epochs": 3}}
OTHER = {"train": {"seed": 2}, "recipe": {"epochs": 3}}


def test_the_same_settings_find_what_is_there_and_others_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "run"
    work = Workspace(output, SETTINGS)
    assert not work.folder.exists()
    work.create()
    for phase in ("finetune", "width"):
        work.phase_folder(phase).mkdir()
    assert Workspace(output, SETTINGS).last_finished(["finetune", "width", "depth"]) == "width"
    with pytest.raises(ConfigError, match=r"other settings \(train.seed 1 -> 2\)"):
        Workspace(output, OTHER)


def test_overwriting_begins_anew(tmp_path: Path) -> None:
    output = tmp_path / "run"
    Workspace(output, SETTINGS).create()
    Workspace(output, SETTINGS).phase_folder("finetune").mkdir()
    fresh = Workspace(output, OTHER, overwrite=True)
    assert fresh.phase_folder("finetune").is_dir()
    assert fresh.last_finished(["finetune"]) is None
    fresh.create()
    assert not fresh.phase_folder("finetune").exists()
    again = Workspace(output, OTHER, overwrite=True)  # the same command after a kill
    again.phase_folder("finetune").mkdir()
    again.create()
    assert again.last_finished(["finetune"]) == "finetune"


def test_the_log_is_rewound_to_what_is_kept(tmp_path: Path) -> None:
    work = Workspace(tmp_path / "run", SETTINGS)
    work.create()
    for phase, step in (("finetune", 10), ("finetune", 20), ("width", 10), ("width", 20)):
        work.log({"phase": phase, "step": step})
    with (work.folder / LOG_NAME).open("a") as log:
        log.write('{"phase": "wid')
    work.rewind_log("width", 10)
    lines = (work.folder / LOG_NAME).read_text().splitlines()
    assert [(line["phase"], line["step"]) for line in map(json.loads, lines)] == [
        ("finetune", 10),
        ("finetune", 20),
        ("width", 10),
    ]


def test_an_output_is_this_run_another_run_or_something_else(tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert not is_finished(output, SETTINGS)
    output.mkdir()
    assert not is_finished(output, SETTINGS)
    (output / "thesis.tex").write_text("")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="is not a model trained by Limbert"):
            is_finished(output, SETTINGS, overwrite=overwrite)
    (output / "limbert.json").write_text(json.dumps({"settings": SETTINGS}))
    assert is_finished(output, SETTINGS)
    with pytest.raises(ConfigError, match=r"train.seed 1 -> 2"):
        is_finished(output, OTHER)
    assert not is_finished(output, OTHER, overwrite=True)


def test_one_run_at_a_time_writes_into_an_output(tmp_path: Path) -> None:
    first, second = (Workspace(tmp_path / "run", SETTINGS) for _ in range(2))
    Workspace(tmp_path / "run", SETTINGS, writes=False).hold()  # of several processes those that only read
    first.hold()
    first.hold()
    with pytest.raises(ConfigError, match=r"another run is writing to .*run; wait until it ends, or choose another"):
        second.hold()
    Workspace(tmp_path / "other", SETTINGS).hold()
    first.release()
    second.hold()
    second.release()
    assert not [*tmp_path.glob("run*")]
    Workspace(tmp_path / "no folder" / "run", SETTINGS).hold()  # nobody can be writing there
    assert not (tmp_path / "no folder").exists()


def test_a_killed_run_holds_nothing(tmp_path: Path) -> None:
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        Workspace(tmp_path / "run", SETTINGS).hold()
        os.write(told, b"held")
        time.sleep(60)
        os._exit(0)
    assert os.read(ready, 4) == b"held"
    work = Workspace(tmp_path / "run", SETTINGS)
    with pytest.raises(ConfigError, match="another run is writing"):
        work.hold()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    work.hold()
    work.release()


def test_a_file_system_without_locks_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    work = Workspace(tmp_path / "run", SETTINGS)
    work.hold()
    work.release()
    assert not [*tmp_path.iterdir()]


def test_a_system_without_locks_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbert.files.fcntl", None)
    first, second = Workspace(tmp_path / "run", SETTINGS), Workspace(tmp_path / "run", SETTINGS)
    for work in (first, second):
        work.hold()
    for work in (first, second):
        work.release()
    assert not [*tmp_path.iterdir()]


def test_a_lock_that_was_deleted_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before ends between opening its file and locking it."""
    real, calls = fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        if not calls:
            (tmp_path / "run.training.lock").unlink()
        calls.append(descriptor)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    first, second = (Workspace(tmp_path / "run", SETTINGS) for _ in range(2))
    first.hold()
    assert len(calls) == 2
    with pytest.raises(ConfigError, match="another run is writing"):
        second.hold()
    first.release()
