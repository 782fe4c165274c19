"""Table of the supported model families: the module paths of the parts that width and depth cut.

To add a family, add an entry here and a config in ``tests/factories/networks.py``. It is supported only if every
sub-network equals a copy of the stock model with the dropped parts zeroed: a model that merely runs may be wrong, since
attention that reshapes with a fixed head count accepts narrower projections and mixes the heads without an error.
"""

from dataclasses import dataclass, replace

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from limbert.core.subnet import Shape
from limbert.errors import UnsupportedModelError


@dataclass(frozen=True)
class FastPathSpec:
    """Paths of the other modules in an encoder of plain post-norm layers: see ``inference/fast_layers.py``.

    Attributes:
        attention_norm, mlp_norm, activation: inside a layer.
        embedding_inputs: inputs of the embeddings.
        embedding_projection: inside the base model, applied to the embeddings; None if the family has none.
    """

    attention_norm: str
    mlp_norm: str
    activation: str
    embedding_inputs: tuple[str, ...] = ("input_ids", "token_type_ids")
    embedding_projection: str | None = None


@dataclass(frozen=True)
class Family:
    """Module paths in one model family; those of a layer's parts are relative to the layer.

    Attributes:
        stack: path from the base model to the ``ModuleList`` of layers.
        attention_in: the Linears whose rows are grouped by head (query, key, value, position projections).
        attention_out: the Linear whose columns are grouped by head.
        mlp_in: the Linear whose rows are neurons.
        mlp_out: the Linear whose columns are neurons.
        optional_attention_in: those of ``attention_in`` that depend on the config.
        attention_blocks: 3 if one Linear holds query, key and value one after the other.
        mlp_blocks: 2 if one Linear holds both halves of a gated unit.
        head_count: module and attribute that hold the number of heads, if the forward pass reads it.
        layer_output_is_tuple: whether a layer returns ``(states, attentions)`` instead of the states.
        layer_attributes: attributes of a layer that the encoder's loop reads.
        requires_first_layer: whether layer 0 differs from the others, so that every sub-network must keep it.
        positions_follow_padding: whether position ids start after the padding id (RoBERTa and related families).
        sequence_head: steps of the sequence classification head on the last layer's output: a module (``base:`` starts
            a path inside the base model), ``@first`` takes the first token, ``@relu`` the activation, ``@pool`` the
            pooling in the config's ``classifier_pooling``.
        fast_path: if the layers are plain post-norm layers with query, key and value in this order, whose only inputs
            are the hidden states and a mask; else None.
        unsupported_options: options of the config that must be off: they add modules between the layers.
        neurons_config_key: option of the config with the number of neurons.
    """

    stack: str
    attention_in: tuple[str, ...]
    attention_out: str
    mlp_in: str
    mlp_out: str
    optional_attention_in: tuple[str, ...] = ()
    attention_blocks: int = 1
    mlp_blocks: int = 1
    head_count: tuple[str, str] | None = None
    layer_output_is_tuple: bool = False
    layer_attributes: tuple[str, ...] = ()
    requires_first_layer: bool = False
    positions_follow_padding: bool = False
    sequence_head: tuple[str, ...] = ("classifier",)
    fast_path: FastPathSpec | None = None
    unsupported_options: tuple[str, ...] = ()
    neurons_config_key: str = "intermediate_size"


_BERT_FAST_PATH = FastPathSpec(
    attention_norm="attention.output.LayerNorm",
    mlp_norm="output.LayerNorm",
    activation="intermediate.intermediate_act_fn",
)

_BERT = Family(
    stack="encoder.layer",
    attention_in=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_out="attention.output.dense",
    mlp_in="intermediate.dense",
    mlp_out="output.dense",
    sequence_head=("base:pooler", "classifier"),
    fast_path=_BERT_FAST_PATH,
)

