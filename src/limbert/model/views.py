"""Build views: sub-networks as separate modules that share the weights of the full network."""

import copy

from torch import nn
from transformers import PreTrainedModel

from limbert.core.subnet import Subnet
from limbert.model.families import Family, LayerParts, head_size, layer_parts, set_stack, stack_of
from limbert.model.sliced_linear import slice_linear


class ViewFactory:
    """Builds views of one network, each a stock module in evaluation mode that computes one sub-network.

    A view has its own modules where sub-networks differ, so that other threads cannot change its width, and frozen
    parameters that are slices of the network's tensors. Modules that do not depend on the sub-network (embeddings,
    norms, head) are shared by all views, and a layer is shared by all views that run it at the same width. Slices of
    fused projections (ModernBERT) are not contiguous and are copies.

    Args:
        network: the full network.
        layers: all its layers, also while its stack holds fewer.
        family: its entry in the table of families.
    """

    def __init__(self, network: PreTrainedModel, layers: list[nn.Module], family: Family) -> None:
        self._network, self._layers, self._family = network, layers, family
        self._layer_cache: dict[tuple[int, int, int], nn.Module] = {}
        # memo of deepcopy: objects in it are shared instead of copied
        self._deepcopy_memo: dict[int, object] = {}
        for owner in (network, *layers):
            for parameter in owner.parameters():
                if id(parameter) not in self._deepcopy_memo:
                    self._deepcopy_memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
            self._deepcopy_memo |= {id(buffer): buffer for buffer in owner.buffers()}
        sliced_ids = {id(linear) for layer in layers for linear in _sliced_linears(layer_parts(layer, family))}
        sliced_ids.add(id(stack_of(network, family)))
        for owner in (network, *layers):
            self._share_children(owner, sliced_ids)

    def _share_children(self, module: nn.Module, sliced_ids: set[int]) -> None:
        for child in module.children():
            if id(child) in sliced_ids or id(child) in self._deepcopy_memo:
                continue
            if any(id(part) in sliced_ids for part in child.modules()):
                self._share_children(child, sliced_ids)
            else:
                self._deepcopy_memo[id(child)] = copy.deepcopy(child, self._deepcopy_memo).eval()

    def build(self, subnet: Subnet) -> PreTrainedModel:
        """The view of one sub-network."""
        config = copy.copy(self._network.config)
        own = {id(self._network.config): config, id(stack_of(self._network, self._family)): nn.ModuleList()}
        view: PreTrainedModel = copy.deepcopy(self._network, self._deepcopy_memo | own)
        vars(view).pop("forward", None)  # accelerate's wrapper would run the full network
        kept = [self.layer(index, heads, neurons) for index, (heads, neurons) in subnet.layer_widths().items()]
        set_stack(view, self._family, nn.ModuleList(kept))
        config.num_hidden_layers = len(kept)
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = [config.layer_types[index] for index in subnet.layers]
        return view.eval()

    def layer(self, index: int, heads: int, neurons: int) -> nn.Module:
        """One layer whose Linears hold slices, in evaluation mode."""
        key = (index, heads, neurons)
        if key not in self._layer_cache:
            layer = copy.deepcopy(self._layers[index], dict(self._deepcopy_memo))
            parts, channels = layer_parts(layer, self._family), heads * head_size(self._network.config)
            for linear in parts.attention_in:
                _slice_in_place(linear, rows=channels, columns=linear.in_features, blocks=self._family.attention_blocks)
            _slice_in_place(parts.attention_out, rows=parts.attention_out.out_features, columns=channels)
            _slice_in_place(
                parts.mlp_in, rows=neurons, columns=parts.mlp_in.in_features, blocks=self._family.mlp_blocks
            )
            _slice_in_place(parts.mlp_out, rows=parts.mlp_out.out_features, columns=neurons)
            if parts.head_count is not None:
                setattr(*parts.head_count, heads)
            self._layer_cache[key] = layer.eval()
        return self._layer_cache[key]


def _sliced_linears(parts: LayerParts) -> tuple[nn.Linear, ...]:
    return (*parts.attention_in, parts.attention_out, parts.mlp_in, parts.mlp_out)


def _slice_in_place(linear: nn.Linear, *, rows: int, columns: int, blocks: int = 1) -> None:
    weight, bias = slice_linear(linear, rows=rows, columns=columns, blocks=blocks)
    linear.__class__ = nn.Linear
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
    linear.in_features, linear.out_features = columns, rows * blocks
