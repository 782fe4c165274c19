"""Models with a width gate before every layer."""

import torch
from tests.factories.networks import LAYERS, VOCABULARY, make_network
from torch import Tensor

from limbert import ElasticModel, Space
from limbert.model.width_gates import WidthGates

WIDTHS = (0.34, 0.5, 0.67, 1.0)  # 2, 3, 4 and 6 of 6 heads
BATCH = 24


def batch_of(lengths: list[int]) -> dict[str, Tensor]:
    ids = torch.randint(5, VOCABULARY, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


INPUTS = batch_of([3 + index % 10 for index in range(BATCH)])


def make_model(case: str, **changes: object) -> ElasticModel:
    """A model with a gate before every layer that makes all choices about equally often."""
    model = ElasticModel(
        make_network(case, **changes), space=Space(widths=WIDTHS, depths=(0.25, 0.5, 0.75, 1.0), layers="first")
    )
    torch.manual_seed(1)
    gates = WidthGates(num_gates=LAYERS, hidden_size=48, widths=WIDTHS).requires_grad_(False).eval()
    with torch.no_grad(), model.recorded_states() as states:
        model.network(**INPUTS)
    for gate, state in zip(gates.gate, states, strict=False):  # all states but the last
        logits = gate(state[:, 0])
        gate.dense_out.bias.sub_(logits.mean(dim=0))  # a random gate would make one choice for all inputs
        gate.dense_out.weight.mul_(10 / logits.std())
        gate.dense_out.bias.mul_(10 / logits.std())
    model.gates = gates
    return model
