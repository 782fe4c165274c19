"""How well sub-networks find hidden words."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from limbert.core.config import Precision
from limbert.core.subnet import Subnet
from limbert.data.masked_rows import MaskedRows
from limbert.model.flops import CostModel
from limbert.model.elastic import ElasticModel
from limbert.evaluation.subnets import Result, count_parameters
from limbert.model.shared_forward import plan_passes, run_pass


@dataclass(frozen=True)
class MaskedScores:
    """What one sub-network reaches on hidden words.

    Attributes:
        loss: mean cross-entropy in nats a hidden token.
        accuracy: share of the hidden tokens that it ranks first.
    """

    loss: float
    accuracy: float

    @property
    def metrics(self) -> dict[str, float]:
        """By name; perplexity is ``exp(loss)``."""
        return {"accuracy": self.accuracy, "loss": self.loss, "perplexity": math.exp(min(self.loss, 700.0))}


@torch.no_grad()
def masked_scores(
    model: ElasticModel,
    rows: MaskedRows,
    *,
    subnets: Mapping[str, Subnet],
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> dict[str, MaskedScores]:
    """Scores of sub-networks, all on the same hidden words.

    Args:
        model: takes ``positions``; evaluated without dropout, its mode is restored.
        rows: what is asked.
        subnets: by name.
        batch_size: sequences a batch.
        precision: ``"bf16"`` runs under autocast.
    """
    network, device = model.network, model.network.device
    training = network.training
    network.eval()
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    sums = {subnet: torch.zeros(2, dtype=torch.float64, device=device) for subnet in subnets.values()}
    asked = 0
    try:
        for indices in rows.in_order(batch_size=batch_size):
            batch = {name: tensor.to(device) for name, tensor in rows.ready(rows.collate(indices)).items()}
            labels = batch.pop("labels")
            asked += len(labels)
            for shared in plan_passes(sums):
                with model.at(shared.scope), autocast:
                    answers = run_pass(model, shared, batch)
                for subnet, answer in answers.items():
                    logits = answer.logits.float()  # (hidden, vocabulary)
                    right = (logits.argmax(-1) == labels).sum()
                    sums[subnet] += torch.stack([F.cross_entropy(logits, labels, reduction="sum"), right.float()])
    finally:
        network.train(training)
    found = {subnet: (total / asked).tolist() for subnet, total in sums.items()}
    return {name: MaskedScores(*found[subnet]) for name, subnet in subnets.items()}


def evaluate_masked(
    model: ElasticModel, rows: MaskedRows, *, subnets: Mapping[str, Subnet], precision: Precision = "fp32"
) -> list[Result]:
    """Results of the named sub-networks. FLOPs are those of the layers for a full sequence, without the vocabulary."""
    scores = masked_scores(model, rows, subnets=subnets, precision=precision)
    cost, tokens = CostModel(model), rows.packed.length

    def flops(subnet: Subnet) -> int:
        widths = subnet.widths().values()
        return sum(cost.layer_flops(heads=heads, neurons=neurons, tokens=tokens) for heads, neurons in widths)

    return [
        Result(name, count_parameters(model, subnet), flops(subnet), scores[name].metrics)
        for name, subnet in subnets.items()
    ]
