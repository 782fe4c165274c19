"""Build a sub-network as a module of its own whose weights are the supernet's storage."""

import copy

from torch import nn
from transformers import PreTrainedModel

from limbert.core.subnet import Subnet
from limbert.model.families import Family, layer_parts, set_stack
from limbert.model.sliced import slice_linear


def build_view(network: PreTrainedModel, layers: list[nn.Module], family: Family, subnet: Subnet) -> PreTrainedModel:
    """A stock module in evaluation mode that computes one sub-network.

    It has its own modules, so that no other thread can change its width, and frozen parameters that are slices of
    the supernet's tensors. Slices of fused projections (ModernBERT) do not lie in one block and are copies.

    Args:
        network: the supernet.
        layers: all its layers, whatever its stack holds at the moment.
        family: its entry in the family table.
        subnet: what to keep.
    """
    # What the memo names, deepcopy takes from there instead of copying it: tensors keep their storage, and layers
    # stay out of the first copy because only the kept ones are needed.
    tensors = _shared_tensors([network, *layers])
    skeleton: PreTrainedModel = copy.deepcopy(network, tensors | {id(layer): nn.Identity() for layer in layers})
    vars(skeleton).pop("forward", None)  # accelerate's wrapper, where there is one, would run the supernet instead
    config = skeleton.config
    head_size = config.hidden_size // config.num_attention_heads
    kept = nn.ModuleList()
    for index, (heads, neurons) in subnet.widths().items():
        layer = copy.deepcopy(layers[index], tensors | {id(network.config): config})
        _narrow(layer, family, heads=heads, head_size=head_size, neurons=neurons)
        kept.append(layer)
    set_stack(skeleton, family, kept)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[index] for index in subnet.layers]
    return skeleton.eval()


def _shared_tensors(owners: list[nn.Module]) -> dict[int, object]:
    """``{id of a tensor: what stands for it in the view}``: frozen parameters on the same storage, buffers as such."""
    shared: dict[int, object] = {}
    for owner in owners:
        for parameter in owner.parameters():
            if id(parameter) not in shared:
                shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        for buffer in owner.buffers():
            shared[id(buffer)] = buffer
    return shared


def _narrow(layer: nn.Module, family: Family, *, heads: int, head_size: int, neurons: int) -> None:
    """Turn a layer's Linears into plain ones that hold slices."""
    parts = layer_parts(layer, family)
    channels = heads * head_size
    for linear in parts.attention_in:
        _slice(linear, rows=channels, columns=linear.in_features, blocks=family.attention_blocks)
    _slice(parts.attention_out, rows=parts.attention_out.out_features, columns=channels)
    _slice(parts.mlp_in, rows=neurons, columns=parts.mlp_in.in_features, blocks=family.mlp_blocks)
    _slice(parts.mlp_out, rows=parts.mlp_out.out_features, columns=neurons)
    if parts.head_count is not None:
        setattr(*parts.head_count, heads)


def _slice(linear: nn.Linear, *, rows: int, columns: int, blocks: int = 1) -> None:
    weight, bias = slice_linear(linear, rows=rows, columns=columns, blocks=blocks)
    linear.__class__ = nn.Linear
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
    linear.in_features, linear.out_features = columns, rows * blocks
