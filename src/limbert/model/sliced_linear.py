"""A Linear that can run with its first rows only; it does not know which sub-network asks for it."""

import torch.nn.functional as F
from torch import Tensor, nn


class SlicedLinear(nn.Linear):
    """A Linear whose first rows are themselves a working Linear.

    Shapes: ``(..., columns) -> (..., blocks * width)``. The number of columns is read off the input, so that the
    output width is all the state there is. Installed with `install`, which leaves names and weights as they were.
    """

    width: int | None  # rows kept in each block; None keeps all. Only `ElasticModel.at` writes it
    blocks: int  # parts stacked in one weight: 3 for a fused query-key-value, 2 for a gated unit

    def sliced_parameters(self, columns: int) -> tuple[Tensor, Tensor | None]:
        """Weight ``(blocks * width, columns)`` and bias ``(blocks * width,)``: views of the whole, copies if fused."""
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
    """The first ``rows`` of each block and the first ``columns`` of a Linear's weight, and its bias likewise."""
    weight, bias = linear.weight, linear.bias
    if blocks == 1:
        return _narrow(_narrow(weight, rows, dim=0), columns, dim=1), None if bias is None else _narrow(
            bias, rows, dim=0
        )
    weight = weight.unflatten(0, (blocks, -1))[:, :rows, :columns].flatten(0, 1)  # (blocks * rows, columns)
    return weight, None if bias is None else bias.unflatten(0, (blocks, -1))[:, :rows].flatten()


def _narrow(tensor: Tensor, count: int | None, *, dim: int) -> Tensor:
    """The first ``count`` along a dimension; a whole tensor as it is: slicing it would cost a copy going backward."""
    return tensor if count is None or count == tensor.shape[dim] else tensor.narrow(dim, 0, count)
