"""Run an encoder layer by layer, record the hidden states, and apply the task head to one of them.

Only the list of layers is replaced, so embeddings, masks, pooler, head and final norm are the stock model's code in
every family.
"""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from limbert.model.families import Family, set_stack, stack_of


@contextmanager
def recorded_states(
    network: PreTrainedModel, family: Family, *, first_state: Tensor | None = None
) -> Iterator[list[Tensor]]:
    """Record the hidden states of the forward passes inside the ``with`` block.

    Args:
        network: a model of the family.
        family: its entry in the table of families.
        first_state: ``(batch, tokens, hidden)``; replaces the embedding output.

    Yields:
        A list that receives, for each pass, the embedding output and the output of every layer, each
        ``(batch, tokens, hidden)``: one more than there are layers. A norm after the last layer (ModernBERT) is part
        of the head and not applied.
    """
    states: list[Tensor] = []
    layers = list(stack_of(network, family))

    def record_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states.append(args[0] if first_state is None else first_state)
        return (states[-1], *args[1:])

    def record_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        states.append(output[0] if family.layer_output_is_tuple else output)

    handles = [layers[0].register_forward_pre_hook(record_input)]
    handles += [layer.register_forward_hook(record_output) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


LayerArguments = tuple[tuple[Any, ...], dict[str, Any]]  # a layer's arguments besides the state
ArgumentPath = tuple[Any, ...]  # path of a tensor in a layer's arguments: layer type, position or name, ...


@dataclass(frozen=True)
class LayerCalls:
    """The arguments of an encoder's layers for one batch, to run the layers in any order.

    Attributes:
        arguments: by layer type.
        family: the model's entry in the table of families.
    """

    arguments: dict[Hashable, LayerArguments]
    family: Family

    def run(self, layer: nn.Module, state: Tensor) -> Tensor:
        """A layer's output for a state, both ``(batch, tokens, hidden)``."""
        args, kwargs = self.arguments[layer_type(layer, self.family)]
        output = layer(state, *args, **kwargs)
        return output[0] if self.family.layer_output_is_tuple else output

    def map_tensors(self, function: Callable[[ArgumentPath, Tensor], Tensor]) -> "LayerCalls":
        """The same calls with ``function(path, tensor)`` in place of every tensor of the arguments."""
        arguments = {key: _map_tensors((key,), value, function) for key, value in self.arguments.items()}
        return LayerCalls(arguments, self.family)

    def attention_mask(self, layer: nn.Module) -> Tensor | None:
        """The attention mask of a layer, in the shape of its attention; None if nothing is masked."""
        args, kwargs = self.arguments[layer_type(layer, self.family)]
        mask: Tensor | None = kwargs["attention_mask"] if "attention_mask" in kwargs else args[0]
        return mask


def _map_tensors(path: ArgumentPath, value: Any, function: Callable[[ArgumentPath, Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(path, value)
    if isinstance(value, tuple | list):
        return type(value)(_map_tensors((*path, index), part, function) for index, part in enumerate(value))
    if isinstance(value, dict):
        return {name: _map_tensors((*path, name), part, function) for name, part in value.items()}
    return value


PreparedBatch = tuple[Tensor, LayerCalls]  # the embedding output (batch, tokens, hidden), and the layers' arguments


def record_layer_calls(network: PreTrainedModel, family: Family, inputs: dict[str, Tensor]) -> PreparedBatch:
    """Run the stock forward pass (embeddings, masks, positions) up to the layers, and record their arguments."""
    recorder = LayerCallRecorder(stack_of(network, family), family)
    with _replaced_stack(network, family, recorder.placeholders):
        return recorder.record(network, inputs)


class LayerCallRecorder:
    """Records the arguments of an encoder's layers. Thread-safe.

    Attributes:
        placeholders: replace the network's list of layers while `record` runs.
    """

    def __init__(self, layers: Iterable[nn.Module], family: Family) -> None:
        by_type = {layer_type(layer, family): layer for layer in layers}
        self._family, self._count, self._recorded = family, len(by_type), threading.local()
        self.placeholders = nn.ModuleList(
            _PlaceholderLayer(layer, family, self._recording_forward(key)) for key, layer in by_type.items()
        )

    def record(self, network: PreTrainedModel, inputs: dict[str, Tensor]) -> PreparedBatch:
        """Run the network, whose list of layers holds the placeholders, until all arguments are recorded."""
        self._recorded.arguments = {}
        try:
            network(**inputs)
        except _LayersReached as reached:
            return reached.embedding, LayerCalls(self._recorded.arguments, self._family)
        raise AssertionError("the forward pass reached no layer")

    def _recording_forward(self, layer_type: Hashable) -> Callable[..., Any]:
        def receive(state: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._recorded.arguments[layer_type] = (args, kwargs)
            if len(self._recorded.arguments) == self._count:
                raise _LayersReached(state)
            return (state, None) if self._family.layer_output_is_tuple else state

        return receive


@contextmanager
def layers_bypassed(network: PreTrainedModel, family: Family, state: Tensor) -> Iterator[None]:
    """Inside the ``with`` block a forward pass skips all layers and applies the task head to ``state``.

    Args:
        network: a model of the family.
        family: its entry in the table of families.
        state: the output of a layer for the same batch, ``(batch, tokens, hidden)``.
    """
    output = (state, None) if family.layer_output_is_tuple else state
    placeholder = _PlaceholderLayer(stack_of(network, family)[0], family, lambda *_, **__: output)
    with _replaced_stack(network, family, nn.ModuleList([placeholder])):
        yield


class _LayersReached(Exception):
    """Stops a forward pass once the arguments of all layer types are recorded."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.embedding = embedding


class _PlaceholderLayer(nn.Module):
    """Replaces a layer with a function."""

    def __init__(self, layer: nn.Module, family: Family, function: Any) -> None:
        super().__init__()
        self.function = function
        for name in family.layer_attributes:
            setattr(self, name, getattr(layer, name))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def layer_type(layer: nn.Module, family: Family) -> Hashable:
    """Layers of the same type are called with the same arguments."""
    return tuple(getattr(layer, name) for name in family.layer_attributes)


@contextmanager
def _replaced_stack(network: PreTrainedModel, family: Family, layers: nn.ModuleList) -> Iterator[None]:
    stack = stack_of(network, family)
    set_stack(network, family, layers)
    try:
        yield
    finally:
        set_stack(network, family, stack)


def with_expanded_mask(inputs: dict[str, Tensor], network: PreTrainedModel, family: Family) -> dict[str, Tensor]:
    """The same inputs with the attention mask as ``(batch, 1, 1, tokens)``, True for tokens.

    With a mask ``(batch, tokens)`` the stock forward pass waits for the device to find out whether anything is padded.
    Families whose layers or heads need that shape keep it.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2 or not _has_fast_path(network, family):
        return inputs
    return inputs | {"attention_mask": mask[:, None, None, :].bool()}


def _has_fast_path(network: PreTrainedModel, family: Family) -> bool:
    return family.fast_path is not None and network.config._attn_implementation == "sdpa"
