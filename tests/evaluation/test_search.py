"""A search that was killed ends where an uninterrupted one does; what it finds runs as what it was measured as."""

import json
from pathlib import Path

import pytest
import torch
from tests.factories.examples import make_examples
from tests.factories.gated_models import make_model
from tests.factories.networks import CONFIGS, make_inputs, make_network
from tests.factories.runs import needs_encoder

from limbert import ElasticModel, Engine, Policy, Space, Subnet
from limbert.core.pareto import pareto_front
from limbert.data.tasks import Task
from limbert.errors import CheckpointError, ConfigError, SubnetError
from limbert.evaluation.results import SubnetResult
from limbert.evaluation.search import (
    Journal,
    SubnetEncoding,
    SubnetEvaluator,
    TrialResult,
    save_found_results,
    save_found_subnets,
    search_subnets,
)
from limbert.evaluation.subnets import evaluate
from limbert.model.checkpoint import SEARCHED_SUBNETS_KEY, searched_subnet_name

TASK = Task("own", "classification", ("a", "b", "c"), ("accuracy",))
CONDITIONS = {"objective": "flops", "examples": "some"}


def model_of(case: str) -> ElasticModel:
    return ElasticModel(make_network(case), space=Space(widths=(0.5, 1.0), depths=(0.5, 1.0), layers="first"))


class Counted:
    """A stand-in for measuring: quick, and dependent on every gene; dies when told to."""

    def __init__(self, dies_after: int = 10**9) -> None:
        self.asked: list[Subnet] = []
        self._left = dies_after

    def __call__(self, subnet: Subnet) -> TrialResult:
        if len(self.asked) == self._left:
            raise KeyboardInterrupt
        self.asked.append(subnet)
        work = sum((index + 1) * heads for index, heads in zip(subnet.layers, subnet.heads, strict=True))
        return TrialResult(subnet, (work * 37 % 101) / 101, (sum(subnet.heads) + sum(subnet.neurons)) / 1000)


def run(folder: Path, measure: Counted, *, trials: int, seed: int = 1) -> list[TrialResult]:
    model = model_of("bert")
    journal = Journal(folder / "search.jsonl", CONDITIONS)
    grid = list(model.subnets().values())
    return search_subnets(SubnetEncoding(model), grid, evaluate=measure, journal=journal, trials=trials, seed=seed)


@pytest.mark.parametrize("case", CONFIGS)
def test_genes_describe_sub_networks_that_the_model_can_run(case: str) -> None:
    model = model_of(case)
    genes = SubnetEncoding(model)
    for subnet in model.subnets().values():
        assert genes.decode(genes.encode(subnet)) == subnet
    for values in genes.warm_start(list(model.subnets().values()), count=200, seed=3):
        subnet = genes.decode(values)
        model.check(subnet)
        assert len(subnet.layers) >= 2  # no shallower than trained
        assert {*subnet.heads} <= {3, 6}
    assert len(genes.decode(dict.fromkeys(genes.cardinalities, 0)).layers) == 2


def test_a_killed_search_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = run(tmp_path / "whole", Counted(), trials=90)
    assert len({one.subnet for one in whole}) == 90
    assert [one.subnet for one in whole[:4]] == list(model_of("bert").subnets().values())
    asked = []
    for left in (7, 40, 10**9):
        measure = Counted(left)
        try:
            killed = run(tmp_path / "killed", measure, trials=90)
        except KeyboardInterrupt:
            with (tmp_path / "killed" / "search.jsonl").open("a") as file:
                file.write('{"subnet": "found-')  # a line that the kill cut short
        asked += measure.asked
    assert killed == whole
    assert asked == [one.subnet for one in whole]  # in the same order, none of them twice
    texts = [(tmp_path / name / "search.jsonl").read_text() for name in ("whole", "killed")]
    assert texts[0] == texts[1]
    measure = Counted()
    assert run(tmp_path / "killed", measure, trials=110)[:90] == whole  # a longer search goes on
    assert len(measure.asked) == 20
    assert run(tmp_path / "killed", Counted(), trials=90, seed=2) != whole


def test_a_search_ends_when_there_is_nothing_left(tmp_path: Path) -> None:
    model = ElasticModel(make_network("bert"), space=Space(widths=(1.0,), depths=(0.75, 1.0)))
    journal = Journal(tmp_path / "search.jsonl", CONDITIONS)
    found = search_subnets(
        SubnetEncoding(model), list(model.subnets().values()), evaluate=Counted(), journal=journal, trials=100, seed=1
    )
    assert {one.subnet.layers for one in found} == {(0, 1, 2, 3), (0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)}


