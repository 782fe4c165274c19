"""Shared passes give the outputs and gradients of separate passes; a mask expanded once changes no logits."""

import weakref

import pytest
import torch
from tests.factories.networks import CONFIGS, make_inputs, make_network

from limbert import ElasticModel, Space, Subnet
from limbert.method.losses import hidden_loss, matched_states
from limbert.model.families import family_of
from limbert.model.layerwise import with_expanded_mask
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

    def loss(subnet: Subnet, output: SubnetOutput) -> torch.Tensor:
        targets = [state * 0.9 for state in matched_states(teacher, subnet.layers)]
        return output.logits.square().mean() + hidden_loss(output.hidden_states, targets, inputs["attention_mask"])

    if not share:  # one sub-network after the other
        for subnet in subnets:
            with model.at(subnet) as network, model.recorded_states() as states:
                loss(subnet, SubnetOutput(network(**inputs).logits, tuple(states))).backward()
    else:
        embedding = SharedEmbedding.from_inputs(model, inputs)
        for shared in plan_shared_forwards(subnets):
            with model.at(shared.merged_subnet):
                options = {"shared_embedding": embedding, "backward": torch.Tensor.backward}
                train_shared_forward(model, shared, inputs, loss_fn=loss, **options)
        embedding.backward()
    return {name: p.grad.clone() for name, p in model.network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rule", ["first", "spread"])
@pytest.mark.parametrize("case", CONFIGS)
def test_gradients_equal_those_of_separate_passes(case: str, rule: str) -> None:
    model = ElasticModel(make_network(case).double(), space=Space(layers=rule))
    subnets = list(model.subnets().values())
    shared, separate = (gradients(model, subnets, share=share) for share in (True, False))
    assert shared.keys() == separate.keys()
    largest = max(gradient.abs().max() for gradient in separate.values())
    for name, gradient in separate.items():  # the exact gradient of a key's bias is 0; what remains is rounding
        scale = torch.maximum(gradient.abs().max(), largest / 1000)
        torch.testing.assert_close(shared[name] / scale, gradient / scale, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rule", ["first", "spread"])
@pytest.mark.parametrize("case", CONFIGS)
@torch.no_grad()
def test_outputs_equal_those_of_the_views(case: str, rule: str) -> None:
    model = ElasticModel(make_network(case), space=Space(layers=rule))
    inputs = make_inputs()
    for shared in plan_shared_forwards(model.subnets().values()):
        with model.at(shared.merged_subnet):
            outputs = run_shared_forward(model, shared, inputs)
        for subnet, output in outputs.items():
            torch.testing.assert_close(output.logits, model.view(subnet)(**inputs).logits, atol=2e-5, rtol=2e-5)


class SavedBytes:
    """Bytes saved for backward passes: now, and at most."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def keep(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        size = tensor.nbytes

        class Box(list):  # weak references to a plain list are not possible
            pass

        box = Box([tensor])
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(box, self._release, size)
        return box

    def _release(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("rule", ["first", "spread"])
def test_peak_memory_is_that_of_the_largest(rule: str) -> None:
    model = ElasticModel(make_network("bert"), space=Space(layers=rule))
    (shared, *_) = plan_shared_forwards(model.subnets().values())
    assert len(shared.subnets) == 3

    def peak_bytes(group: SharedForward) -> int:
        saved = SavedBytes()
        inputs = make_inputs()
        embedding = SharedEmbedding.from_inputs(model, inputs)
        with torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda box: box[0]), model.at(group.merged_subnet):
            options = {"shared_embedding": embedding, "backward": torch.Tensor.backward}
            train_shared_forward(
                model, group, inputs, loss_fn=lambda _, output: output.logits.square().mean(), **options
            )
        return saved.peak

    alone = peak_bytes(SharedForward((model.full,)))
    assert alone > 0
    assert peak_bytes(shared) <= 1.05 * alone


@pytest.mark.parametrize("case", CONFIGS)
@torch.no_grad()
def test_expanded_mask_changes_no_logits(case: str) -> None:
    network, inputs = make_network(case), make_inputs()
    assert not inputs["attention_mask"].all()
    family = family_of(network)
    expanded = with_expanded_mask(inputs, network, family)
    assert expanded["attention_mask"].ndim == (4 if family.fast_path is not None else 2)
    torch.testing.assert_close(network(**expanded).logits, network(**inputs).logits, atol=2e-5, rtol=2e-5)
    everything = inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])}
    assert not torch.allclose(network(**everything).logits, network(**inputs).logits, atol=1e-4)


@torch.no_grad()
def test_additive_attention_keeps_its_mask() -> None:
    network, inputs = make_network("bert"), make_inputs()
    network.set_attn_implementation("eager")
    assert with_expanded_mask(inputs, network, family_of(network)) is inputs
