"""Choice within a budget, from comparable measurements; the options of the public functions."""

import inspect
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from tests.factories.profiles import ROW, SETUP

import limbert
from limbert.core.verb_config import (
    BenchmarkConfig,
    BudgetConfig,
    ExportOptions,
    MeasurementConfig,
    SearchConfig,
    TuneConfig,
)
from limbert.errors import ConfigError
from limbert.evaluation.choose import comparable_rows
from limbert.evaluation.hardware import hardware_info
from limbert.evaluation.results import (
    POLICIES_NAME,
    PROFILE_NAME,
    RESULTS_NAME,
    ProfileRow,
    profile_row_key,
    replace_json_lines,
)
from limbert.files import write_json_lines
from limbert.inference.policy import OperatingPoint, Policy, save_operating_points
from limbert.method.early_exit import ExitRule

COSTS = {"1x1": (20.0, 0.91), "0.5x1": (11.0, 0.90), "0.5x0.5": (6.0, 0.905), "0.25x0.5": (3.1, 0.80)}


def make_row(name: str, *, latency_ms: float | None = None, **changes: object) -> ProfileRow:
    cost = COSTS[name][0] if latency_ms is None else latency_ms
    params = round(1e6 * COSTS[name][0])
    sizes = {"params": params, "flops": 100 * params, "file_bytes": round(4e6 * cost)}
    setup = replace(SETUP, batch=1, tokens=128, **changes)
    return replace(ROW, subnet=name, latency_p50_ms=cost, setup=setup, hardware=hardware_info(), **sizes)


def save_rows(folder: Path, rows: list[ProfileRow]) -> None:
    replace_json_lines(folder / PROFILE_NAME, [row.to_dict() for row in rows], key=profile_row_key)


def make_run(folder: Path, rows: list[ProfileRow]) -> Path:
    (folder / "limbert.json").write_text(json.dumps({"task": {"metrics": ["accuracy", "f1"]}}))
    costs = {"params": 1, "flops": 1}
    results = [{"subnet": name, "metrics": {"accuracy": metric}} | costs for name, (_, metric) in COSTS.items()]
    write_json_lines(folder / RESULTS_NAME, results)
    save_rows(folder, rows)
    return folder


def chosen(folder: Path, **limits: str) -> list[str]:
    return [subnet.profile.subnet for subnet in limbert.choose(folder, **limits).ranked]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path, [make_row(name) for name in COSTS])


def test_highest_metric_within_limits_wins(folder: Path) -> None:
    assert chosen(folder, max_latency="12ms") == ["0.5x0.5", "0.5x1", "0.25x0.5"]
    assert chosen(folder, max_params="12M", max_latency="5ms") == ["0.25x0.5"]
    assert chosen(folder, max_flops="2G")[0] == "1x1"
    assert chosen(folder, max_size="25MB")[0] == "0.5x0.5"
    assert chosen(folder, min_metric="90%", max_latency="0.1s") == ["1x1", "0.5x0.5", "0.5x1"]
    assert chosen(folder, max_latency="6ms") == ["0.5x0.5", "0.25x0.5"]  # a limit may be reached
    assert chosen(folder, min_metric="0.90") == ["0.5x0.5", "0.5x1", "1x1"]  # a minimal metric alone: the fastest
    assert limbert.choose(folder, min_metric="0.90").num_measured == 4


def test_drop_is_counted_from_the_full_sub_network(folder: Path) -> None:
    assert chosen(folder, max_drop="1") == ["0.5x0.5", "0.5x1", "1x1"]  # the fastest first
    assert chosen(folder, max_drop="0.5") == ["0.5x0.5", "1x1"]
    assert chosen(folder, max_drop="0") == ["1x1"]
    assert chosen(folder, max_drop="1", max_latency="5s")[0] == "1x1"  # the best first
    with pytest.raises(ConfigError, match=r"loss of metric 0\.5, 0\.2 points over --max-drop 0\.3"):
        limbert.choose(folder, max_drop="0.3", max_latency="6ms")


def test_runtimes_and_precisions_compete(tmp_path: Path) -> None:
    rows = [make_row(name) for name in COSTS]
    rows += [make_row(name, latency_ms=COSTS[name][0] / 2, backend="openvino", precision="bf16") for name in COSTS]
    int8 = [make_row(name, latency_ms=COSTS[name][0] / 4, backend="openvino", precision="int8") for name in COSTS]
    rows += [replace(row, metric_loss=0.008) for row in int8]
    folder = make_run(tmp_path, rows)

    def best(**limits: str) -> tuple[str, str, float]:
        subnet = limbert.choose(folder, **limits).best
        return subnet.profile.subnet, subnet.profile.setup.precision, round(subnet.drop, 4)

    assert best(max_drop="1") == ("0.5x0.5", "bf16", 0.005)  # 3 ms; in int8 it loses 1.3 points
    assert best(max_drop="1.3") == ("0.5x0.5", "int8", 0.013)
    assert best(max_drop="1", precision="int8") == ("1x1", "int8", 0.008)
    assert best(min_metric="90.5") == ("0.5x0.5", "bf16", 0.005)
    assert best(max_latency="6ms") == ("0.5x0.5", "bf16", 0.005)  # as good as in fp32, and faster
    assert limbert.choose(folder, max_drop="1").num_measured == 12
    with pytest.raises(ConfigError, match="precision fp16"):
        limbert.choose(folder, max_drop="1", precision="fp16")


