"""Let a token-wise head answer at some places of a batch only.

A masked-language model's head is a product with the whole vocabulary for every token, more work than the encoder of a
small model; what is asked for is a seventh of the tokens. The heads of all families are functions of one token's state,
so it is enough to hand them fewer states.
"""

from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

_positions: ContextVar[Tensor | None] = ContextVar("positions", default=None)


def enable_sparse_prediction(network: PreTrainedModel) -> None:
    """From now on the network takes one more input, ``positions``, in memory only: what it saves is the stock model.

    ``network(..., positions=places)`` with places ``(chosen,)`` in the flattened batch returns logits
    ``(chosen, outputs)``, and its loss, where labels ``(chosen,)`` are given, is the loss at these places. Without
    ``positions`` it computes what it always did.

    Args:
        network: with a head that treats each token alone: masked words, or labels of tokens.
    """
    network.register_forward_pre_hook(_pop_positions, with_kwargs=True)
    network.base_model.register_forward_hook(_select_positions)
    network.register_forward_hook(_clear_positions, always_call=True)  # also where a pass is stopped at the layers


def _pop_positions(
    network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    _positions.set(kwargs.pop("positions", None))
    return args, kwargs


def _select_positions(base: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Keep the states that the head is asked about: ``(batch, tokens, hidden) -> (chosen, hidden)``."""
    positions = _positions.get()
    if positions is not None:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[positions]
    return output


def _clear_positions(network: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    _positions.set(None)
