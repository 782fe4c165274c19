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
from limbert.train.run_folder import LOG_NAME, RunDirectory, is_run_finished

SETTINGS = {"train": {"seed": 1}, "recipe": {"epochs": 3}}
OTHER = {"train": {"seed": 2}, "recipe": {"epochs": 3}}


def test_the_same_settings_find_what_is_there_and_others_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "run"
    work = RunDirectory(output, SETTINGS)
    assert not work.path.exists()
    work.create()
    for phase in ("finetune", "width"):
        work.phase_dir(phase).mkdir()
    assert RunDirectory(output, SETTINGS).last_finished_phase(["finetune", "width", "depth"]) == "width"
    with pytest.raises(ConfigError, match=r"other settings \(train.seed 1 -> 2\)"):
        RunDirectory(output, OTHER)


def test_overwriting_begins_anew(tmp_path: Path) -> None:
    output = tmp_path / "run"
    RunDirectory(output, SETTINGS).create()
    RunDirectory(output, SETTINGS).phase_dir("finetune").mkdir()
    fresh = RunDirectory(output, OTHER, overwrite=True)
    assert fresh.phase_dir("finetune").is_dir()
    assert fresh.last_finished_phase(["finetune"]) is None
    fresh.create()
    assert not fresh.phase_dir("finetune").exists()
    again = RunDirectory(output, OTHER, overwrite=True)  # the same command after a kill
    again.phase_dir("finetune").mkdir()
    again.create()
    assert again.last_finished_phase(["finetune"]) == "finetune"


def test_the_log_is_rewound_to_what_is_kept(tmp_path: Path) -> None:
    work = RunDirectory(tmp_path / "run", SETTINGS)
    work.create()
    for phase, step in (("finetune", 10), ("finetune", 20), ("width", 10), ("width", 20)):
        work.append_log({"phase": phase, "step": step})
    with (work.path / LOG_NAME).open("a") as log:
        log.write('{"phase": "wid')
    work.truncate_log("width", 10)
    lines = (work.path / LOG_NAME).read_text().splitlines()
    assert [(line["phase"], line["step"]) for line in map(json.loads, lines)] == [
        ("finetune", 10),
        ("finetune", 20),
        ("width", 10),
    ]


def test_an_output_is_this_run_another_run_or_something_else(tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert not is_run_finished(output, SETTINGS)
    output.mkdir()
    assert not is_run_finished(output, SETTINGS)
    (output / "thesis.tex").write_text("")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="is not a model trained by Limbert"):
            is_run_finished(output, SETTINGS, overwrite=overwrite)
    (output / "limbert.json").write_text(json.dumps({"settings": SETTINGS}))
    assert is_run_finished(output, SETTINGS)
    with pytest.raises(ConfigError, match=r"train.seed 1 -> 2"):
        is_run_finished(output, OTHER)
    assert not is_run_finished(output, OTHER, overwrite=True)


def test_one_run_at_a_time_writes_into_an_output(tmp_path: Path) -> None:
    first, second = (RunDirectory(tmp_path / "run", SETTINGS) for _ in range(2))
    RunDirectory(tmp_path / "run", SETTINGS, can_write=False).lock()  # of several processes those that only read
    first.lock()
    first.lock()
    with pytest.raises(ConfigError, match=r"another run is writing to .*run; wait until it ends, or choose another"):
        second.lock()
    RunDirectory(tmp_path / "other", SETTINGS).lock()
    first.unlock()
    second.lock()
    second.unlock()
    assert not [*tmp_path.glob("run*")]
    RunDirectory(tmp_path / "no folder" / "run", SETTINGS).lock()  # nobody can be writing there
    assert not (tmp_path / "no folder").exists()


def test_a_killed_run_holds_nothing(tmp_path: Path) -> None:
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        RunDirectory(tmp_path / "run", SETTINGS).lock()
        os.write(told, b"held")
        time.sleep(60)
        os._exit(0)
    assert os.read(ready, 4) == b"held"
    work = RunDirectory(tmp_path / "run", SETTINGS)
    with pytest.raises(ConfigError, match="another run is writing"):
        work.lock()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    work.lock()
    work.unlock()


def test_a_file_system_without_locks_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    work = RunDirectory(tmp_path / "run", SETTINGS)
    work.lock()
    work.unlock()
    assert not [*tmp_path.iterdir()]


def test_a_system_without_locks_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbert.files.fcntl", None)
    first, second = RunDirectory(tmp_path / "run", SETTINGS), RunDirectory(tmp_path / "run", SETTINGS)
    for work in (first, second):
        work.lock()
    for work in (first, second):
        work.unlock()
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
    first, second = (RunDirectory(tmp_path / "run", SETTINGS) for _ in range(2))
    first.lock()
    assert len(calls) == 2
    with pytest.raises(ConfigError, match="another run is writing"):
        second.lock()
    first.unlock()
