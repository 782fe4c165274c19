"""Which tokens of a sequence are hidden, and what stands in their place."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from limbert.data.draws import uniform

MASKED, REPLACED = 0.8, 0.1  # of the hidden tokens: shown as the mask, as a random token; the rest as they are


@dataclass(frozen=True)
class Masking:
    """How words are hidden: 80 % by the mask token, 10 % by a random one, 10 % not at all, yet all are asked for.

    (Devlin et al., arXiv 1810.04805, section 3.1; whole words as in its later release.)

    Attributes:
        mask_id: the mask token.
        replacements: ids that may stand for a hidden token: all but the special ones, ``(ids,)``.
        special: ids that are never hidden.
        share: of a sequence's tokens, its first and last left aside, that are hidden.
        whole_word: hide all tokens of a word or none.
    """

    mask_id: int
    replacements: np.ndarray
    special: frozenset[int]
    share: float
    whole_word: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, share: float, whole_word: bool) -> "Masking":
        """The masking for a tokenizer's vocabulary."""
        special = frozenset(int(token) for token in tokenizer.all_special_ids)
        plain = np.setdiff1d(np.arange(len(tokenizer)), sorted(special))
        never = special - {tokenizer.unk_token_id}  # an unknown word is a word
        return cls(int(tokenizer.mask_token_id), plain, never, share, whole_word)

    def hide(
        self, ids: np.ndarray, starts: np.ndarray, real: np.ndarray, *, keys: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sequences with some of their tokens hidden.

        Always ``round(share * tokens)`` of them, so that every full sequence asks for as many, at least one if any can
        be hidden. With whole words that is the mean: as large a share of a sequence's words, at least one, is chosen
        without looking at their lengths, so that long words are hidden as often as short ones.

        Args:
            ids: ``(rows, tokens)``.
            starts: whether a token begins a word, ``(rows, tokens)``.
            real: what is no padding, ``(rows, tokens)``.
            keys: what the choice in each row follows from, ``(rows,)``; see `row_keys`.

        Returns:
            Whether a token is hidden, and the sequences as they are shown, both ``(rows, tokens)``.
        """
        rows, length = ids.shape
        free = real & ~np.isin(ids, [*self.special])
        free_tokens = free.sum(axis=1)
        wanted = np.minimum(free_tokens, np.maximum(1, np.round(self.share * (real.sum(axis=1) - 2))))
        draws = uniform(keys[:, None], np.arange(length + 1))
        token_draws, row_draws = draws[:, :-1], draws[:, -1]
        units = free & starts if self.whole_word else free
        count = np.floor(units.sum(axis=1) * wanted / np.maximum(free_tokens, 1) + row_draws)  # of units; as a mean
        lowest = np.sort(np.where(units, token_draws, 2.0), axis=1)
        bound = lowest[np.arange(rows), np.maximum(count, 1).astype(np.int64) - 1]
        if self.whole_word:  # a word is drawn with its first token
            first = np.maximum.accumulate(np.where(starts, np.arange(length), 0), axis=1)
            token_draws = np.take_along_axis(token_draws, first, axis=1)
        hidden = free & (token_draws <= bound[:, None])
        return hidden, self._shown(ids, hidden, keys)

    def _shown(self, ids: np.ndarray, hidden: np.ndarray, keys: np.ndarray) -> np.ndarray:
        rows, places = np.nonzero(hidden)
        draws = uniform(keys[rows], places + ids.shape[1] + 1)  # none that the choice was made with
        swapped = (draws >= MASKED) & (draws < MASKED + REPLACED)
        among = (draws[swapped] - MASKED) / REPLACED * len(self.replacements)
        shown = ids.copy()
        shown[rows[draws < MASKED], places[draws < MASKED]] = self.mask_id
        shown[rows[swapped], places[swapped]] = self.replacements[
            np.minimum(among.astype(np.int64), len(self.replacements) - 1)
        ]
        return shown
