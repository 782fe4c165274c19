"""Small random models of every supported family, with weights scaled up so that each layer matters."""

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from limbert.core.subnet import Subnet
from limbert.model.families import FAMILIES, layer_parts, set_stack, stack_of

HIDDEN, HEADS, NEURONS, LAYERS, VOCABULARY = 48, 6, 60, 4, 90

_SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": 64}
_BERT_SIZES = _SIZES | {
    "hidden_size": HIDDEN, "num_attention_heads": HEADS, "intermediate_size": NEURONS, "num_hidden_layers": LAYERS,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
CONFIGS: dict[str, dict[str, object]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BERT_SIZES),
    "electra": _BERT_SIZES | {"embedding_size": 20, "summary_last_dropout": 0.0},
    "distilbert": _SIZES | {
        "dim": HIDDEN, "n_heads": HEADS, "hidden_dim": NEURONS, "n_layers": LAYERS,
        "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0,
    },
    "modernbert": _SIZES | {
        "hidden_size": HIDDEN, "num_attention_heads": HEADS, "intermediate_size": NEURONS, "num_hidden_layers": LAYERS,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
        "local_attention": 8, "global_attn_every_n_layers": 3,
    },
    "deberta-v2": _BERT_SIZES | {
        "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8, "max_relative_positions": -1,
        "share_att_key": False, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0,
        "pooler_dropout": 0.0,
    },
}  # fmt: skip
# as published (deberta-v3): content and positions have the same projections
CONFIGS["deberta-v2:share_att_key"] = CONFIGS["deberta-v2"] | {"share_att_key": True}
MOST_DIFFERENT = ("bert", "distilbert", "modernbert", "deberta-v2")


def make_config(case: str, **changes: object) -> PretrainedConfig:
    """The small config of a case, ``model_type`` or ``model_type:variant``."""
    return AutoConfig.for_model(case.partition(":")[0], **(CONFIGS[case] | {"num_labels": 3} | changes))


def make_network(
    case: str, auto_class: type = AutoModelForSequenceClassification, **changes: object
) -> PreTrainedModel:
    """A random model with scaled-up weights; a freshly initialised encoder is nearly the identity."""
    torch.manual_seed(len(case))
    network = auto_class.from_config(make_config(case, **changes))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return network.eval()


def make_inputs(*, batch: int = 3, tokens: int = 12) -> dict[str, torch.Tensor]:
    """Token ids and a mask, with padding."""
    generator = torch.Generator().manual_seed(7)
    input_ids = torch.randint(5, VOCABULARY, (batch, tokens), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, tokens // 2 :] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def zeroed_copy(stock: PreTrainedModel, subnet: Subnet) -> PreTrainedModel:
    """Reference for a sub-network: the stock model with dropped layers removed and dropped columns set to zero.

    It slices nothing: all heads and neurons are computed, and a dropped one contributes zero.
    """
    network = copy.deepcopy(stock)
    family = FAMILIES[network.config.model_type]
    layers = stack_of(network, family)
    head_size = network.config.hidden_size // network.config.num_attention_heads
    with torch.no_grad():
        for index, (heads, neurons) in subnet.layer_widths().items():
            parts = layer_parts(layers[index], family)
            parts.attention_out.weight[:, heads * head_size :] = 0
            parts.mlp_out.weight[:, neurons:] = 0
    set_stack(network, family, nn.ModuleList(layers[index] for index in subnet.layers))
    return network


def most_different(names: Iterable[str] = CONFIGS, *, quick: Iterable[str] = MOST_DIFFERENT) -> list[Any]:
    """Families as test parameters: the most different ones run always, the others only with ``-m slow``."""
    chosen = {*quick}
    return [pytest.param(name, marks=() if name in chosen else pytest.mark.slow) for name in names]