def test_measurements_under_other_conditions_are_kept_and_not_used(tmp_path: Path) -> None:
    run(tmp_path, Counted(), trials=5)
    other = Journal(tmp_path / "search.jsonl", CONDITIONS | {"examples": "others"})
    assert len(other) == 0
    other.add(Counted()(model_of("bert").full))
    assert len(Journal(tmp_path / "search.jsonl", CONDITIONS)) == 5
    (tmp_path / "search.jsonl").write_text("broken\n")
    with pytest.raises(CheckpointError, match=r"line 1 of .*search\.jsonl"):
        Journal(tmp_path / "search.jsonl", CONDITIONS)


@needs_encoder
def test_a_judgement_is_what_evaluating_gives() -> None:
    model, examples = make_model("bert", vocab_size=30522), make_examples()
    subnet = Subnet((0, 2, 3), (6, 2, 3), (30, 60, 20))
    judged = SubnetEvaluator(model, examples, task=TASK, objective="flops")(subnet)
    one, full = evaluate(model, {"dev": examples}, task=TASK, subnets={"found-x": subnet, "1x1": model.full})
    assert judged.metric_value == one.metrics["accuracy"]
    assert judged.relative_cost == pytest.approx(one.flops / full.flops)
    assert one.to_dict()["width"] is None
    latency = SubnetEvaluator(model, examples, task=TASK, objective="latency", rounds=7)
    assert latency(model.full).relative_cost == 1.0
    assert 0 < latency(Subnet((0,), (1,), (1,))).relative_cost < 1
    assert latency.conditions["tokens"] == int(sorted(examples.lengths)[2])
    with pytest.raises(ConfigError, match="objective is 'speed'"):
        SubnetEvaluator(model, examples, task=TASK, objective="speed")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tokens is 9999"):
        SubnetEvaluator(model, examples, task=TASK, objective="latency", latency_tokens=9999)


def test_found_sub_networks_are_kept_by_name_and_run_everywhere(tmp_path: Path) -> None:
    subnet = Subnet((0, 2, 3), (6, 2, 3), (30, 60, 20))
    name = searched_subnet_name(subnet)
    model_of("bert").save_pretrained(tmp_path / "run")
    save_found_subnets(tmp_path / "run", [TrialResult(subnet, 0.9, 0.4)], metric="accuracy", objective="flops")
    save_found_results(tmp_path / "run", [SubnetResult(name, 10, 20.0, {"accuracy": 0.8})])
    model = ElasticModel.from_pretrained(tmp_path / "run")
    assert model.searched_subnets() == {name: subnet}
    assert model.subnet(name) == subnet
    with pytest.raises(SubnetError, match=f"one that was found: {name}"):
        model.subnet("found-00000")
    inputs = make_inputs()
    answer = Engine(model, Policy(subnet=name), task_type="classification").run(inputs)
    with torch.no_grad():
        torch.testing.assert_close(answer.logits, model.view(subnet)(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert answer.trace.widths[0].tolist() == pytest.approx([1.0, 0.0, 2 / 6, 0.5])
    # another search for the same objective replaces it, and its results go
    other = Subnet((0, 1), (6, 2), (30, 60))
    save_found_subnets(tmp_path / "run", [TrialResult(other, 0.9, 0.4)], metric="accuracy", objective="flops")
    save_found_subnets(tmp_path / "run", [TrialResult(subnet, 0.9, 0.5)], metric="accuracy", objective="latency")
    record = json.loads((tmp_path / "run" / "limbert.json").read_text())
    assert {key: value["objective"] for key, value in record[SEARCHED_SUBNETS_KEY].items()} == {
        name: "latency",
        searched_subnet_name(other): "flops",
    }
    save_found_subnets(tmp_path / "run", [], metric="accuracy", objective="latency")
    save_found_results(tmp_path / "run", [SubnetResult(searched_subnet_name(other), 10, 20.0, {"accuracy": 0.7})])
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [row["subnet"] for row in rows] == [searched_subnet_name(other)]


def test_the_front_holds_what_nothing_as_cheap_beats() -> None:
    points = [(1.0, 0.9), (0.5, 0.8), (0.5, 0.7), (0.6, 0.8), (0.2, 0.3), (0.3, 0.2)]
    front = pareto_front(points, cost=lambda one: one[0], value=lambda one: one[1])
    assert front == [(0.2, 0.3), (0.5, 0.8), (1.0, 0.9)]
