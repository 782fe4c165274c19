"""SlicedLinear: a Linear that can run with only the first rows of its weight; and the widths of a layer of them."""

import torch.nn.functional as F
from torch import Tensor, nn

from limbert.model.families import LayerParts


class SlicedLinear(nn.Linear):
    """A Linear that computes only the first ``width`` outputs of each block.

    Shapes: ``(..., columns) -> (..., blocks * width)``. The number of columns is that of the input, so the output width
    is the only state. Made by `make_sliced`, which keeps parameter names and weights.
    """

    width: int | None  # rows of each block that are used; None: all. Set by `set_widths` only
    blocks: int  # parts stacked in one weight: 3 for a fused query-key-value, 2 for a gated unit

    def sliced_parameters(self, columns: int) -> tuple[Tensor, Tensor | None]:
        """Weight ``(blocks * width, columns)`` and bias ``(blocks * width,)``: slices, or copies if blocks > 1."""
        return slice_linear(self, rows=self.width, columns=columns, blocks=self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.sliced_parameters(x.shape[-1]))


def make_sliced(linear: nn.Linear, *, blocks: int = 1) -> None:
    """Turn a plain Linear into a SlicedLinear in place."""
    linear.__class__ = SlicedLinear
    assert isinstance(linear, SlicedLinear)
    linear.width = None
    linear.blocks = blocks


def slice_linear(linear: nn.Linear, *, rows: int | None, columns: int, blocks: int = 1) -> tuple[Tensor, Tensor | None]:
    """The first ``rows`` of each block and the first ``columns`` of a Linear's weight, and those rows of its bias."""
    weight, bias = linear.weight, linear.bias
    if blocks == 1:
        return _narrow(_narrow(weight, rows, dim=0), columns, dim=1), None if bias is None else _narrow(
            bias, rows, dim=0
        )
    weight = weight.unflatten(0, (blocks, -1))[:, :rows, :columns].flatten(0, 1)  # (blocks * rows, columns)
    return weight, None if bias is None else bias.unflatten(0, (blocks, -1))[:, :rows].flatten()


def _narrow(tensor: Tensor, count: int | None, *, dim: int) -> Tensor:
    """The first ``count`` along a dimension. A slice of everything would cost a copy in the backward pass."""
    return tensor if count is None or count == tensor.shape[dim] else tensor.narrow(dim, 0, count)


LayerWidths = tuple[int | None, int | None, int | None]  # heads, attention channels, neurons; None: all of them


def layer_widths(parts: LayerParts) -> LayerWidths:
    """The current widths of one layer."""
    first, mlp_in = parts.attention_in[0], parts.mlp_in
    assert isinstance(first, SlicedLinear)
    assert isinstance(mlp_in, SlicedLinear)
    heads = getattr(*parts.head_count) if parts.head_count is not None else None
    return heads, first.width, mlp_in.width


def set_widths(parts: LayerParts, widths: LayerWidths) -> None:
    """Set the widths of one layer; only this function does. The output Linears follow their input."""
    heads, channels, neurons = widths
    for linear in (*parts.attention_in, parts.mlp_in):
        assert isinstance(linear, SlicedLinear)
        linear.width = neurons if linear is parts.mlp_in else channels
    if parts.head_count is not None:
        setattr(*parts.head_count, heads)
