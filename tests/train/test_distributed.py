"""Two processes train what one trains, exchange gradients once a step, and stop and go on as one."""

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
from tests.factories.distributed_worker import CASES, STEPS, asked_after, make_work, train
from tests.factories.ports import free_port

from limbert.errors import ConfigError, TrainingInterrupted
from limbert.method.losses import hidden_loss, label_loss
from limbert.train.distributed import DistributedContext, LossScale, init_distributed

PROJECT = Path(__file__).parents[2]
CLOSE = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case trained by two processes, each with its notes and its weights."""
    folder = tmp_path_factory.mktemp("together")
    with pytest.raises(TrainingInterrupted):  # one process begins what two are to finish
        train("depth", folder / "one-then-two", should_stop=asked_after(3))
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
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process trains."""
    return tmp_path_factory.mktemp("alone")


@pytest.fixture(scope="module")
def alone(one: Path) -> Callable[[str], dict[str, torch.Tensor]]:
    """What one process makes of a case."""
    return functools.cache(lambda name: train(name, one))


def notes(folder: Path, rank: int) -> dict[str, dict[str, object]]:
    return json.loads((folder / f"notes-{rank}.json").read_text())


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_with_the_weights_of_one(
    name: str, folder: Path, alone: Callable[[str], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    expected = alone(name)
    moved = make_work(name, tmp_path).model.network.state_dict()
    ours, theirs = (load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2))
    assert_same(ours, expected)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    if name != "gates":
        assert max(float((expected[key] - moved[key]).abs().max()) for key in moved) > 1e-3  # it learned something


@pytest.mark.parametrize("name", [name for name in CASES if name != "gates"])
def test_losses_are_those_of_the_whole_batches(
    name: str, folder: Path, one: Path, alone: Callable[[str], dict[str, torch.Tensor]]
) -> None:
    alone(name)
    logs = [(where / f"{name}.training" / "log.jsonl").read_text().splitlines() for where in (folder / "two", one)]
    ours, theirs = ([row["loss"] for row in map(json.loads, log) if "loss" in row] for log in logs)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert len(ours) == 1


@pytest.mark.parametrize("name", [name for name in CASES if name != "gates"])
def test_gradients_are_exchanged_once_a_step(name: str, folder: Path, tmp_path: Path) -> None:
    weights = sum(weight.numel() for weight in make_work(name, tmp_path).model.network.parameters())
    for rank in range(2):
        assert (
            notes(folder, rank)[name]["exchanged"] == [weights + 2] * STEPS
        )  # the loss and the wish to stop with them


def test_dropout_differs_between_processes(folder: Path, tmp_path: Path) -> None:
    train("finetune", tmp_path)
    seed = torch.initial_seed()
    assert notes(folder, 0)["finetune"]["seed"] == seed
    assert notes(folder, 1)["finetune"]["seed"] != seed


def test_two_processes_go_on_where_one_stopped(folder: Path, alone: Callable[[str], dict[str, torch.Tensor]]) -> None:
    assert_same(load_file(folder / "resumed-0.safetensors"), alone("depth"))


@pytest.mark.parametrize("name", ["width", "gates"])
def test_one_process_goes_on_where_two_stopped(
    name: str, folder: Path, alone: Callable[[str], dict[str, torch.Tensor]]
) -> None:
    said = [notes(folder, rank)[name]["stopped"] for rank in range(2)]
    assert said[0] == said[1]  # one was asked, both stopped, after the same step
    assert "stopped in" in str(said[0])
    assert_same(train(name, folder / "two-then-one"), alone(name))


def test_shares_of_uneven_parts_make_the_means_over_the_whole() -> None:
    torch.manual_seed(0)
    rows, tokens = 5, 7
    mask = (torch.arange(tokens) < torch.tensor([7, 2, 5, 3, 6])[:, None]).long()
    labels = torch.tensor([0, -100, 2, 1, -100])
    logits, states, targets = torch.randn(rows, 3), torch.randn(rows, tokens, 4), torch.randn(rows, tokens, 4)
    whole = {"attention_mask": mask, "labels": labels, "logits": logits, "states": states, "targets": targets}
    for count in (2, 3, 7):
        label = hidden = torch.zeros(())
        shares = []
        for rank in range(count):
            part, share = DistributedContext(count, rank).shard_batch(whole)
            shares.append(share)
            label = (
                label
                + (share.labels * label_loss(part["logits"], part["labels"], task_type="classification")).nan_to_num()
            )
            hidden = hidden + share.tokens * hidden_loss([part["states"]], [part["targets"]], part["attention_mask"])
        torch.testing.assert_close(label, label_loss(logits, labels, task_type="classification"))
        torch.testing.assert_close(hidden, hidden_loss([states], [targets], mask))
        assert sum(share.examples for share in shares) == pytest.approx(1)
        assert {share.global_batch_size for share in shares} == {rows}
    assert DistributedContext().shard_batch(whole) == (whole, LossScale(global_batch_size=rows))


def test_alone_nothing_is_exchanged() -> None:
    alone = DistributedContext()
    assert alone.is_main_process
    assert alone.all_gather_object("a") == ["a"]
    assert alone.run_on_main(lambda: 3) == 3
    alone.check_equal(1, description="nothing")
    with alone.local_main_process_first():
        pass


def test_what_others_do_not_find_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DistributedContext, "all_gather_object", lambda self, value: [value, None])
    with pytest.raises(
        ConfigError, match=r"process 1 finds the last phase None, process 0 finds width; .* all machines"
    ):
        DistributedContext(2, 0).check_equal("width", description="the last phase")


def test_steps_that_a_launcher_would_accumulate_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    assert init_distributed().world_size == 1
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ConfigError, match=r"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is '4'; it must be 1 or not set"):
        init_distributed()
