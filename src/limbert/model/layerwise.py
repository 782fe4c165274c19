"""Walk an encoder layer by layer, read the states in between, and start its task head from one of them.

All of it works through the list of layers alone, so that embeddings, masks, pooler, head and a final norm stay the
stock model's own code, whatever the family.
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


LayerArguments = tuple[tuple[Any, ...], dict[str, Any]]  # what a layer is called with besides the state
ArgumentPath = tuple[
    Any, ...
]  # where a tensor is among a layer's arguments: kind of layer, position or name, and so on


@dataclass(frozen=True)
class LayerCalls:
    """How an encoder calls its layers for one batch, so that they can be run in any order.

    Attributes:
        arguments: by kind of layer.
        family: the model's entry in the family table.
    """

    arguments: dict[Hashable, LayerArguments]
    family: Family

    def run(self, layer: nn.Module, state: Tensor) -> Tensor:
        """One layer's output for a state, both ``(batch, tokens, hidden)``."""
        args, kwargs = self.arguments[layer_type(layer, self.family)]
        output = layer(state, *args, **kwargs)
        return output[0] if self.family.layer_output_is_tuple else output

    def map_tensors(self, function: Callable[[ArgumentPath, Tensor], Tensor]) -> "LayerCalls":
        """The same calls with every tensor among their arguments changed."""
        arguments = {kind: _map_tensors((kind,), value, function) for kind, value in self.arguments.items()}
        return LayerCalls(arguments, self.family)

    def attention_mask(self, layer: nn.Module) -> Tensor | None:
        """The mask that a layer is called with, as its attention takes it; None where nothing is masked."""
        args, kwargs = self.arguments[layer_type(layer, self.family)]
        mask: Tensor | None = kwargs["attention_mask"] if "attention_mask" in kwargs else args[0]
        return mask


def _map_tensors(path: ArgumentPath, value: Any, function: Callable[[ArgumentPath, Tensor], Tensor]) -> Any:
    """The same nested value with every tensor changed."""
    if isinstance(value, Tensor):
        return function(path, value)
    if isinstance(value, tuple | list):
        return type(value)(_map_tensors((*path, index), part, function) for index, part in enumerate(value))
    if isinstance(value, dict):
        return {name: _map_tensors((*path, name), part, function) for name, part in value.items()}
    return value


PreparedBatch = tuple[Tensor, LayerCalls]  # the embedding output (batch, tokens, hidden), and how to go on from it


def record_layer_calls(network: PreTrainedModel, family: Family, inputs: dict[str, Tensor]) -> PreparedBatch:
    """Let the stock forward prepare a batch (embeddings, masks, positions), and stop it at the layers."""
    catcher = LayerCallRecorder(stack_of(network, family), family)
    with _replaced_stack(network, family, catcher.placeholders):
        return catcher.record(network, inputs)


class LayerCallRecorder:
    """Stands where the layers stood, and catches what they would be called with. Safe to use from many threads.

    Attributes:
        stands: to be set as the network's stack.
    """

    def __init__(self, layers: Iterable[nn.Module], family: Family) -> None:
        kinds = {layer_type(layer, family): layer for layer in layers}
        self._family, self._count, self._recorded = family, len(kinds), threading.local()
        self.placeholders = nn.ModuleList(
            _PlaceholderLayer(layer, family, self._recording_forward(kind)) for kind, layer in kinds.items()
        )

    def record(self, network: PreTrainedModel, inputs: dict[str, Tensor]) -> PreparedBatch:
        """Run the network, whose stack holds the stands, until its layers' arguments are known."""
        self._recorded.arguments = {}
        try:
            network(**inputs)
        except _LayersReached as caught:
            return caught.embedding, LayerCalls(self._recorded.arguments, self._family)
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
    """Inside the scope a forward pass skips all layers and reads the task's answer off ``state``.

    Args:
        network: a model of the family.
        family: its entry in the family table.
        state: the output of some layer for the same batch, ``(batch, tokens, hidden)``.
    """
    output = (state, None) if family.layer_output_is_tuple else state
    given = _PlaceholderLayer(stack_of(network, family)[0], family, lambda *_, **__: output)
    with _replaced_stack(network, family, nn.ModuleList([given])):
        yield


class _LayersReached(Exception):
    """Ends a forward pass once its layers' arguments are known."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.embedding = embedding


class _PlaceholderLayer(nn.Module):
    """Stands where a layer stood, with another function."""

    def __init__(self, layer: nn.Module, family: Family, function: Any) -> None:
        super().__init__()
        self.function = function
        for name in family.layer_attributes:
            setattr(self, name, getattr(layer, name))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def layer_type(layer: nn.Module, family: Family) -> Hashable:
    """Layers of one kind get the same arguments."""
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
    """The same inputs with the mask as plain layers take it, ``(batch, 1, 1, tokens)``, True for tokens.

    Given ``(batch, tokens)``, the stock forward asks the device each time whether anything is padded, and waits for the
    answer. Families whose layers or heads want the mask in its first shape keep it.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2 or not _has_fast_path(network, family):
        return inputs
    return inputs | {"attention_mask": mask[:, None, None, :].bool()}


def _has_fast_path(network: PreTrainedModel, family: Family) -> bool:
    return family.fast_path is not None and network.config._attn_implementation == "sdpa"
