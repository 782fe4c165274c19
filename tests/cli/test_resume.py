"""A killed run resumes and ends bit for bit where an uninterrupted one ends."""

import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors import safe_open
from tests.factories.runs import DATA_OPTIONS, call, command, environment, make_small_encoder, needs_encoder

from limbert import ElasticModel

pytestmark = needs_encoder
TRAIN = ["train", *DATA_OPTIONS, "--model", "small", "--recipe", "flexible-bert", "--max-steps", "30",
         "--batch-size", "8", "--learning-rate", "1e-3", "--train-limit", "300", "--validation", "0.2",
         "--checkpoint-every", "0.05", "--threads", "1"]  # fmt: skip


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes() + (folder / "gates.safetensors").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    make_small_encoder(folder / "small")
    finished = call(folder, *TRAIN, "--output", "whole")
    assert finished.returncode == 0, finished.stderr
    return folder


def start(folder: Path, *arguments: str, limit_bytes: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.Popen(command(*TRAIN, *arguments), cwd=folder, env=environment(folder), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, preexec_fn=limit)  # fmt: skip


def saved(work: Path) -> set[str]:
    """Checkpoints and finished phases of an unfinished run."""
    return {str(path.relative_to(work)) for path in work.glob("*/[!.]*") if path.is_dir()}


def wait_for_state(work: Path, process: subprocess.Popen[str], *, beside: set[str]) -> set[str]:
    """Until the run has saved something that is not in ``beside``."""
    while process.poll() is None:
        found = saved(work)
        if found - beside:
            return found
        time.sleep(0.01)
    return set()


def test_killed_again_and_again_it_ends_the_same(folder: Path) -> None:
    work, seen, kills = folder / "killed.training", set(), 0
    while not (folder / "killed").exists():
        process = start(folder, "--output", "killed")
        seen |= wait_for_state(work, process, beside=seen)
        if kills < 3 and process.poll() is None:
            time.sleep(0.03 * kills)  # sometimes within the next step, sometimes within a write
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
    assert kills > 1  # three where this machine lets the test look in time
    assert weights(folder / "killed") == weights(folder / "whole")
    logs = [(folder / name / "log.jsonl").read_text().splitlines() for name in ("killed", "whole")]
    assert len(logs[0]) == len(logs[1])
    assert not work.exists()


def test_interrupted_or_on_a_full_disk_it_resumes(folder: Path) -> None:
    """A limit on the size of files stands for the full disk: writing fails half-way, in the middle of a file."""
    work = folder / "stopped.training"
    process = start(folder, "--output", "stopped")
    wait_for_state(work, process, beside=set())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Run the same command to resume" in errors
    assert "Traceback" not in errors
    refused = call(folder, *TRAIN, "--output", "stopped", "--seed", "7")
    assert refused.returncode == 1
    assert "train.seed 42 -> 7" in refused.stderr
    before = saved(work)
    full = start(folder, "--output", "stopped", limit_bytes=1_000_000)
    _, errors = full.communicate()
    assert full.returncode == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("limbert: error")]
    assert "cannot write" in line
    assert "Traceback" not in errors
    assert not (folder / "stopped").exists()
    left = saved(work)
    assert left
    assert before <= left
    assert not [path for path in work.rglob(".*new*") if path.is_dir()]
    assert call(folder, *TRAIN, "--output", "stopped").returncode == 0
    assert weights(folder / "stopped") == weights(folder / "whole")


def test_the_result_is_a_finished_checkpoint(folder: Path) -> None:
    again = call(folder, *TRAIN, "--output", "whole", "--json")
    assert again.returncode == 0
    assert "finished already" in again.stderr
    model = ElasticModel.from_pretrained(folder / "whole")
    assert model.record["phases"] == ["finetune", "width", "depth", "gates"]
    assert len(model.record["task"]["labels"]) == 24
    with safe_open(folder / "whole" / "model.safetensors", "pt") as file:
        assert {*file.keys()} == {*model.network.state_dict()}
    other = call(folder, *TRAIN, "--output", "whole", "--learning-rate", "2e-3")
    assert other.returncode == 1
    assert "other settings" in other.stderr
    if os.geteuid() != 0:  # root writes everywhere
        (folder / "closed").mkdir(mode=0o500)
        closed = call(folder, *TRAIN, "--output", "closed/run")
        assert closed.returncode == 1
        assert "cannot write" in closed.stderr
