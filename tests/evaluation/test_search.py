"""Search: encodings the model can run, resumption from finished trials, and results saved by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.factories.examples import TASK, make_examples
from tests.factories.gated_models import make_model
from tests.factories.networks import CONFIGS, make_inputs, make_network
from tests.factories.runs import needs_encoder

from limbert import ElasticModel, Engine, Policy, Space, Subnet
from limbert.core.verb_config import SearchConfig
from limbert.errors import CheckpointError, ConfigError, SubnetError
from limbert.evaluation.encoding import SubnetEncoding
from limbert.evaluation.evaluate import evaluate_subnets
from limbert.evaluation.results import SubnetResult
from limbert.evaluation.search import (
    SubnetEvaluator,
    TrialResult,
    save_searched_results,
    save_searched_subnets,
    search_subnets,
)
from limbert.model.checkpoint import SEARCHED_SUBNETS_KEY, searched_subnet_name


def model_of(case: str) -> ElasticModel:
    return ElasticModel(make_network(case), space=Space(widths=(0.5, 1.0), depths=(0.5, 1.0), layers="first"))


class FakeEvaluator:
    """A quick evaluation that depends on every layer's heads; interrupted after a number of calls."""

    def __init__(self, max_calls: int = 10**9) -> None:
        self.evaluated: list[Subnet] = []
        self._max_calls = max_calls

    def __call__(self, subnet: Subnet) -> TrialResult:
        if len(self.evaluated) == self._max_calls:
            raise KeyboardInterrupt
        self.evaluated.append(subnet)
        work = sum((index + 1) * heads for index, heads in zip(subnet.layers, subnet.heads, strict=True))
        return TrialResult(subnet, (work * 37 % 101) / 101, (sum(subnet.heads) + sum(subnet.neurons)) / 1000)


def run_search(journal: Path, evaluator: Any, model: ElasticModel | None = None, **changes: Any) -> list[TrialResult]:
    model = model or model_of("bert")
    options = {"study_name": "study", "seed": 1} | changes
    grid = list(model.subnets().values())
    return search_subnets(SubnetEncoding(model), grid, evaluate=evaluator, journal=journal, **options)


@pytest.mark.parametrize("case", CONFIGS)
def test_encodings_are_sub_networks_the_model_runs(case: str) -> None:
    model = model_of(case)
    encoding = SubnetEncoding(model)
    for subnet in model.subnets().values():
        assert encoding.decode(encoding.encode(subnet)) == subnet
    for code in encoding.warm_start(list(model.subnets().values()), count=200, seed=3):
        subnet = encoding.decode(code)
        model.check(subnet)
        assert len(subnet.layers) >= 2  # no shallower than trained
        assert {*subnet.heads} <= {3, 6}
    assert len(encoding.decode(dict.fromkeys(encoding.cardinalities, 0)).layers) == 2


def test_interrupted_search_resumes_from_finished_trials(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    evaluated: list[Subnet] = []
    for max_calls in (7, 30, 10**9):
        evaluator = FakeEvaluator(max_calls)
        try:
            results = run_search(journal, evaluator, trials=60)
        except KeyboardInterrupt:
            with journal.open("a") as file:
                file.write('{"op_code":')  # a line that the kill cut short
            (tmp_path / "journal.lock").symlink_to("journal")
        evaluated += evaluator.evaluated
    assert len(evaluated) == len({*evaluated}) == 60  # none of them twice
    assert evaluated[:4] == [*model_of("bert").subnets().values()]  # the grid first
    assert {result.subnet for result in results} == {*evaluated}
    evaluator = FakeEvaluator()
    assert len(run_search(journal, evaluator, trials=70)) == 70  # a longer search continues
    assert len(evaluator.evaluated) == 10
    evaluator = FakeEvaluator()
    assert run_search(journal, evaluator, trials=9, study_name="other")
    assert len(evaluator.evaluated) == 9  # other conditions, other results
    model = ElasticModel(make_network("bert"), space=Space(widths=(1.0,), depths=(0.75, 1.0)))
    results = run_search(tmp_path / "few", FakeEvaluator(), model=model, trials=100)
    layers = {(0, 1, 2, 3), (0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)}
    assert {result.subnet.layers for result in results} == layers  # it ends when nothing is left


def test_two_searches_share_no_journal(tmp_path: Path) -> None:
    def search_again(subnet: Subnet) -> TrialResult:
        run_search(tmp_path / "journal", FakeEvaluator(), trials=5)
        raise AssertionError(subnet)

    with pytest.raises(ConfigError, match="another search"):
        run_search(tmp_path / "journal", search_again, trials=5)
    (tmp_path / "journal").write_text("broken\nbroken\n")
    with pytest.raises(CheckpointError, match="journal"):
        run_search(tmp_path / "journal", FakeEvaluator(), trials=5)


@needs_encoder
def test_trials_equal_an_evaluation() -> None:
    model, examples = make_model("bert", vocab_size=30522), make_examples()
    subnet = Subnet((0, 2, 3), (6, 2, 3), (30, 60, 20))
    trial = SubnetEvaluator(model, examples, task=TASK, config=SearchConfig())(subnet)
    subnets = {"found-x": subnet, "1x1": model.full}
    one, full = evaluate_subnets(model, {"dev": examples}, task=TASK, subnets=subnets)
    assert trial.metric_value == one.metrics["accuracy"]
    assert trial.relative_cost == pytest.approx(one.flops / full.flops)
    assert one.to_dict()["width"] is None
    latency = SubnetEvaluator(model, examples, task=TASK, config=SearchConfig(objective="latency"), rounds=7)
    assert latency(model.full).relative_cost == 1.0
    assert 0 < latency(Subnet((0,), (1,), (1,))).relative_cost < 1
    assert f"1x{sorted(examples.lengths)[2]} tokens" in latency.study_name
    with pytest.raises(ConfigError, match="speed"):
        SearchConfig(objective="speed")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="9999"):
        SubnetEvaluator(model, examples, task=TASK, config=SearchConfig(objective="latency", latency_tokens=9999))


