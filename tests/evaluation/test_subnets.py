"""What is measured for a sub-network is what it gives example by example."""

import numpy as np
import torch
from tests.factories.examples import TEXTS, make_examples
from tests.factories.networks import make_network
from tests.factories.runs import needs_encoder

from limbert import ElasticModel
from limbert.data.tasks import Task
from limbert.evaluation.latency import median_latency
from limbert.evaluation.subnets import count_parameters, evaluate
from limbert.inference.policy import Policy
from limbert.inference.predict import predict, predict_subnet_logits
from limbert.model.flops import CostModel

pytestmark = needs_encoder
TASK = Task("own", "classification", ("a", "b", "c"), ("accuracy",))


def make_model() -> ElasticModel:
    return ElasticModel(make_network("bert", vocab_size=30522))


@torch.no_grad()
def test_every_example_gets_what_it_gets_alone_at_any_batch_size() -> None:
    model, examples = make_model(), make_examples()
    for batch_size in (1, 2, 5):
        answers = predict_subnet_logits(model, examples, subnets=model.subnets(), batch_size=batch_size)
        for name, subnet in model.subnets().items():
            for index in range(len(TEXTS)):
                one = {key: value for key, value in examples.collate([index]).items() if key != "labels"}
                alone = model.view(subnet)(**one).logits[0].numpy()
                np.testing.assert_allclose(answers[name][index], alone, atol=1e-5, rtol=1e-5)


def test_results_hold_metric_cost_and_size() -> None:
    model, examples = make_model(), make_examples()
    subnets = {name: model.subnet(name) for name in ("1x1", "0.5x0.5")}
    full, small = evaluate(model, {"dev": examples}, task=TASK, subnets=subnets)
    assert full.params == sum(parameter.numel() for parameter in model.network.parameters())
    assert small.params == sum(p.numel() for p in model.extract(subnets["0.5x0.5"]).parameters())
    assert small.params == count_parameters(model, subnets["0.5x0.5"])
    cost = CostModel(model)
    for result, subnet in ((full, subnets["1x1"]), (small, subnets["0.5x0.5"])):
        assert result.flops == np.mean([cost.flops(subnet, length) for length in examples.lengths])
        guesses = [
            int(model.view(subnet)(**{k: v for k, v in examples.collate([i]).items() if k != "labels"}).logits.argmax())
            for i in range(len(TEXTS))
        ]
        assert result.metrics["accuracy"] == np.mean(np.array(guesses) == examples.labels.numpy())
    two = evaluate(model, {"one": examples, "two": examples}, task=TASK, subnets=subnets)[0]
    assert two.metrics == {f"{name}/accuracy": full.metrics["accuracy"] for name in ("one", "two")}


def test_predictions_are_probabilities_of_the_best_class() -> None:
    model, examples = make_model(), make_examples()
    answers = predict(model, examples, task=TASK, policy=Policy(subnet="0.5x0.5"), batch_size=2)
    logits = torch.from_numpy(
        predict_subnet_logits(model, examples, subnets={"": model.subnet("0.5x0.5")}, batch_size=5)[""]
    )
    best = logits.softmax(-1).max(-1)
    assert [answer.label for answer in answers] == [TASK.labels[index] for index in best.indices]
    np.testing.assert_allclose([answer.score for answer in answers], best.values, atol=1e-6)


def test_latency_grows_with_the_work() -> None:
    class Sleeper(torch.nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return torch.ones(self.size, self.size) @ torch.ones(self.size, self.size)

    ids = torch.ones(1, 2, dtype=torch.long)
    seconds = median_latency({"small": Sleeper(8), "large": Sleeper(700)}, {"input_ids": ids}, rounds=9)
    assert 0 < seconds["small"] < seconds["large"]
