"""The logits of many batches, put back in the order of the examples: a row an example, or a row a token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from limbert.data.tokenize import TokenizedExamples


class Gathering:
    """Collects what one network says about all examples.

    Args:
        examples: what the batches are made of.
    """

    def __init__(self, examples: TokenizedExamples) -> None:
        self._examples = examples
        self._rows: Tensor | None = None

    def add(self, indices: Sequence[int], logits: Tensor, mask: Tensor) -> None:
        """Note the answers to a batch.

        Args:
            indices: of its examples.
            logits: ``(batch, outputs)``, or ``(batch, tokens, outputs)`` where answers stand at tokens.
            mask: ``(batch, tokens)``, 1 for tokens and 0 for padding; padding is no answer.
        """
        at_tokens = logits.ndim == 3
        values = (logits[mask.bool()] if at_tokens else logits).float()
        if self._rows is None:
            count = len(self._examples.tokens.ids) if at_tokens else len(self._examples)
            self._rows = torch.empty(count, values.shape[-1], device=values.device)
        self._rows[torch.from_numpy(self._examples.token_places(indices)) if at_tokens else list(indices)] = values

    @property
    def rows(self) -> Tensor:
        """``(examples, outputs)``, or ``(all tokens, outputs)``; all batches must have been added."""
        assert self._rows is not None
        return self._rows