_ROBERTA = replace(_BERT, positions_follow_padding=True, sequence_head=("classifier",))

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": replace(
        _BERT,
        sequence_head=("classifier",),
        fast_path=replace(_BERT_FAST_PATH, embedding_projection="embeddings_project"),
    ),
    "distilbert": Family(
        stack="transformer.layer",
        attention_in=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_out="attention.out_lin",
        mlp_in="ffn.lin1",
        mlp_out="ffn.lin2",
        neurons_config_key="hidden_dim",
        sequence_head=("@first", "pre_classifier", "@relu", "classifier"),
        fast_path=FastPathSpec(
            attention_norm="sa_layer_norm",
            mlp_norm="output_layer_norm",
            activation="ffn.activation",
            embedding_inputs=("input_ids",),
        ),
    ),
    "modernbert": Family(
        stack="layers",
        attention_in=("attn.Wqkv",),
        attention_out="attn.Wo",
        mlp_in="mlp.Wi",
        mlp_out="mlp.Wo",
        attention_blocks=3,
        mlp_blocks=2,
        layer_attributes=("attention_type",),
        requires_first_layer=True,  # the only one without a norm before its attention
        sequence_head=("base:final_norm", "@pool", "head", "classifier"),
    ),
    "deberta-v2": replace(
        _BERT,
        attention_in=(
            "attention.self.query_proj",
            "attention.self.key_proj",
            "attention.self.value_proj",
            "attention.self.pos_key_proj",
            "attention.self.pos_query_proj",
        ),
        optional_attention_in=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
        head_count=("attention.self", "num_attention_heads"),
        layer_output_is_tuple=True,
        sequence_head=("pooler", "classifier"),
        fast_path=None,  # relative positions
        unsupported_options=("conv_kernel_size",),  # a convolution after layer 0 (v2-xlarge and v2-xxlarge)
    ),
}


def unsupported_family_error(model_type: str) -> UnsupportedModelError:
    """The error for a family that is not in the table."""
    return UnsupportedModelError(f"model family {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")


def family_of(network: PreTrainedModel) -> Family:
    """The table entry for a model.

    Raises:
        UnsupportedModelError: for a family that is not in the table, or a decoder.
    """
    model_type = network.config.model_type
    if model_type not in FAMILIES:
        raise unsupported_family_error(model_type)
    if getattr(network.config, "is_decoder", False):
        raise UnsupportedModelError(f"this {model_type!r} is a decoder (is_decoder=true); only encoders are elastic")
    for option in FAMILIES[model_type].unsupported_options:
        if getattr(network.config, option, 0):
            value = getattr(network.config, option)
            raise UnsupportedModelError(f"this {model_type!r} has {option}={value}; only models without it are elastic")
    return FAMILIES[model_type]


def max_input_length(config: PretrainedConfig) -> int:
    """Maximum input length in tokens of a model of a supported family."""
    positions: int = config.max_position_embeddings
    follow = FAMILIES[config.model_type].positions_follow_padding
    return positions - (config.pad_token_id + 1) if follow else positions


@dataclass(frozen=True)
class LayerParts:
    """The modules of one layer that width cuts."""

    attention_in: tuple[nn.Linear, ...]
    attention_out: nn.Linear
    mlp_in: nn.Linear
    mlp_out: nn.Linear
    head_count: tuple[nn.Module, str] | None


def layer_parts(layer: nn.Module, family: Family) -> LayerParts:
    """The parts of one layer, by the family's paths."""
    present = {name for name, _ in layer.named_modules()}
    head_count = family.head_count and (layer.get_submodule(family.head_count[0]), family.head_count[1])
    return LayerParts(
        attention_in=tuple(
            _linear(layer, path)
            for path in family.attention_in
            if path in present or path not in family.optional_attention_in
        ),
        attention_out=_linear(layer, family.attention_out),
        mlp_in=_linear(layer, family.mlp_in),
        mlp_out=_linear(layer, family.mlp_out),
        head_count=head_count,
    )


def _linear(layer: nn.Module, path: str) -> nn.Linear:
    module = layer.get_submodule(path)
    if not isinstance(module, nn.Linear):
        raise UnsupportedModelError(f"{path} is a {type(module).__name__}; only Linear layers can be cut")
    return module


def head_size(config: PretrainedConfig) -> int:
    """Channels of one attention head, in the full model and in every sub-network."""
    size: int = config.hidden_size // config.num_attention_heads
    return size


def shape_of(network: PreTrainedModel, family: Family) -> Shape:
    """Layers, heads and neurons of the full encoder, from its modules and config."""
    layers = stack_of(network, family)
    neurons = layer_parts(layers[0], family).mlp_out.in_features
    return Shape(layers=len(layers), heads=network.config.num_attention_heads, neurons=neurons)


def stack_of(network: PreTrainedModel, family: Family) -> nn.ModuleList:
    """The list of layers that the encoder runs."""
    stack = network.base_model.get_submodule(family.stack)
    if not isinstance(stack, nn.ModuleList):
        raise UnsupportedModelError(f"{family.stack} of {type(network).__name__} is not a list of layers")
    return stack


def set_stack(network: PreTrainedModel, family: Family, layers: nn.ModuleList) -> None:
    """Replace the list of layers that the encoder runs."""
    holder, _, name = family.stack.rpartition(".")
    setattr(network.base_model.get_submodule(holder), name, layers)