def test_evaluated_operating_points_compete(tmp_path: Path) -> None:
    rows = [make_row(name) for name in COSTS] + [replace(make_row("1x1", latency_ms=5.0), subnet="balanced")]
    folder = make_run(tmp_path, rows)
    policy = Policy(cascade=("0.25x0.5", "1x1"), exits=ExitRule("entropy", 0.3))
    save_operating_points(folder, {"balanced": OperatingPoint(policy, "accuracy", 0.99, 0.4)})
    results = [
        {"name": "balanced", "data": split, "metrics": {"accuracy": value}}
        for split, value in (("validation", 0.99), ("development", 0.904))
    ]
    write_json_lines(folder / POLICIES_NAME, results[:1])
    assert chosen(folder, max_drop="1")[0] == "0.5x0.5"  # its metric on dev is unknown
    write_json_lines(folder / POLICIES_NAME, results)
    choice = limbert.choose(folder, max_drop="1")
    assert choice.best.is_policy
    assert choice.best.drop == pytest.approx(0.006)
    assert choice.best.to_dict()["policy"] == choice.best.profile.subnet == "balanced"
    assert [one.profile.subnet for one in choice.front] == ["0.25x0.5", "balanced", "0.5x0.5", "1x1"]
    assert chosen(folder, max_drop="0.5")[0] == "0.5x0.5"


def test_unmet_budget_names_the_nearest(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        limbert.choose(folder, max_latency="2ms")
    expected = "nearest is 0.25x0.5 (3.1ms-80.0): median latency 3.1 ms, 1.1 ms (55 %) over --max-latency 2.0 ms"
    assert expected in str(caught.value)
    with pytest.raises(ConfigError, match=r"metric 90\.5, 4\.5 points under --min-metric 95\.0") as caught:
        limbert.choose(folder, min_metric="0.95", max_size="30MB")
    assert "0.5x0.5" in str(caught.value)


def test_rows_of_different_setups_never_mix(tmp_path: Path) -> None:
    rows = [make_row(name) for name in COSTS]
    rows += [make_row(name, latency_ms=COSTS[name][0] / 2, backend="openvino") for name in COSTS]
    rows += [replace(row, setup=replace(row.setup, batch=8)) for row in rows[:4]]
    rows += [replace(row, setup=replace(row.setup, tokens=32)) for row in rows[:4]]
    rows += [replace(row, setup=replace(row.setup, threads=2), measured="2025-01-01T00:00:00") for row in rows[:4]]
    folder = make_run(tmp_path, rows)
    comparable = comparable_rows(folder)
    setup = replace(SETUP, batch=1, tokens=128)
    assert {row.setup for row in comparable} == {setup, replace(setup, backend="openvino")}
    assert len(comparable) == 8
    assert {row.setup for row in comparable_rows(folder, backend="openvino")} == {replace(setup, backend="openvino")}
    comparable = comparable_rows(folder, backend="torch", tokens=32)
    assert {row.setup for row in comparable} == {replace(SETUP, batch=1, tokens=32)}
    assert {row.setup.batch for row in comparable_rows(folder, batch=8)} == {8}
    with pytest.raises(ConfigError, match=r"batch 3.*1, 8"):
        comparable_rows(folder, batch=3)


def test_other_machines_need_their_profile_named(tmp_path: Path) -> None:
    rows = [replace(make_row(name), hardware={"cpu": "phone", "cores": 4, "gpu": None}) for name in COSTS]
    folder = make_run(tmp_path, rows)
    with pytest.raises(ConfigError, match="phone, 4 cores"):
        comparable_rows(folder)
    assert comparable_rows(folder, profile_path=folder / "profile.jsonl") == rows


@pytest.mark.parametrize("verb", ["benchmark", "choose", "export_model", "search", "tune"])
def test_help_shows_every_option(verb: str) -> None:
    configs = {
        "benchmark": [BenchmarkConfig],
        "choose": [BudgetConfig, MeasurementConfig],
        "export_model": [ExportOptions],
        "search": [SearchConfig],
        "tune": [TuneConfig],
    }
    function = getattr(limbert, verb)
    shown = inspect.signature(function).parameters
    for item in [item for config in configs[verb] for item in fields(config)]:
        assert shown[item.name].default == item.default
        assert f"{item.name}: {item.metadata['help']}" in inspect.getdoc(function)
