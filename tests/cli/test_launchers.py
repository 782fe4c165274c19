"""The command under torchrun and accelerate launch: the weights of one process, one output, clean ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.factories.ports import free_port
from tests.factories.runs import DATA_OPTIONS, call, command, environment, make_small_encoder, needs_encoder

pytestmark = needs_encoder
PHASES = ("finetune", "width", "depth")
TRAIN = ["train", *DATA_OPTIONS, "--model", "small", "--recipe", "flexible-bert", "--max-steps", "6",
         "--learning-rate", "1e-3", "--train-limit", "81", "--validation", "0.2", "--checkpoint-every", "0.05",
         *(part for phase in PHASES for part in ("--set", f"{phase}.adam_epsilon=1e-5"))]  # fmt: skip
ONE = ["--batch-size", "16", "--set", "gates.batch_size=16"]
EACH = ["--batch-size", "8", "--set", "gates.batch_size=8"]  # of two
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder without dropout, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("launched")
    config = make_small_encoder(folder / "small") / "config.json"
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config.write_text(json.dumps(json.loads(config.read_text()) | without))
    finished = call(folder, *TRAIN, *ONE, "--output", "one")
    assert finished.returncode == 0, finished.stderr
    return folder


def start(folder: Path, launcher: list[str], *arguments: str) -> subprocess.Popen[str]:
    words = [sys.executable, *launcher, "limbert", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=folder, env=environment(folder), **pipes)


def assert_as_one(folder: Path, name: str) -> None:
    for file in ("model.safetensors", "gates.safetensors"):
        expected, found = load_file(folder / "one" / file), load_file(folder / name / file)
        for key, weights in expected.items():
            assert torch.allclose(found[key], weights, atol=1e-5, rtol=0), key


def own_lines(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("limbert: error")]


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    while not [*path.glob(pattern)]:
        assert process.poll() is None, f"it ended without {pattern}"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "launcher",
    [pytest.param(TORCHRUN, id="torchrun"), pytest.param(ACCELERATE, id="accelerate", marks=pytest.mark.slow)],
)
def test_two_launched_processes_train_what_one_trains(launcher: list[str], folder: Path) -> None:
    name = launcher[1].partition(".")[0]
    output, errors = start(folder, launcher, *TRAIN, *EACH, "--json", "--output", name).communicate()
    results = json.loads(output)  # printed once
    assert "frozen features, gates-train" in errors
    assert errors.count("finetune: 6 steps") == 1
    assert_as_one(folder, name)
    lines = [json.loads(line) for line in (folder / name / "results.jsonl").read_text().splitlines()]
    assert {line["processes"] for line in lines} == {2}
    assert [line["subnet"] for line in lines] == [result["subnet"] for result in results]
    one = [json.loads(line)["metrics"] for line in (folder / "one" / "results.jsonl").read_text().splitlines()]
    assert [line["metrics"] for line in lines] == one
    logs = [(folder / where / "log.jsonl").read_text().splitlines() for where in (name, "one")]
    for ours, theirs in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert (ours["phase"], ours["step"]) == (theirs["phase"], theirs["step"])
        assert ours.get("loss", 0) == pytest.approx(theirs.get("loss", 0), abs=1e-4)
    assert not (folder / f"{name}.training").exists()


@pytest.mark.slow
def test_a_run_with_a_killed_process_resumes(folder: Path) -> None:
    process = start(folder, TORCHRUN, *TRAIN, *EACH, "--output", "killed")
    wait_for(folder / "killed.training", "*/final", process)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(workers.split()[-1]), signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode != 0
    assert len(own_lines(errors)) <= 1  # the launcher may end the other one before it notices
    assert "RuntimeError" not in errors
    last = next(
        phase for phase in reversed((*PHASES, "gates")) if (folder / "killed.training" / phase / "final").exists()
    )
    again = start(folder, TORCHRUN, *TRAIN, *EACH, "--output", "killed")
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert f"resuming after phase {last}" in errors
    assert_as_one(folder, "killed")


@pytest.mark.slow
def test_an_error_is_printed_once(folder: Path) -> None:
    (folder / "file").write_text("")
    cases = {
        "exists and is not a model": ["--output", "file"],
        "cannot load the config": ["--model", "nowhere", "--output", "new"],
        "cannot write": ["--output", "file/under-a-file"],  # only the main process finds out
    }
    for message, arguments in cases.items():
        process = start(folder, TORCHRUN, *TRAIN, *arguments)
        _, errors = process.communicate()
        lines = own_lines(errors)
        assert process.returncode == 1
        assert len(lines) == 1, errors
        assert any(part in lines[0] for part in message.split("|"))
    refused = start(folder, TORCHRUN, "evaluate", "one")
    _, errors = refused.communicate()
    (line,) = own_lines(errors)
    assert "limbert evaluate runs in one process" in line


@pytest.mark.slow
def test_an_error_of_another_machine_is_printed(folder: Path) -> None:
    """As on two machines, each with its own command, without a launcher."""
    shared = environment(folder) | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            command(*TRAIN, "--model", model, "--output", "lacking"),
            cwd=folder,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": "0"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, model in enumerate(["small", "./absent"])
    ]
    lines = [own_lines(process.communicate(timeout=120)[1]) for process in reversed(processes)]
    assert "no checkpoint folder at ./absent" in lines[0][0]
    assert lines[1] == []  # the other one prints nothing
    assert [process.returncode for process in processes] == [1, 1]
