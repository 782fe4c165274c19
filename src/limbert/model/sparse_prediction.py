"""Sparse prediction: apply a token-level head to some positions of a batch only.

The head of a masked language model multiplies every token with the whole vocabulary, which costs more than a small
encoder, but only about 15 % of the tokens are masked. The heads of all families are functions of a single token's
state, so they can be applied to the states of those tokens alone.
"""

from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

_positions: ContextVar[Tensor | None] = ContextVar("positions", default=None)


def enable_sparse_prediction(network: PreTrainedModel) -> None:
    """Add an input ``positions`` to the network, with hooks: its weights and what it saves stay the same.

    ``network(..., positions=p)`` with indices ``(chosen,)`` into the flattened batch returns logits
    ``(chosen, outputs)``; labels are then ``(chosen,)``, and the loss is over these positions. Without ``positions``
    the network is unchanged.

    Args:
        network: with a token-level head: masked language modelling or token classification.
    """
    network.register_forward_pre_hook(_pop_positions, with_kwargs=True)
    network.base_model.register_forward_hook(_select_positions)
    network.register_forward_hook(_clear_positions, always_call=True)  # also if a pass is stopped at the layers


def _pop_positions(
    network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    _positions.set(kwargs.pop("positions", None))
    return args, kwargs


def _select_positions(base: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Keep the states at the positions: ``(batch, tokens, hidden) -> (chosen, hidden)``."""
    positions = _positions.get()
    if positions is not None:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[positions]
    return output


def _clear_positions(network: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    _positions.set(None)
