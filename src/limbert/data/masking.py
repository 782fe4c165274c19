"""Which tokens of a sequence are hidden, and what stands in their place."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

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
        self, ids: np.ndarray, starts: np.ndarray, *, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """One sequence with some of its tokens hidden.

        Always ``round(share * tokens)`` of them, so that every full sequence asks for as many, at least one if any can
        be hidden; with whole words at most as many.

        Args:
            ids: ``(tokens,)``, without padding.
            starts: ``(tokens,)``, whether a token begins a word.
            generator: what the choice follows from.

        Returns:
            Places of the hidden tokens in rising order ``(hidden,)``, and the sequence as it is shown ``(tokens,)``.
        """
        free = np.flatnonzero(~np.isin(ids, list(self.special)))
        count = min(len(free), max(1, round(self.share * (len(ids) - 2))))
        if self.whole_word:
            places = _whole_words(free, np.cumsum(starts)[free], count=count, generator=generator)
        else:
            places = np.sort(generator.choice(free, size=count, replace=False))
        shown = ids.copy()
        draw = generator.random(len(places))
        shown[places[draw < MASKED]] = self.mask_id
        swapped = places[(draw >= MASKED) & (draw < MASKED + REPLACED)]
        shown[swapped] = generator.choice(self.replacements, size=len(swapped))
        return places, shown


def _whole_words(free: np.ndarray, words: np.ndarray, *, count: int, generator: np.random.Generator) -> np.ndarray:
    """Places of whole words in random order until ``count`` are taken; words that would be too much are passed over."""
    if not len(free):
        return free
    _, first, sizes = np.unique(words, return_index=True, return_counts=True)  # places of a word stand together
    taken: list[int] = []
    for word in generator.permutation(len(first)).tolist():
        if len(taken) + sizes[word] <= count:
            taken += free[first[word] : first[word] + sizes[word]].tolist()
        if len(taken) == count:
            break
    if not taken:  # every word is longer than that
        shortest = int(sizes.argmin())
        taken = free[first[shortest] : first[shortest] + sizes[shortest]].tolist()
    return np.sort(np.asarray(taken, dtype=np.int64))
