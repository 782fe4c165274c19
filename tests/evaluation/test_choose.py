"""The choice is the best of what was measured in one way, and a budget that cannot be met says by how much."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.factories.profiles import CELL, ROW

from limbert.errors import CheckpointError, ConfigError, SubnetError
from limbert.evaluation.choose import (
    ProfileFilter,
    comparable_rows,
    describe_unmet_budget,
    measured_subnets,
    parse_constraints,
    rank_within_budget,
    resolve_measured_names,
)
from limbert.evaluation.hardware import hardware_info
from limbert.evaluation.profile_rows import ProfileRow, save_profile
from limbert.evaluation.results import SubnetResult

COSTS = {"1x1": (20.0, 0.91), "0.5x1": (11.0, 0.90), "0.5x0.5": (6.0, 0.905), "0.25x0.5": (3.1, 0.80)}


def row(name: str, *, ms: float | None = None, **changes: object) -> ProfileRow:
    cost = COSTS[name][0] if ms is None else ms
    sizes = {
        "params": round(1e6 * COSTS[name][0]),
        "flops": round(1e8 * COSTS[name][0]),
        "file_bytes": round(4e6 * cost),
    }
    cell = replace(CELL, batch=1, tokens=128, **changes)
    return replace(ROW, subnet=name, latency_p50_ms=cost, setup=cell, hardware=hardware_info(), **sizes)


def make_run(folder: Path, rows: list[ProfileRow]) -> Path:
    (folder / "limbert.json").write_text(json.dumps({"task": {"metrics": ["accuracy", "f1"]}}))
    results = [
        {"subnet": name, "params": 1, "flops": 1, "metrics": {"accuracy": metric}}
        for name, (_, metric) in COSTS.items()
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in results))
    save_profile(folder, rows)
    return folder


def chosen(folder: Path, **given: str) -> list[str]:
    limits = parse_constraints({f"--{name.replace('_', '-')}": text for name, text in given.items()})
    known = measured_subnets(folder, comparable_rows(folder, ProfileFilter()))
    return [one.profile.subnet for one in rank_within_budget(known, limits)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path, [row(name) for name in COSTS])


def test_the_highest_metric_within_the_limits_wins(folder: Path) -> None:
    assert chosen(folder, max_latency="12ms") == ["0.5x0.5", "0.5x1", "0.25x0.5"]
    assert chosen(folder, max_params="12M", max_latency="5ms") == ["0.25x0.5"]
    assert chosen(folder, max_flops="2G")[0] == "1x1"
    assert chosen(folder, max_size="25MB")[0] == "0.5x0.5"
    assert chosen(folder, min_metric="90%", max_latency="0.1s") == ["1x1", "0.5x0.5", "0.5x1"]
    assert chosen(folder, max_latency="6ms") == ["0.5x0.5", "0.25x0.5"]  # a limit may be reached


def test_a_least_metric_alone_asks_for_the_fastest(folder: Path) -> None:
    assert chosen(folder, min_metric="0.90") == ["0.5x0.5", "0.5x1", "1x1"]


def test_what_cannot_be_met_is_said_with_the_nearest(folder: Path) -> None:
    known = measured_subnets(folder, comparable_rows(folder, ProfileFilter()))
    limits = parse_constraints({"--max-latency": "2ms"})
    assert rank_within_budget(known, limits) == []
    text = describe_unmet_budget(known, limits)
    assert text == (
        "cannot be met; nearest is 0.25x0.5 (3.1ms-80.0): "
        "median latency 3.1 ms, 1.1 ms (55 %) over --max-latency 2.0 ms"
    )
    text = describe_unmet_budget(known, parse_constraints({"--min-metric": "0.95", "--max-size": "30MB"}))
    assert "0.5x0.5" in text
    assert "metric 90.5, 4.5 points under --min-metric 95.0" in text


def test_rows_that_were_measured_differently_are_never_mixed(tmp_path: Path) -> None:
    rows = [row(name) for name in COSTS]
    rows += [row(name, ms=COSTS[name][0] / 2, backend="openvino") for name in COSTS]
    rows += [replace(one, setup=replace(one.setup, batch=8)) for one in rows[:4]]
    rows += [replace(one, setup=replace(one.setup, tokens=32)) for one in rows[:4]]
    rows += [replace(one, setup=replace(one.setup, threads=2), measured="2025-01-01T00:00:00") for one in rows[:4]]
    folder = make_run(tmp_path, rows)
    found = comparable_rows(folder, ProfileFilter())
    assert {one.setup for one in found} == {replace(CELL, backend="openvino", batch=1, tokens=128)}
    assert len(found) == 4
    found = comparable_rows(folder, ProfileFilter(backend="torch", tokens=32))
    assert {one.setup for one in found} == {replace(CELL, batch=1, tokens=32)}
    assert {one.setup.batch for one in comparable_rows(folder, ProfileFilter(batch=8))} == {8}
    with pytest.raises(ConfigError, match=r"no measurement with batch 3 in .*; measured: 1, 8"):
        comparable_rows(folder, ProfileFilter(batch=3))
    with pytest.raises(ConfigError, match="no measurement with backend tensorrt"):
        comparable_rows(folder, ProfileFilter(backend="tensorrt"))


def test_another_machine_counts_only_when_it_is_asked_for(tmp_path: Path) -> None:
    elsewhere = [replace(row(name), hardware={"cpu": "phone", "cores": 4, "gpu": None}) for name in COSTS]
    folder = make_run(tmp_path, elsewhere)
    with pytest.raises(ConfigError, match=r"measured on another machine \(phone, 4 cores\)"):
        comparable_rows(folder, ProfileFilter())
    assert comparable_rows(folder, ProfileFilter(), profile_path=folder / "profile.jsonl") == elsewhere
    (folder / "profile.jsonl").unlink()
    with pytest.raises(CheckpointError, match="run limbert profile"):
        comparable_rows(folder, ProfileFilter())


def test_measured_names_stand_for_what_was_measured(folder: Path) -> None:
    assert [one.measured_name for one in measured_subnets(folder, comparable_rows(folder, ProfileFilter()))][
        3
    ] == "3.1ms-80.0"
    assert resolve_measured_names(folder, ["3.1ms-80.0", "0.5x1", "found-12345"]) == [
        "0.25x0.5",
        "0.5x1",
        "found-12345",
    ]
    with pytest.raises(SubnetError, match=r"no sub-network of .* was measured as 3\.2ms-80\.0; near it: 3\.1ms-80\.0"):
        resolve_measured_names(folder, ["3.2ms-80.0"])
    save_profile(folder, [row("0.5x1", ms=3.1, backend="openvino")])
    assert resolve_measured_names(folder, ["3.1ms-90.0"]) == ["0.5x1"]
    results = (folder / "results.jsonl").read_text().replace("0.9}", "0.8}")
    (folder / "results.jsonl").write_text(results)
    with pytest.raises(SubnetError, match=r"3\.1ms-80\.0 could be 0\.25x0\.5 or 0\.5x1"):
        resolve_measured_names(folder, ["3.1ms-80.0"])


def test_the_metric_is_the_mean_over_several_development_sets() -> None:
    metrics = {"matched/accuracy": 0.5, "mismatched/accuracy": 0.7, "matched/f1": 0.1}
    assert SubnetResult("1x1", 1, 1.0, metrics).mean_metric("accuracy") == pytest.approx(0.6)