@needs_encoder
def test_latency_is_timed_in_another_runtime() -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    model, examples = make_model("bert", vocab_size=30522), make_examples()
    config = SearchConfig(objective="latency", latency_runtime="onnxruntime")
    evaluator = SubnetEvaluator(model, examples, task=TASK, config=config, rounds=5)
    assert evaluator(Subnet((0,), (1,), (1,))).relative_cost > 0
    assert evaluator.study_name.endswith("onnxruntime")  # not continued by a search in torch
    with pytest.raises(ConfigError, match="tensorrt"):
        SubnetEvaluator(model, examples, task=TASK, config=replace(config, latency_runtime="tensorrt"))


def test_searched_sub_networks_are_saved_by_name(tmp_path: Path) -> None:
    subnet = Subnet((0, 2, 3), (6, 2, 3), (30, 60, 20))
    name = searched_subnet_name(subnet)
    model_of("bert").save_pretrained(tmp_path / "run")
    save_searched_subnets(tmp_path / "run", [TrialResult(subnet, 0.9, 0.4)], metric="accuracy", objective="flops")
    save_searched_results(tmp_path / "run", [SubnetResult(name, 10, 20.0, {"accuracy": 0.8})])
    model = ElasticModel.from_pretrained(tmp_path / "run")
    assert model.searched_subnets() == {name: subnet}
    assert model.subnet(name) == subnet
    with pytest.raises(SubnetError, match=name):
        model.subnet("found-00000")
    inputs = make_inputs()
    output = Engine(model, Policy(subnet=name), task_type="classification").run(inputs)
    with torch.no_grad():
        torch.testing.assert_close(output.logits, model.view(subnet)(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert output.trace.widths[0].tolist() == pytest.approx([1.0, 0.0, 2 / 6, 0.5])


def test_a_later_search_replaces_its_objective(tmp_path: Path) -> None:
    run, first, second = tmp_path / "run", Subnet((0, 2), (6, 2), (30, 60)), Subnet((0, 1), (6, 2), (30, 60))
    model_of("bert").save_pretrained(run)
    save_searched_subnets(run, [TrialResult(first, 0.9, 0.4)], metric="accuracy", objective="flops")
    save_searched_results(run, [SubnetResult(searched_subnet_name(first), 10, 20.0, {"accuracy": 0.8})])
    save_searched_subnets(run, [TrialResult(second, 0.9, 0.4)], metric="accuracy", objective="flops")
    save_searched_subnets(run, [TrialResult(first, 0.9, 0.5)], metric="accuracy", objective="latency")
    saved = json.loads((run / "limbert.json").read_text())[SEARCHED_SUBNETS_KEY]
    objectives = {searched_subnet_name(first): "latency", searched_subnet_name(second): "flops"}
    assert {name: values["objective"] for name, values in saved.items()} == objectives
    save_searched_subnets(run, [], metric="accuracy", objective="latency")
    save_searched_results(run, [SubnetResult(searched_subnet_name(second), 10, 20.0, {"accuracy": 0.7})])
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [row["subnet"] for row in rows] == [searched_subnet_name(second)]
