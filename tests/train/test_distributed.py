"""Two processes train what one trains, exchange gradients once a step, and stop and resume as one."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.factories.distributed_worker import CASES, STEPS, StopInRank, make_case, train
from tests.factories.ports import free_port

from limbert.errors import ConfigError, TrainingInterrupted
from limbert.method.losses import hidden_loss, label_loss
from limbert.train import distributed
from limbert.train.data import shard_batch

PROJECT = Path(__file__).parents[2]
CLOSE = {"atol": 1e-5, "rtol": 0.0}
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case trained by two processes, each with its notes and its weights."""
    folder = tmp_path_factory.mktemp("together")
    with pytest.raises(TrainingInterrupted):  # one process begins what two are to finish
        train("depth", folder / "one-then-two", callbacks=[StopInRank(2, of_rank=0)])
    path = os.pathsep.join([str(PROJECT), *filter(None, sys.path)])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.factories.distributed_worker", folder],
            env=os.environ
            | shared
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=500)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Weights]:
    """The weights that one process ends with."""
    folder = tmp_path_factory.mktemp("alone")
    return functools.cache(lambda name: train(name, folder))


def notes(folder: Path, rank: int) -> dict[str, dict[str, object]]:
    return json.loads((folder / f"notes-{rank}.json").read_text())


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_with_the_weights_of_one(name: str, folder: Path, alone: Callable[[str], Weights]) -> None:
    expected = alone(name)
    before = make_case(name)[0].network.state_dict()
    ours, theirs = (load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2))
    assert_same(ours, expected)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    if name != "gates":
        assert max(float((expected[key] - before[key]).abs().max()) for key in before) > 1e-3  # it learned something


@pytest.mark.parametrize("name", [name for name in CASES if name != "gates"])
def test_gradients_are_exchanged_once_a_step(name: str, folder: Path) -> None:
    weights = sum(weight.numel() for weight in make_case(name)[0].network.parameters())
    for rank in range(2):  # the flags to stop and to save are summed with them
        found = [size for size in notes(folder, rank)[name]["exchanged"] if size > 2]
        assert found == [weights + 2] * STEPS
    seeds = [notes(folder, rank)[name]["seed"] for rank in range(2)]
    assert seeds[0] != seeds[1]  # dropout differs between processes


def test_two_processes_resume_what_one_began(folder: Path, alone: Callable[[str], Weights]) -> None:
    assert_same(load_file(folder / "resumed-0.safetensors"), alone("depth"))


def test_one_process_resumes_what_two_began(folder: Path, alone: Callable[[str], Weights]) -> None:
    messages = [notes(folder, rank)["width"]["stopped"] for rank in range(2)]
    assert messages[0] == messages[1]  # one was asked, both stopped, after the same step
    assert "step 2 of 6" in str(messages[0])
    assert_same(train("width", folder / "two-then-one"), alone("width"))


def test_scales_of_uneven_parts_sum_to_the_whole() -> None:
    torch.manual_seed(0)
    rows, tokens = 5, 7
    mask = (torch.arange(tokens) < torch.tensor([7, 2, 5, 3, 6])[:, None]).long()
    labels = torch.tensor([0, -100, 2, 1, -100])
    logits, states, targets = torch.randn(rows, 3), torch.randn(rows, tokens, 4), torch.randn(rows, tokens, 4)
    whole = {"attention_mask": mask, "labels": labels, "logits": logits, "states": states, "targets": targets}
    weights = torch.tensor([0.5, 1.0, 2.0])
    for count in (1, 2, 3, 7):
        label = hidden = weighted = torch.zeros(())
        for rank in range(count):
            part, scale = shard_batch(whole, rank=rank, world_size=count)
            loss = label_loss(part["logits"], part["labels"], task_type="classification")
            label = label + (scale.labels * loss).nan_to_num()
            hidden = hidden + scale.tokens * hidden_loss([part["states"]], [part["targets"]], part["attention_mask"])
            scale = shard_batch(whole, rank=rank, world_size=count, class_weights=weights)[1]
            loss = torch.nn.functional.cross_entropy(part["logits"], part["labels"], weight=weights)
            weighted = weighted + (scale.labels * loss).nan_to_num()
            assert scale.batch_size == rows
        torch.testing.assert_close(label, label_loss(logits, labels, task_type="classification"))
        torch.testing.assert_close(weighted, torch.nn.functional.cross_entropy(logits, labels, weight=weights))
        torch.testing.assert_close(hidden, hidden_loss([states], [targets], mask))


def test_other_machines_without_the_folder_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "all_gather_object", lambda value: [value, None])
    with pytest.raises(ConfigError, match="process 1"):
        distributed.check_equal("width", description="the last phase")


def test_accumulation_set_by_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    assert distributed.init_distributed() == 1
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ConfigError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS"):
        distributed.init_distributed()
