"""Cost model: floating-point operations (FLOPs) of a sub-network, computed from its structure.

A multiply-accumulate counts as 2. Counted are the matrix products of the layers, of the attention, and of the Linears
outside the layers (pooler, head, embedding projection). Lookups, norms, activations and softmax, a few percent of the
total, are not counted.
"""

from collections.abc import Iterable

import torch
from torch import nn

from limbert.core.subnet import Subnet
from limbert.model.elastic import ElasticModel
from limbert.model.families import layer_parts
from limbert.model.inference_mode import evaluation_mode


class CostModel:
    """FLOPs of any sub-network of one model, by the number of tokens without padding.

    Args:
        model: only its structure matters; two small forward passes measure the Linears outside the layers.
    """

    def __init__(self, model: ElasticModel) -> None:
        self._hidden: int = model.network.config.hidden_size
        self._head_size = model.head_size
        parts = layer_parts(model.layers()[0], model.family)
        by_token, by_position = _count_attention_projections(parts.attention_in, model)
        self._attention_projections = by_token * model.family.attention_blocks
        self._position_projections = by_position
        self._mlp_projections = model.family.mlp_blocks
        self._relative_positions, self._position_terms = _relative_positions(parts.head_count and parts.head_count[0])
        self._outside_fixed, self._outside_by_token = _flops_outside_layers(model)

    def flops(self, subnet: Subnet, tokens: int) -> int:
        """FLOPs of one example with ``tokens`` tokens, including embedding projection and head."""
        outside = self.head_flops + self.embedding_flops(tokens)
        return outside + sum(
            self.layer_flops(heads=heads, neurons=neurons, tokens=tokens)
            for heads, neurons in subnet.layer_widths().values()
        )

    @property
    def head_flops(self) -> int:
        """FLOPs of the task head, for one example."""
        return self._outside_fixed

    def embedding_flops(self, tokens: int) -> int:
        """FLOPs of the Linears between the embeddings and the layers, for one example."""
        return self._outside_by_token * tokens

    def gate_flops(self, num_choices: int) -> int:
        """FLOPs of one width gate with ``num_choices`` widths, for one example."""
        return 2 * self._hidden * (self._hidden + num_choices)

    def mean_flops(self, subnet: Subnet, lengths: Iterable[int]) -> float:
        """Mean FLOPs per example over inputs of these lengths in tokens, without padding."""
        counts: dict[int, int] = {}
        for length in lengths:
            counts[int(length)] = counts.get(int(length), 0) + 1
        return sum(count * self.flops(subnet, length) for length, count in counts.items()) / sum(counts.values())

    def layer_flops(self, *, heads: int, neurons: int, tokens: int) -> int:
        """FLOPs of one layer for one example."""
        channels = heads * self._head_size
        projections = tokens * channels * self._hidden * (self._attention_projections + 1)
        attention = 2 * tokens * tokens * channels
        positions = (
            self._relative_positions
            * channels
            * (self._hidden * self._position_projections + tokens * self._position_terms)
        )
        feed_forward = tokens * neurons * self._hidden * (self._mlp_projections + 1)
        return 2 * (projections + attention + positions + feed_forward)


def _count_attention_projections(linears: Iterable[nn.Linear], model: ElasticModel) -> tuple[int, int]:
    """Numbers of attention projections that are applied to tokens, and to relative positions."""
    config, count = model.network.config, len(list(linears))
    if model.family.head_count is None or not getattr(config, "relative_attention", False):
        return count, 0
    terms = len(getattr(config, "pos_att_type", None) or [])
    # with share_att_key both the query and the key projection are applied to the positions too
    return (3, 2) if getattr(config, "share_att_key", False) else (count - terms, terms)


def _relative_positions(attention: nn.Module | None) -> tuple[int, int]:
    """Number of relative positions, and of attention scores with them (DeBERTa)."""
    if attention is None or not getattr(attention, "relative_attention", False):
        return 0, 0
    return 2 * int(attention.pos_ebd_size), len(attention.pos_att_type)  # type: ignore[arg-type]


def _flops_outside_layers(model: ElasticModel) -> tuple[int, int]:
    """FLOPs of the Linears outside the layers: a fixed part, and a part per token."""
    inside = {id(module) for layer in model.layers() for module in layer.modules()}
    totals: list[int] = []

    def count(linear: nn.Linear, _: object, output: torch.Tensor) -> None:
        totals[-1] += 2 * output.numel() * linear.in_features

    outside = [m for m in model.network.modules() if isinstance(m, nn.Linear) and id(m) not in inside]
    handles = [linear.register_forward_hook(count) for linear in outside]
    try:
        with evaluation_mode(model.network), model.at(Subnet((0,), (1,), (1,))) as network:
            for tokens in (2, 4):
                totals.append(0)
                ids = torch.ones(1, tokens, dtype=torch.long, device=network.device)
                network(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for handle in handles:
            handle.remove()
    by_token = (totals[1] - totals[0]) // 2
    return totals[0] - 2 * by_token, by_token
