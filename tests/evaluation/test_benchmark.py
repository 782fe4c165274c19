"""Benchmarks: what a row contains, peak memory of a sub-network alone, interleaved timing, and refused setups."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.factories.labelled_runs import make_labelled_run
from tests.factories.networks import make_network
from tests.factories.profiles import SETUP
from tests.factories.runs import needs_encoder
from transformers import AutoConfig, AutoModelForSequenceClassification

import limbert
from limbert import ElasticModel, LimbertError, Subnet
from limbert.errors import ConfigError
from limbert.evaluation import benchmark
from limbert.evaluation.benchmark import MIN_ROUNDS, Profiler, time_interleaved
from limbert.evaluation.memory import PEAK_MEMORY_SUPPORTED, peak_memory_bytes
from limbert.evaluation.results import read_profile
from limbert.inference.engine import Engine
from limbert.inference.policy import OperatingPoint, Policy, save_operating_points
from limbert.method.early_exit import ExitRule
from limbert.model.checkpoint import update_record
from limbert.model.flops import CostModel

NAMES = ("1x1", "0.5x0.5")


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory takes a process for each sub-network, and has a test of its own."""
    monkeypatch.setattr(benchmark, "peak_memory_bytes", lambda sources, *given, **named: [None] * len(sources))


@pytest.mark.usefixtures("without_memory")
def test_rows_describe_what_was_measured(tmp_path: Path) -> None:
    model = ElasticModel(make_network("bert"))
    subnets = {name: model.subnet(name) for name in NAMES}
    profiler = Profiler(model, subnets, tmp_path, rounds=6, max_seconds=1000)
    full, small = profiler.measure(SETUP, NAMES)
    again = profiler.measure(replace(SETUP, batch=4), ["0.5x0.5"])[0]
    assert (full.subnet, small.subnet) == NAMES
    assert full.params == sum(parameter.numel() for parameter in model.network.parameters())
    assert small.flops == CostModel(model).flops(subnets["0.5x0.5"], 16)
    assert full.file_bytes > small.file_bytes > 4 * small.params
    for row in (full, small, again):
        assert 0 < row.latency_p50_ms <= row.latency_p95_ms
        assert row.throughput == pytest.approx(1000 * row.setup.batch / row.latency_p50_ms)
        assert (row.rounds, row.hardware["cores"] > 0) == (6, True)
    assert full.measured == small.measured


@pytest.mark.skipif(not PEAK_MEMORY_SUPPORTED, reason="peak memory is measured on Linux")
def test_peak_memory_follows_layers_and_activations(tmp_path: Path) -> None:
    """A layer of 2048 neurons at hidden size 1024 is about 33 MB, and four need so much more."""
    config = AutoConfig.for_model(
        "bert", hidden_size=1024, num_attention_heads=8, intermediate_size=2048, num_hidden_layers=4, vocab_size=100
    )
    model = ElasticModel(AutoModelForSequenceClassification.from_config(config).eval())
    sizes = {"tiny": Subnet((0,), (1,), (1,))} | {
        str(layers): Subnet(tuple(range(layers)), (8,) * layers, (2048,) * layers) for layers in (1, 4)
    }
    for name, subnet in sizes.items():
        model.extract(subnet).save_pretrained(tmp_path / name)

    def peaks(*names: str, **changes: int) -> list[int]:
        folders = [tmp_path / name for name in names]
        return peak_memory_bytes(folders, replace(SETUP, **changes), warmup_folder=tmp_path / "tiny")  # type: ignore[return-value]

    one, four, again = peaks("1", "4", "1", batch=1)
    assert one == pytest.approx(again, rel=0.15)
    files = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("1", "4")]
    assert four - one == pytest.approx(files[1] - files[0], rel=0.2)
    assert peaks("1", batch=64, tokens=128)[0] - one > 64 * 128 * 2048 * 4  # the widest activations
    with pytest.raises(LimbertError, match="absent"):
        peaks("absent")


def test_functions_take_turns_within_the_time() -> None:
    calls: list[str] = []
    functions = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    assert [len(seconds) for seconds in time_interleaved(functions, rounds=7, max_seconds=100).values()] == [7, 7]
    assert calls == ["a", "b"] * 10  # three of them to warm up
    assert len(time_interleaved(functions, rounds=7, max_seconds=0)["a"]) == MIN_ROUNDS


@pytest.mark.usefixtures("without_memory")
def test_benchmark_saves_and_reports_each_setup(tmp_path: Path) -> None:
    ElasticModel(make_network("bert")).save_pretrained(tmp_path / "run")
    setups = []
    options = {"subnets": NAMES, "batch_sizes": (1, 2), "lengths": (8,), "rounds": 5, "max_seconds": 1}
    rows = limbert.benchmark(tmp_path / "run", **options, on_setup=setups.append)
    assert [(row.subnet, row.setup.batch) for row in rows] == [(name, batch) for batch in (1, 2) for name in NAMES]
    assert read_profile(tmp_path / "run" / "profile.jsonl") == rows
    assert setups == [rows[:2], rows[2:]]
    with pytest.raises(ConfigError, match="tpu"):
        limbert.benchmark(tmp_path / "run", **options | {"device": "tpu"})


@needs_encoder
@pytest.mark.usefixtures("without_memory")
def test_operating_points_are_measured_on_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_labelled_run(tmp_path)
    cascade = Policy(cascade=("0.5x1", "1x1"), exits=ExitRule("entropy", 0.3))
    points = {"fast": Policy(subnet="0.5x1"), "balanced": cascade}
    save_operating_points(run, {name: OperatingPoint(policy, "accuracy", 0.9, 0.4) for name, policy in points.items()})
    shapes: Counter[tuple[int, ...]] = Counter()
    run_engine = Engine.run
    monkeypatch.setattr(
        Engine, "run", lambda self, inputs: shapes.update([inputs["input_ids"].shape]) or run_engine(self, inputs)
    )
    options = {"lengths": (7,), "rounds": 5, "max_seconds": 0}
    names = [*ElasticModel.from_pretrained(run).subnets(), "balanced"]
    rows = limbert.benchmark(run, batch_sizes=(1, 3), **options)
    assert [(row.subnet, row.setup.batch) for row in rows] == [(name, batch) for batch in (1, 3) for name in names]
    full, balanced = (next(row for row in rows if row.subnet == name) for name in ("1x1", "balanced"))
    assert (balanced.params, balanced.flops) == (full.params, round(0.4 * full.flops))
    assert balanced.latency_p50_ms > 0
    assert shapes[torch.Size((1, 7))] >= 8 * (5 + 3)  # and passes of the second sub-network, without padding
    assert shapes[torch.Size((3, 7))] >= 3 * (5 + 3)
    assert max(shapes) == (3, 7)
    assert [row.subnet for row in limbert.benchmark(run, subnets=("balanced",), **options)] == ["balanced"]
    with pytest.raises(ConfigError, match="torch"):
        limbert.benchmark(run, subnets=("balanced",), backends=("onnxruntime",), **options)
    update_record(run, lambda record: record["settings"].update(train={}))
    limbert.tune(run)
    assert "balanced" not in {row.subnet for row in read_profile(run / "profile.jsonl")}  # it has another meaning now
