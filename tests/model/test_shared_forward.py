"""Shared layer runs give the answers and the gradients of separate passes."""

import weakref

import pytest
import torch
from tests.factories.networks import CONFIGS, make_inputs, make_network

from limbert import ElasticModel, Space, Subnet
from limbert.method.losses import hidden_loss, matched_states
from limbert.model.shared_forward import (
    SharedEmbedding,
    SharedForward,
    SubnetOutput,
    plan_shared_forwards,
    run_shared_forward,
    train_shared_forward,
)


def gradients(model: ElasticModel, subnets: list[Subnet], *, share: bool) -> dict[str, torch.Tensor]:
    inputs = make_inputs()
    model.network.zero_grad()
    with torch.no_grad(), model.recorded_states() as teacher:
        model.network(**inputs)

    def loss(subnet: Subnet, answer: SubnetOutput) -> torch.Tensor:
        targets = [state * 0.9 for state in matched_states(teacher, subnet.layers)]
        return answer.logits.square().mean() + hidden_loss(answer.hidden_states, targets, inputs["attention_mask"])

    if not share:  # the plain way, one sub-network after the other
        for subnet in subnets:
            with model.at(subnet) as network, model.recorded_states() as states:
                loss(subnet, SubnetOutput(network(**inputs).logits, tuple(states))).backward()
    else:
        start = SharedEmbedding.from_inputs(model, inputs)
        for shared in plan_shared_forwards(subnets):
            with model.at(shared.merged_subnet):
                train_shared_forward(
                    model, shared, inputs, shared_embedding=start, loss_fn=loss, backward=torch.Tensor.backward
                )
        start.backward()
    return {name: p.grad.clone() for name, p in model.network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rule", ["first", "spread"])
@pytest.mark.parametrize("case", CONFIGS)
def test_gradients_equal_those_of_separate_passes(case: str, rule: str) -> None:
    model = ElasticModel(make_network(case).double(), space=Space(layers=rule))
    subnets = list(model.subnets().values())
    shared, separate = (gradients(model, subnets, share=share) for share in (True, False))
    assert shared.keys() == separate.keys()
    largest = max(gradient.abs().max() for gradient in separate.values())
    for name, gradient in separate.items():  # the true gradient of a key's bias is 0: what is there is rounding
        scale = torch.maximum(gradient.abs().max(), largest / 1000)
        torch.testing.assert_close(shared[name] / scale, gradient / scale, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rule", ["first", "spread"])
@pytest.mark.parametrize("case", CONFIGS)
@torch.no_grad()
def test_answers_equal_those_of_the_views(case: str, rule: str) -> None:
    model = ElasticModel(make_network(case), space=Space(layers=rule))
    inputs = make_inputs()
    for shared in plan_shared_forwards(model.subnets().values()):
        with model.at(shared.merged_subnet):
            answers = run_shared_forward(model, shared, inputs)
        for subnet, answer in answers.items():
            torch.testing.assert_close(answer.logits, model.view(subnet)(**inputs).logits, atol=2e-5, rtol=2e-5)


def test_one_group_a_width() -> None:
    model = ElasticModel(make_network("bert"), space=Space(layers="first"))
    groups = plan_shared_forwards(model.subnets().values())
    assert [len(group.subnets) for group in groups] == [3, 3, 3, 3]


def test_subnetworks_that_disagree_about_a_layer_are_not_grouped() -> None:
    one, other = Subnet((0, 1), (2, 2), (3, 3)), Subnet((0, 1), (2, 1), (3, 3))
    assert len(plan_shared_forwards([one, other])) == 2


class Held:
    """Bytes that are kept for backward passes: at this moment, and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def keep(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        size = tensor.nbytes

        class Box(list):  # a list that can be watched
            pass

        box = Box([tensor])
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(box, self._release, size)
        return box

    def _release(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("rule", ["first", "spread"])
def test_no_more_is_held_than_for_the_largest_alone(rule: str) -> None:
    model = ElasticModel(make_network("bert"), space=Space(layers=rule))
    (shared, *_) = plan_shared_forwards(model.subnets().values())
    assert len(shared.subnets) == 3

    def most_held(group: SharedForward) -> int:
        held = Held()
        inputs = make_inputs()
        start = SharedEmbedding.from_inputs(model, inputs)
        with (
            torch.autograd.graph.saved_tensors_hooks(held.keep, lambda box: box[0]),
            model.at(group.merged_subnet),
        ):
            train_shared_forward(
                model,
                group,
                inputs,
                shared_embedding=start,
                loss_fn=lambda subnet, answer: answer.logits.square().mean(),
                backward=torch.Tensor.backward,
            )
        return held.most

    alone = most_held(SharedForward((model.full,)))
    assert alone > 0
    assert most_held(shared) <= 1.05 * alone
