"""Read the states between the layers of an encoder, and start its task head from one of them.

Both work on any family through the stack of layers alone, so the head, the pooler and a final norm stay the stock
model's own code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from limbert.model.families import Family, set_stack, stack_of


@contextmanager
def recorded_states(network: PreTrainedModel, family: Family) -> Iterator[list[Tensor]]:
    """Record the states of the forward passes made inside the scope.

    Yields:
        A list that receives, for each pass, the embedding output and then every layer's output as the layer returns
        it, each ``(batch, tokens, hidden)``: one more than there are layers. A norm behind the last layer
        (ModernBERT) is part of the head and not applied.
    """
    states: list[Tensor] = []
    layers = list(stack_of(network, family))

    def record_input(_: nn.Module, args: tuple[Any, ...]) -> None:
        states.append(args[0])

    def record_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        states.append(output[0] if family.layer_output_is_tuple else output)

    handles = [layers[0].register_forward_pre_hook(record_input)]
    handles += [layer.register_forward_hook(record_output) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


class _Given(nn.Module):
    """Stands where a layer stood and returns a state that is already known."""

    def __init__(self, state: Tensor, layer: nn.Module, family: Family) -> None:
        super().__init__()
        self.output: Any = (state, None) if family.layer_output_is_tuple else state
        for name in family.layer_attributes:
            setattr(self, name, getattr(layer, name))

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output


@contextmanager
def starting_from(network: PreTrainedModel, family: Family, state: Tensor) -> Iterator[None]:
    """Inside the scope a forward pass skips all layers and reads the task's answer off ``state``.

    Args:
        network: a model of the family.
        family: its entry in the family table.
        state: the output of some layer for the same batch, ``(batch, tokens, hidden)``.
    """
    stack = stack_of(network, family)
    set_stack(network, family, nn.ModuleList([_Given(state, stack[0], family)]))
    try:
        yield
    finally:
        set_stack(network, family, stack)
