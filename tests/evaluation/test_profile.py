"""A profile measures the sub-network that it names, loaded alone, and keeps what other machines said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.factories.networks import CONFIGS, make_inputs, make_network
from tests.factories.profiles import CELL, ROW
from transformers import AutoConfig, AutoModelForSequenceClassification

from limbert import ElasticModel, LimbertError, Subnet
from limbert.errors import CheckpointError, ConfigError
from limbert.evaluation.latency import MIN_ROUNDS, time_interleaved
from limbert.evaluation.memory import PEAK_MEMORY_SUPPORTED, MemoryMeter, load_standalone, save_standalone
from limbert.evaluation.profile import Profiler, check_setup
from limbert.evaluation.profile_rows import read_profile, save_profile
from limbert.model.flops import CostModel

SUBNETS = {"1x1": (0, 1, 2, 3), "0.5x0.5": (0, 1)}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_sub_network_loaded_alone_answers_as_its_view(case: str, tmp_path: Path) -> None:
    model = ElasticModel(make_network(case))
    subnet = Subnet((0, 2), (3, 6), (30, 17))
    save_standalone(model, subnet, tmp_path / "alone", with_onnx=False)
    alone = load_standalone(tmp_path / "alone")
    assert not any(tensor.is_meta for tensor in [*alone.parameters(), *alone.buffers()])
    with torch.no_grad():
        mine, expected = alone(**make_inputs()).logits, model.view(subnet)(**make_inputs()).logits
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


def test_every_row_says_what_was_measured(tmp_path: Path) -> None:
    model = ElasticModel(make_network("bert"))
    subnets = {name: model.subnet(name) for name in SUBNETS}
    with Profiler(model, subnets, tmp_path, rounds=6, max_seconds=1000) as profiler:
        full, small = profiler.measure(CELL, list(subnets))
        again = profiler.measure(replace(CELL, batch=4), ["0.5x0.5"])[0]
    assert (full.subnet, small.subnet) == ("1x1", "0.5x0.5")
    assert full.params == sum(parameter.numel() for parameter in model.network.parameters())
    assert small.flops == CostModel(model).flops(subnets["0.5x0.5"], 16)
    assert full.file_bytes > small.file_bytes > 4 * small.params
    for row in (full, small, again):
        assert 0 < row.latency_p50_ms <= row.latency_p95_ms
        assert row.throughput == pytest.approx(1000 * row.setup.batch / row.latency_p50_ms)
        assert (row.rounds, row.hardware["cores"] > 0) == (6, True)
    assert full.measured == small.measured


@pytest.mark.skipif(not PEAK_MEMORY_SUPPORTED, reason="peak memory is measured on Linux")
def test_peak_memory_is_that_of_the_sub_network_alone(tmp_path: Path) -> None:
    """A layer of 2048 neurons at hidden size 1024 is about 33 MB; loading more of them needs so much more."""
    config = AutoConfig.for_model(
        "bert", hidden_size=1024, num_attention_heads=8, intermediate_size=2048, num_hidden_layers=4, vocab_size=100
    )
    model = ElasticModel(AutoModelForSequenceClassification.from_config(config).eval())
    sizes = {"tiny": Subnet((0,), (1,), (1,))} | {
        str(layers): Subnet(tuple(range(layers)), (8,) * layers, (2048,) * layers) for layers in (1, 4)
    }
    for name, subnet in sizes.items():
        save_standalone(model, subnet, tmp_path / name, with_onnx=False)
    with MemoryMeter() as meter:
        one, four = (
            meter.peak_bytes(tmp_path / name, tmp_path / "tiny", replace(CELL, batch=1)) for name in ("1", "4")
        )
        assert one == pytest.approx(
            meter.peak_bytes(tmp_path / "1", tmp_path / "tiny", replace(CELL, batch=1)), rel=0.15
        )
        longer = meter.peak_bytes(tmp_path / "1", tmp_path / "tiny", replace(CELL, batch=64, tokens=128))
        with pytest.raises(LimbertError, match="measuring the memory of absent failed"):
            meter.peak_bytes(tmp_path / "absent", tmp_path / "tiny", CELL)
    assert one is not None
    assert four is not None
    assert longer is not None
    files = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("1", "4")]
    assert four - one == pytest.approx(files[1] - files[0], rel=0.2)
    assert longer - one > 64 * 128 * 2048 * 4  # the widest activations


def test_runs_take_turns_and_slow_ones_get_fewer_rounds() -> None:
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    times = time_interleaved(runs, rounds=7)
    assert calls == ["a", "b"] * 10  # three of them to warm up
    assert [len(one) for one in times.values()] == [7, 7]
    assert len(time_interleaved(runs, rounds=7, max_seconds=0)["a"]) == MIN_ROUNDS
    assert len(time_interleaved(runs, rounds=7, max_seconds=100)["a"]) == 7


def test_new_rows_replace_their_like_and_no_others(tmp_path: Path) -> None:
    others = [
        replace(ROW, subnet="0.5x0.5"),
        replace(ROW, setup=replace(CELL, batch=1)),
        replace(ROW, setup=replace(CELL, backend="openvino")),
        replace(ROW, hardware={"cpu": "b"}),
    ]
    save_profile(tmp_path, [ROW, *others])
    newer = replace(ROW, latency_p50_ms=9.0, measured="2026-01-02T00:00:00", versions={"torch": "3"})
    save_profile(tmp_path, [newer])
    assert read_profile(tmp_path / "profile.jsonl") == [newer, *others]
    assert newer.to_dict()["tokens"] == 16
    (tmp_path / "profile.jsonl").write_text('{"subnet": "1x1"}\n')
    with pytest.raises(CheckpointError, match=r"line 1 of .*profile\.jsonl is no row of a profile"):
        save_profile(tmp_path, [newer])
    with pytest.raises(CheckpointError, match="cannot read the profile"):
        read_profile(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "tensorrt"}, "backend is 'tensorrt'; it must be one of torch, onnxruntime, openvino"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"tokens": 65}, "tokens is 65; it must be from 2 to the model's longest input, 64"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_setup(replace(CELL, **change), ElasticModel(make_network("bert")))
