"""Old public names work for one release, each with a DeprecationWarning."""

import copy

import pytest
import torch
from tests.factories.networks import make_inputs, make_network

import limbert.client
from limbert import Client, ElasticModel, Engine, ExitRule, Policy, Shape, Space, Subnet
from limbert.client import ServerPrediction

SHAPE = Shape(layers=4, heads=4, neurons=8)


def test_subnetworks_and_spaces() -> None:
    space = Space()
    with pytest.warns(DeprecationWarning, match="named_subnets"):
        assert space.named(SHAPE) == {item.name: item.subnet for item in space.named_subnets(SHAPE)}
    with pytest.warns(DeprecationWarning, match="layer_widths"):
        assert Subnet.full(SHAPE).widths() == Subnet.full(SHAPE).layer_widths()


@torch.no_grad()
def test_elastic_model_and_engine() -> None:
    model, inputs = ElasticModel(make_network("bert"), space=Space(layers="first")), make_inputs()
    with pytest.warns(DeprecationWarning, match="max_input_length"):
        assert model.longest_input == model.max_input_length
    with pytest.warns(DeprecationWarning, match="searched_subnets"):
        assert model.found() == model.searched_subnets()
    with model.recorded_states() as states:
        model(**inputs)
    with pytest.warns(DeprecationWarning, match="apply_head"):
        assert torch.equal(model.read_out(states[2], **inputs).logits, model.apply_head(states[2], **inputs).logits)
    policy = Policy(exits=ExitRule("confidence", 0.9))
    with pytest.warns(DeprecationWarning, match="task_type"):
        engine = Engine(model, policy, kind="classification")
    with pytest.warns(DeprecationWarning, match="run_all_exits"):
        old, _ = engine.run_to_the_end(inputs)
    assert torch.equal(old, engine.run_all_exits(inputs)[0])
    with pytest.raises(TypeError), pytest.warns(DeprecationWarning, match="task_type"):
        Engine(model, policy, kind="classification", task_type="classification")


def test_policies_and_exit_rules() -> None:
    with pytest.warns(DeprecationWarning, match="from_name"):
        assert Policy.named("static:0.5x1") == Policy.from_name("static:0.5x1")
    rule, logits = ExitRule("confidence", 0.6), [torch.randn(5, 3)]
    with pytest.warns(DeprecationWarning, match="should_exit"):
        assert torch.equal(
            rule.leaving(answers=logits, kind="classification"), rule.should_exit(logits, task_type="classification")
        )


def test_client_and_its_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(DeprecationWarning, match="retry_timeout"):
        client = Client("http://127.0.0.1:9", patience=1.0)
    monkeypatch.setattr(client, "info", lambda: {"task": "regression", "max_client_batch_size": 4})
    with pytest.warns(DeprecationWarning, match="task_type"):
        assert (client.kind, client.max_batch, client.healthy()) == ("regression", 4, False)
    with pytest.warns(DeprecationWarning, match="ServerPrediction"):
        assert limbert.client.Prediction is ServerPrediction
    with pytest.warns(DeprecationWarning, match="subnet"):
        assert ServerPrediction("a", 0.5, {}, "0.5x1").size == "0.5x1"
    with pytest.raises(AttributeError):
        limbert.client.Nothing  # noqa: B018


def test_new_names_do_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    copy.deepcopy(Policy.from_name("static:0.5x1"))
    Client("http://127.0.0.1:9", retry_timeout=1.0)
    repr(ServerPrediction("a", 0.5, {}, None))
    assert not [warning for warning in recwarn if warning.category is DeprecationWarning]
