"""Policies as data: saved ones are read back, combinations without meaning and unknown names are refused."""

import json
from dataclasses import replace
from typing import Any

import pytest

from limbert.errors import ConfigError
from limbert.inference.policy import OperatingPoint, Policy, named_policy, operating_points
from limbert.method.early_exit import ExitRule

ENTROPY = ExitRule("entropy", 0.15)
POLICIES = [
    Policy(subnet="0.5x0.75"),
    Policy(gates=True),
    Policy(gates=True, widths=(0.5, 0.55, 0.75, 0.75)),
    Policy(exits=ENTROPY),
    Policy(exits=ExitRule("patience", 1.0), widths=(0.5,)),
    Policy(gates=True, widths=(0.5, 1.0), exits=ExitRule("confidence", 0.9)),
    Policy(cascade=("0.25x0.5", "1x1"), exits=ENTROPY),
    Policy(gates=True, exits=ENTROPY, temperatures=(2.0, 1.5)),
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_saved_policies_are_read_back(policy: Policy) -> None:
    values = json.loads(json.dumps(policy.to_dict()))
    assert Policy.from_dict(values) == policy
    named = Policy.from_name(policy.name, widths=policy.widths, exits=policy.exits)
    assert replace(named, temperatures=policy.temperatures) == policy
    point = OperatingPoint(policy, "accuracy", 0.91, 0.4)
    record = {"operating_points": {"fast": json.loads(json.dumps(point.to_dict()))}}
    assert operating_points(record) == {"fast": point}
    assert named_policy("fast", record) == policy


@pytest.mark.parametrize(
    "wrong",
    [
        {"cascade": ("1x1",)},
        {"gates": True},
        {"widths": (0.5,)},
        {"exits": None},
        {"exits": ExitRule("patience", 1.0)},
        {"temperatures": (1.0,)},
        {"temperatures": (0.0, 1.0)},
        {"cascade": ("small", "1x1")},
    ],
    ids=str,
)
def test_impossible_cascades_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(Policy(cascade=("0.25x0.5", "1x1"), exits=ENTROPY), **wrong)


@pytest.mark.parametrize(
    "values", [{}, {"policy": "depth", "exits": 3}, {"policy": "depth", "exits": {"rule": "luck"}}]
)
def test_broken_records_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="saved policy"):
        Policy.from_dict(values)
    with pytest.raises(ConfigError, match="operating point"):
        operating_points({"operating_points": {"fast": values}})


def test_settings_belong_to_dynamic_policies() -> None:
    with pytest.raises(ConfigError, match="needs"):
        Policy()
    with pytest.raises(ConfigError, match="balanced"):
        Policy(subnet="balanced")
    with pytest.raises(ConfigError, match="limbert tune"):
        named_policy("fast", {})
    for arguments in ({"name": "width", "exits": ENTROPY}, {"name": "static:1x1", "widths": (0.5,)}):
        with pytest.raises(ConfigError, match=arguments["name"]):
            Policy.from_name(**arguments)
    assert named_policy("depth", {}, task_type="regression", exit_threshold=1.0).exits == ExitRule("patience", 1.0)
    record = {"operating_points": {"fast": OperatingPoint(POLICIES[0], "accuracy", 0.9, 0.4).to_dict()}}
    for settings in ({"widths": (0.5,)}, {"exit_threshold": 0.1}, {"exit_rule": "entropy"}):
        with pytest.raises(ConfigError, match="fast"):
            named_policy("fast", record, **settings)
    with pytest.raises(ConfigError, match="exit threshold"):
        named_policy("depth", {}, exit_rule="entropy")
