"""Plain families: the mask expanded once changes no logits, and other families keep theirs."""

import pytest
import torch
from tests.factories.networks import CONFIGS, make_inputs, make_network

from limbert.model.families import family_of
from limbert.model.layerwise import with_expanded_mask


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
