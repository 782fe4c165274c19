"""Policies are data: what is written is what is read, and what means nothing is refused."""

import json

import pytest

from limbert.errors import ConfigError
from limbert.inference.policy import OperatingPoint, Policy, operating_point_policy, operating_points
from limbert.method.early_exit import ExitRule

ENTROPY = ExitRule("entropy", 0.15)
POLICIES = [
    Policy(subnet="0.5x0.75"),
    Policy(gates=True),
    Policy(gates=True, widths=(0.5, 0.55, 0.75, 0.75)),
    Policy(exits=ENTROPY),
    Policy(exits=ExitRule("patience", 1.0), widths=(0.5,)),
    Policy(gates=True, widths=(0.5, 1.0), exits=ExitRule("confidence", 0.9)),
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_saved_policies_come_back(policy: Policy) -> None:
    values = json.loads(json.dumps(policy.to_dict()))
    assert Policy.from_dict(values) == policy
    assert Policy.from_name(policy.name, widths=policy.widths, exits=policy.exits) == policy
    point = OperatingPoint(policy, "accuracy", 0.91, 0.4)
    record = {"operating_points": {"fast": json.loads(json.dumps(point.to_dict()))}}
    assert operating_points(record) == {"fast": point}
    assert operating_point_policy(record, "fast") == policy


def test_names_say_what_runs() -> None:
    assert [policy.name for policy in POLICIES] == [
        "static:0.5x0.75", "width", "width", "depth", "depth", "width+depth",
    ]  # fmt: skip
    assert str(POLICIES[2]) == "width; widths 0.5, 0.55, 0.75, 0.75"
    assert str(POLICIES[3]) == "depth; entropy 0.15"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "both"}, "unknown policy 'both'; write one of static:WIDTHxDEPTH, width, depth, width"),
        ({"name": "depth"}, "policy 'depth' needs an exit threshold"),
        ({"name": "width", "exits": ENTROPY}, "policy 'width' has no exits: leave the exit threshold out"),
        ({"name": "static:1x1", "widths": (0.5,)}, "policy static:1x1 has a fixed size"),
    ],
)
def test_policies_that_mean_nothing_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Policy.from_name(**arguments)
    with pytest.raises(ConfigError, match="a policy needs a sub-network, gates or exits"):
        Policy()


@pytest.mark.parametrize(
    "values", [{}, {"policy": "depth", "exits": 3}, {"policy": "depth", "exits": {"rule": "luck"}}]
)
def test_broken_records_are_named(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="a saved policy needs policy, widths and exits"):
        Policy.from_dict(values)
    with pytest.raises(ConfigError, match="cannot read the saved operating point"):
        operating_points({"operating_points": {"fast": values}})


def test_unknown_points_name_those_that_are_there() -> None:
    with pytest.raises(ConfigError, match="an operating point of this model: none yet, limbert tune makes some"):
        operating_point_policy({}, "fast")
