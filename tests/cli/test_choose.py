"""From a trained model to a chosen size: profile, choose and search on real files, and one line for what is wrong."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.factories.runs import DATA_OPTIONS, call, command, environment, make_small_encoder, needs_encoder

pytestmark = needs_encoder


PROFILE = ["--tokens", "16", "--rounds", "6", "--seconds", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choosing")
    make_small_encoder(folder / "small")
    options = ["--model", "small", "--output", "trained", "--max-steps", "2", "--layers", "first"]
    for done in (
        call(folder, "train", *DATA_OPTIONS, *options, "--widths", "0.5,1", "--depths", "0.67,1"),
        call(folder, "search", "trained", "--trials", "9", "--threads", "1"),
        call(folder, "profile", "trained", *PROFILE, "--batch", "1,4"),
    ):
        assert done.returncode == 0, done.stderr
    return folder


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_search_keeps_what_it_found(folder: Path) -> None:
    tried = lines(folder / "trained" / "search.jsonl")
    assert len(tried) == 9
    again = call(folder, "search", "trained", "--trials", "9", "--json")
    assert "9 sub-networks were measured before" in again.stderr
    front = json.loads(again.stdout)["front"]
    found = json.loads((folder / "trained" / "limbert.json").read_text())["subnets"]
    assert {*found} == {one["subnet"] for one in front if not one["grid"]}
    evaluated = json.loads(call(folder, "evaluate", "trained", "--json").stdout)
    assert [row["subnet"] for row in evaluated] == ["1x1", "0.5x1", "1x0.67", "0.5x0.67", *found]
    by_name = {row["subnet"]: row for row in evaluated}
    for one in front:
        assert one["dev"] == pytest.approx(by_name[one["subnet"]]["metrics"]["accuracy"], abs=0.003)
    for name in found:
        done = call(folder, "predict", "trained", "--subnet", name, "--text", "Where is my card?", "--json")
        assert json.loads(done.stdout)[0]["score"] > 0


def test_a_killed_search_goes_on(folder: Path) -> None:
    for name in ("killed", "whole"):
        subprocess.run(["cp", "-r", folder / "trained", folder / name], check=True)
        (folder / name / "search.jsonl").unlink()
    options = ["--trials", "24", "--threads", "1"]
    journal = folder / "killed" / "search.jsonl"
    process = subprocess.Popen(
        command("search", "killed", *options), cwd=folder, env=environment(folder), stderr=subprocess.DEVNULL
    )
    while not journal.exists() or len(journal.read_text().splitlines()) < 8:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(journal.read_text().splitlines()) < 24
    outputs = [call(folder, "search", name, *options, "--json") for name in ("killed", "whole")]
    assert outputs[0].stdout == outputs[1].stdout
    assert len(outputs[0].stdout) > 100
    assert journal.read_text() == (folder / "whole" / "search.jsonl").read_text()


def test_profile_measures_all_and_choose_finds_the_best(folder: Path) -> None:
    rows = lines(folder / "trained" / "profile.jsonl")
    found = json.loads((folder / "trained" / "limbert.json").read_text())["subnets"]
    assert len(rows) == 2 * (4 + len(found))
    keys = {"subnet", "params", "flops", "file_bytes", "peak_memory_bytes", "latency_p50_ms", "latency_p95_ms"}
    keys |= {"throughput", "backend", "precision", "device", "threads", "batch", "tokens", "hardware", "versions"}
    assert keys <= {*rows[0]}
    answer = call(folder, "choose", "trained", "--max-params", "1G", "--json")
    choice = json.loads(answer.stdout)
    metrics = {row["subnet"]: row["metrics"]["accuracy"] for row in lines(folder / "trained" / "results.jsonl")}
    assert choice["choice"]["metric"] == max(metrics.values())
    assert choice["choice"]["batch"] == 1
    assert choice["meeting"] == 4 + len(found)
    table = call(folder, "choose", "trained", "--min-metric", "0.0001", "--batch", "4").stdout
    assert "torch on cpu, batch 4, 16 tokens, 1 thread" in table
    slowed = [row | {"latency_p50_ms": 123.4} if row["subnet"] == "0.5x1" else row for row in rows]  # unlike all others
    (folder / "trained" / "profile.jsonl").write_text("".join(json.dumps(row) + "\n" for row in slowed))
    name = f"123.4ms-{100 * metrics['0.5x1']:.1f}"
    named = call(folder, "evaluate", "trained", "--subnet", name, "--json")
    assert [row["subnet"] for row in json.loads(named.stdout)] == ["0.5x1"]
    elsewhere = call(folder, "choose", "trained", "--max-size", "1GB", "--device-profile", "trained/profile.jsonl")
    assert elsewhere.returncode == 0


def test_profile_of_some_in_another_runtime_says_whether_a_budget_can_be_met(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    options = ["--backend", "onnxruntime", "--subnets", "0.5x0.67", "--max-latency", "10s", "--max-size", "1kB"]
    done = call(folder, "profile", "trained", *PROFILE, *options)
    assert done.returncode == 0, done.stderr
    assert "--max-latency 10.00 s can be met" in done.stdout
    assert "--max-size 1.00 kB cannot be met on " in done.stdout
    assert "tokens: 0.5x0.67 has file size" in done.stdout
    assert len([row for row in lines(folder / "trained" / "profile.jsonl") if row["backend"] == "onnxruntime"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["choose", "trained"], "give at least one limit: --max-latency"),
        (["choose", "trained", "--max-latency", "5"], "--max-latency '5' cannot be read; write 5ms or 0.005s"),
        (["choose", "trained", "--min-metric", "90"], "--min-metric is '90'; it must be above 0 and at most 1"),
        (["choose", "trained", "--max-latency", "1us"], "cannot be met; nearest is "),
        (["choose", "trained", "--max-latency", "1s", "--tokens", "99"], "no measurement with tokens 99"),
        (["choose", "nowhere", "--max-latency", "1s"], "no model folder at nowhere"),
        (["choose", "small", "--max-latency", "1s"], "run limbert profile small first"),
        (
            ["choose", "trained", "--max-latency", "1s", "--device-profile", "no.jsonl"],
            "cannot read the profile no.jsonl",
        ),
        (["profile", "small"], "small is no model trained by Limbert"),
        (
            ["profile", "trained", "--tokens", "999"],
            "tokens is 999; it must be from 2 to the model's longest",
        ),
        (["profile", "trained", "--batch", "0"], "--batch '0' is not a list of whole numbers"),
        (["profile", "trained", "--backend", "tensorrt"], "backend is 'tensorrt'"),
        (["profile", "trained", "--backend", "onnxruntime", "--device", "cuda"], "is measured on the CPU only"),
        (
            ["profile", "trained", "--subnets", "half"],
            "sub-network 'half'; write WIDTHxDEPTH",
        ),
        (["profile", "trained", "--max-flops", "lots"], "--max-flops 'lots' cannot be read"),
        (["search", "nowhere"], "no model folder at nowhere"),
        (["search", "small"], "small has no limbert.json"),
        (["search", "trained", "--objective", "joy"], "objective is 'joy'; it must be one of flops, latency"),
        (["search", "trained", "--data", "absent"], "absent"),
        (["evaluate", "trained", "--subnet", "1.0ms-99.9"], "was measured as 1.0ms-99.9; near it"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder: Path, arguments: list[str], message: str) -> None:
    before = sorted(path.name for path in folder.rglob("*"))
    done = call(folder, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert sorted(path.name for path in folder.rglob("*")) == before
