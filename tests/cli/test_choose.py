"""``limbert profile``, ``choose`` and ``search`` on real files, and one clear line for bad input."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.factories.runs import DATA_OPTIONS, call, command, environment, make_small_encoder, needs_encoder

from limbert.evaluation.memory import PEAK_MEMORY_SUPPORTED

pytestmark = needs_encoder


PROFILE = ["--tokens", "16", "--rounds", "6", "--seconds", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choosing")
    make_small_encoder(folder / "small")
    options = ["--model", "small", "--output", "trained", "--max-steps", "2", "--layers", "first"]
    with pytest.MonkeyPatch.context() as patch:  # peak memory takes a process for each sub-network
        patch.setattr("limbert.evaluation.benchmark.peak_memory_bytes", lambda sources, *_, **__: [None] * len(sources))
        for done in (
            call(folder, "train", *DATA_OPTIONS, *options, "--widths", "0.5,1", "--depths", "0.67,1"),
            call(folder, "search", "trained", "--trials", "9", "--threads", "1"),
            call(folder, "profile", "trained", *PROFILE, "--batch", "1,4"),
        ):
            assert done.returncode == 0, done.stderr
    return folder


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_search_saves_its_front(folder: Path) -> None:
    again = call(folder, "search", "trained", "--trials", "9", "--json")
    assert "9 sub-networks" in again.stderr
    result = json.loads(again.stdout)
    assert result["trials"] == 9
    saved = json.loads((folder / "trained" / "limbert.json").read_text())["subnets"]
    assert {*saved} == {row["subnet"] for row in result["front"] if not row["grid"]}
    evaluated = json.loads(call(folder, "evaluate", "trained", "--json").stdout)
    assert [row["subnet"] for row in evaluated] == ["1x1", "0.5x1", "1x0.67", "0.5x0.67", *saved]
    by_name = {row["subnet"]: row for row in evaluated}
    for row in result["front"]:
        assert row["dev"] == pytest.approx(by_name[row["subnet"]]["metrics"]["accuracy"], abs=0.003)
    for name in saved:
        done = call(folder, "predict", "trained", "--subnet", name, "--text", "Where is my card?", "--json")
        assert json.loads(done.stdout)[0]["score"] > 0


def finished_trials(journal: Path) -> int:
    """Trials in optuna's journal that have values."""
    return 0 if not journal.exists() else journal.read_text().count('"values":[')


def test_killed_search_resumes(folder: Path) -> None:
    subprocess.run(["cp", "-r", folder / "trained", folder / "killed"], check=True)
    journal = folder / "killed" / "search-journal.jsonl"
    journal.unlink()
    options = ["--trials", "24", "--threads", "1"]
    process = subprocess.Popen(
        command("search", "killed", *options), cwd=folder, env=environment(folder), stderr=subprocess.DEVNULL
    )
    while finished_trials(journal) < 8:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = finished_trials(journal)
    assert 8 <= before < 24
    done = call(folder, "search", "killed", *options, "--json")
    assert done.returncode == 0, done.stderr
    assert f"{before} sub-networks" in done.stderr
    assert json.loads(done.stdout)["trials"] == 24
    assert finished_trials(journal) == 24  # none was evaluated twice


def test_choose_finds_the_best_measured_sub_network(folder: Path) -> None:
    rows = lines(folder / "trained" / "profile.jsonl")
    found = json.loads((folder / "trained" / "limbert.json").read_text())["subnets"]
    assert len(rows) == 2 * (4 + len(found))
    assert {"peak_memory_bytes", "throughput", "hardware", "versions"} <= {*rows[0]}
    done = call(folder, "choose", "trained", "--max-params", "1G", "--json")
    choice = json.loads(done.stdout)
    metrics = {row["subnet"]: row["metrics"]["accuracy"] for row in lines(folder / "trained" / "results.jsonl")}
    assert choice["choice"]["metric"] == max(metrics.values())
    assert choice["choice"]["batch"] == 1
    assert choice["meeting"] == 4 + len(found)
    table = call(folder, "choose", "trained", "--min-metric", "0.0001", "--batch", "4").stdout
    assert "batch 4, 16 tokens" in table
    elsewhere = call(folder, "choose", "trained", "--max-size", "1GB", "--device-profile", "trained/profile.jsonl")
    assert elsewhere.returncode == 0


def test_profile_says_whether_budgets_can_be_met(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    options = ["--backend", "onnxruntime", "--subnets", "0.5x0.67", "--max-latency", "10s", "--max-size", "1kB"]
    done = call(folder, "profile", "trained", *PROFILE, *options)
    assert done.returncode == 0, done.stderr
    assert "--max-latency 10.00 s can be met" in done.stdout
    assert "--max-size 1.00 kB cannot be met on " in done.stdout
    assert "tokens: 0.5x0.67 has file size" in done.stdout
    (row,) = [row for row in lines(folder / "trained" / "profile.jsonl") if row["backend"] == "onnxruntime"]
    assert row["peak_memory_bytes"] > 0 or not PEAK_MEMORY_SUPPORTED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["choose", "trained"], "--max-latency"),
        (["choose", "trained", "--max-latency", "5"], "5ms"),
        (["choose", "trained", "--min-metric", "90"], "--min-metric"),
        (["choose", "trained", "--max-latency", "1us"], "cannot be met; nearest is "),
        (["choose", "trained", "--max-latency", "1s", "--tokens", "99"], "tokens 99"),
        (["choose", "nowhere", "--max-latency", "1s"], "no folder nowhere"),
        (["choose", "small", "--max-latency", "1s"], "limbert profile small"),
        (["choose", "trained", "--max-latency", "1s", "--device-profile", "no.jsonl"], "no.jsonl"),
        (["profile", "small"], "small"),
        (["profile", "trained", "--tokens", "999"], "tokens is 999"),
        (["profile", "trained", "--batch", "0"], "batch is 0"),
        (["profile", "trained", "--batch", "1,a"], "--batch '1,a'"),
        (["profile", "trained", "--backend", "tensorrt"], "runtime is 'tensorrt'"),
        (["profile", "trained", "--backend", "onnxruntime", "--device", "cuda"], "on the CPU only"),
        (["profile", "trained", "--subnets", "half"], "half"),
        (["search", "small"], "limbert train"),
        (["search", "trained", "--objective", "joy"], "joy"),
    ],
)
def test_bad_input_gets_one_clear_line(folder: Path, arguments: list[str], message: str) -> None:
    before = sorted(path.name for path in folder.rglob("*"))
    done = call(folder, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert sorted(path.name for path in folder.rglob("*")) == before
