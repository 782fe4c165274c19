"""Sub-networks follow the rounding and layer rules of the two papers."""

import pytest

from limbert import Shape, Space, Subnet
from limbert.core.space import parse_width_depth
from limbert.errors import ConfigError, SubnetError

BERT_BASE = Shape(layers=12, heads=12, neurons=3072)


def layers(total: int, depth: float, rule: str) -> tuple[int, ...]:
    return Subnet.uniform(Shape(total, 12, 24), depth=depth, layers=rule).layers


def test_spread_keeps_the_layers_of_dynabert() -> None:
    assert {*range(12)} - {*layers(12, 0.75, "spread")} == {3, 7, 11}
    assert layers(12, 0.5, "spread") == (0, 2, 4, 6, 8, 10)
    assert layers(6, 0.75, "spread") == (0, 1, 2, 4)
    assert layers(10, 0.6, "spread") == (0, 1, 3, 5, 6, 8)
    assert layers(28, 0.28, "spread")[7] == 25  # 7 / 0.28 is exactly 25; in floats it is a little less


def test_first_keeps_the_lowest_layers() -> None:
    assert layers(12, 0.75, "first") == tuple(range(9))
    assert layers(6, 0.5, "first") == (0, 1, 2)


def test_neurons_follow_the_rounded_heads() -> None:
    subnet = Subnet.uniform(BERT_BASE, width=0.55)
    assert set(subnet.heads) == {7}
    assert set(subnet.neurons) == {7 * 3072 // 12}
    assert subnet == Subnet.uniform(BERT_BASE, width=0.6)


@pytest.mark.parametrize("rule", ["first", "spread"])
@pytest.mark.parametrize("total", range(1, 25))
def test_every_depth_keeps_existing_layers(total: int, rule: str) -> None:
    for percent in range(1, 101):
        kept = round(percent / 100 * total)
        if kept == 0:
            with pytest.raises(SubnetError, match="keeps no layer"):
                layers(total, percent / 100, rule)
        else:
            chosen = layers(total, percent / 100, rule)
            assert len(chosen) == len({*chosen}) == kept
            assert 0 <= min(chosen) <= max(chosen) < total


def test_errors_name_value_and_allowed_values() -> None:
    with pytest.raises(SubnetError, match=r"width 0.03 of 12 heads keeps no head; one head is 0.0833"):
        Subnet.uniform(BERT_BASE, width=0.03)
    assert Subnet.uniform(BERT_BASE, width=0.0833).heads[0] == 1
    with pytest.raises(SubnetError, match=r"--widths 0.5,1 --depths 0.5,1") as caught:
        Space(depths=(0.5, 1.0)).named_subnets(Shape(2, 2, 8))
    assert "\n" not in str(caught.value)
    assert len(Space((0.5, 1.0), (0.5, 1.0)).named_subnets(Shape(2, 2, 8))) == 4
    with pytest.raises(SubnetError, match=r"depth 1.5 is not in \(0, 1\]"):
        Subnet.uniform(BERT_BASE, depth=1.5)
    with pytest.raises(SubnetError, match="unknown layer rule 'last'; allowed: first, spread"):
        Subnet.uniform(BERT_BASE, layers="last")
    for broken in (
        ((), (), ()),
        ((1, 0), (1, 1), (1, 1)),
        ((0,), (0,), (1,)),
        ((0,), (1, 1), (1,)),
        ((-1,), (1,), (1,)),
    ):
        with pytest.raises(SubnetError):
            Subnet(*broken)


def test_name_is_width_x_depth() -> None:
    space = Space(layers="first")
    assert space.subnet(BERT_BASE, "0.5x0.75") == Subnet.uniform(BERT_BASE, width=0.5, depth=0.75, layers="first")
    for name in ("0.5", "0.5x", "wide x deep", "1x1x1", ""):
        with pytest.raises(SubnetError, match="write WIDTHxDEPTH"):
            parse_width_depth(name)


def test_space_lists_subnetworks_once_largest_first() -> None:
    named = {item.name: item.subnet for item in Space().named_subnets(BERT_BASE)}
    assert len(named) == 12
    assert next(iter(named)) == "1x1"
    assert named["1x1"] == Subnet.full(BERT_BASE)
    space = Space(widths=(0.55, 0.6, 1.0), depths=(1.0,))
    assert [item.name for item in space.named_subnets(BERT_BASE)] == ["1x1", "0.6x1"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widths": ()}, "widths must be fractions in .* got nothing"),
        ({"widths": (0.5,)}, "include 1.0, got 0.5"),
        ({"depths": (0.0, 1.0)}, "depths must be fractions"),
        ({"depths": (0.5, 1.0, 2.0)}, "depths must be fractions"),
        ({"layers": "odd"}, "unknown layer rule 'odd'"),
    ],
)
def test_invalid_spaces_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Space(**values)


def test_space_round_trips_through_json() -> None:
    space = Space(widths=(0.3, 1.0), depths=(0.7, 1.0), layers="first")
    assert Space.from_dict(space.to_dict()) == space
    with pytest.raises(ConfigError):
        Space.from_dict({"widths": 3})
