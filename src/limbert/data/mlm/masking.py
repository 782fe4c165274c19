"""Which tokens of a sequence are hidden, and what stands in their place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from limbert.data.mlm.packing import PackedSequences

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def derive_keys(seed: int, *counters: np.ndarray) -> np.ndarray:
    """A key for each row, ``(rows,)`` uint64, that follows from the seed and the row's numbers, each ``(rows,)``."""
    keys = splitmix64(np.full(len(counters[0]), seed % 2**64, dtype=np.uint64) + _GAMMA)
    for values in counters:
        keys = splitmix64((keys ^ values.astype(np.uint64)) + _GAMMA)
    return keys


def uniform_at(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Numbers from 0 to below 1: those at these places of the sequences that the keys begin; shapes are broadcast."""
    values = splitmix64(keys + _GAMMA * (counters.astype(np.uint64) + np.uint64(1)))
    return (values >> np.uint64(11)) * 2.0**-53


def splitmix64(values: np.ndarray) -> np.ndarray:
    """Bits spread over the whole word (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MULTIPLIERS[0]
    values = (values ^ (values >> np.uint64(27))) * _MULTIPLIERS[1]
    return values ^ (values >> np.uint64(31))


_ROUNDS = 4


class Permutation:
    """A permutation of ``0 .. count-1``: a Feistel network over the next power of four, walked until it falls inside.

    (J. Black, P. Rogaway: "Ciphers with arbitrary finite domains", CT-RSA 2002.) The same seed gives the same order.
    """

    def __init__(self, count: int, *, seed: int) -> None:
        self.count = count
        self._half_bits = np.uint64(max(1, (max(count - 1, 1).bit_length() + 1) // 2))
        self._keys = np.random.default_rng([seed, count]).integers(0, 2**63, _ROUNDS, dtype=np.uint64)

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """The rows that stand at these places, both ``(places,)`` int64."""
        values = self._feistel(indices.astype(np.uint64))
        while (outside := values >= self.count).any():
            values[outside] = self._feistel(values[outside])
        return values.astype(np.int64)

    def _feistel(self, values: np.ndarray) -> np.ndarray:
        mask = (np.uint64(1) << self._half_bits) - np.uint64(1)
        left, right = values >> self._half_bits, values & mask
        for key in self._keys:
            left, right = right, left ^ (splitmix64(right + key) & mask)
        return (left << self._half_bits) | right


class ShuffledBatches(Sequence[list[int]]):
    """One epoch of batches in random order, every row once; the last batch may be smaller.

    Args:
        count: rows.
        batch_size: rows a batch.
        seed: of the order.
        offset: added to every row's number.
    """

    def __init__(self, count: int, *, batch_size: int, seed: int, offset: int = 0) -> None:
        self._permutation, self._batch_size, self._offset = Permutation(count, seed=seed), batch_size, offset
        self._batch_indices = range(-(-count // batch_size))

    def __len__(self) -> int:
        return len(self._batch_indices)

    @overload
    def __getitem__(self, place: int) -> list[int]: ...
    @overload
    def __getitem__(self, place: slice) -> "ShuffledBatches": ...
    def __getitem__(self, index: int | slice) -> "list[int] | ShuffledBatches":
        if isinstance(index, slice):
            part = ShuffledBatches.__new__(ShuffledBatches)
            part._permutation, part._batch_size, part._offset = self._permutation, self._batch_size, self._offset
            part._batch_indices = self._batch_indices[index]
            return part
        start = self._batch_indices[index] * self._batch_size
        rows = self._permutation(np.arange(start, min(start + self._batch_size, self._permutation.count)))
        return (rows + self._offset).tolist()


MASK_REPLACE_PROB, RANDOM_REPLACE_PROB = (
    0.8,
    0.1,
)  # of the hidden tokens: shown as the mask, as a random token; the rest as they are


@dataclass(frozen=True)
class TokenMasking:
    """How words are hidden: 80 % by the mask token, 10 % by a random one, 10 % not at all, yet all are asked for.

    (Devlin et al., arXiv 1810.04805, section 3.1; whole words as in its later release.)

    Attributes:
        mask_id: the mask token.
        replacements: ids that may stand for a hidden token: all but the special ones, ``(ids,)``.
        special: ids that are never hidden.
        share: of a sequence's tokens, its first and last left aside, that are hidden.
        whole_word: hide all tokens of a word or none.
    """

    mask_token_id: int
    random_token_ids: np.ndarray
    unmaskable_ids: frozenset[int]
    mask_fraction: float
    whole_word: bool

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, *, mask_fraction: float, whole_word: bool
    ) -> "TokenMasking":
        """The masking for a tokenizer's vocabulary."""
        special = frozenset(int(token) for token in tokenizer.all_special_ids)
        plain = np.setdiff1d(np.arange(len(tokenizer)), sorted(special))
        never = special - {tokenizer.unk_token_id}  # an unknown word is a word
        return cls(int(tokenizer.mask_token_id), plain, never, mask_fraction, whole_word)

    def mask_tokens(
        self, ids: np.ndarray, word_starts: np.ndarray, attention_mask: np.ndarray, *, keys: np.ndarray
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
        free = attention_mask & ~np.isin(ids, [*self.unmaskable_ids])
        free_tokens = free.sum(axis=1)
        wanted = np.minimum(free_tokens, np.maximum(1, np.round(self.mask_fraction * (attention_mask.sum(axis=1) - 2))))
        draws = uniform_at(keys[:, None], np.arange(length + 1))
        token_draws, row_draws = draws[:, :-1], draws[:, -1]
        units = free & word_starts if self.whole_word else free
        count = np.floor(units.sum(axis=1) * wanted / np.maximum(free_tokens, 1) + row_draws)  # of units; as a mean
        lowest = np.sort(np.where(units, token_draws, 2.0), axis=1)
        bound = lowest[np.arange(rows), np.maximum(count, 1).astype(np.int64) - 1]
        if self.whole_word:  # a word is drawn with its first token
            first = np.maximum.accumulate(np.where(word_starts, np.arange(length), 0), axis=1)
            token_draws = np.take_along_axis(token_draws, first, axis=1)
        hidden = free & (token_draws <= bound[:, None])
        return hidden, self._replace_tokens(ids, hidden, keys)

    def _replace_tokens(self, ids: np.ndarray, masked: np.ndarray, keys: np.ndarray) -> np.ndarray:
        rows, places = np.nonzero(masked)
        draws = uniform_at(keys[rows], places + ids.shape[1] + 1)  # none that the choice was made with
        swapped = (draws >= MASK_REPLACE_PROB) & (draws < MASK_REPLACE_PROB + RANDOM_REPLACE_PROB)
        among = (draws[swapped] - MASK_REPLACE_PROB) / RANDOM_REPLACE_PROB * len(self.random_token_ids)
        shown = ids.copy()
        shown[rows[draws < MASK_REPLACE_PROB], places[draws < MASK_REPLACE_PROB]] = self.mask_token_id
        shown[rows[swapped], places[swapped]] = self.random_token_ids[
            np.minimum(among.astype(np.int64), len(self.random_token_ids) - 1)
        ]
        return shown


IGNORE_INDEX = -100  # the label of a token that is not hidden


@dataclass(frozen=True)
class MaskedSequences:
    """Some sequences of a corpus.

    What is hidden in a sequence follows from the seed, the sequence and the epoch alone: a run that is resumed, or
    split over processes, hides the same.

    Attributes:
        packed: all sequences of the corpus.
        masking: how words are hidden.
        order: puts the sequences of the corpus into the order that ``first`` and ``count`` choose from.
        first, count: these are the sequences at the places ``first .. first + count - 1`` of that order.
        seed: of what is hidden.
    """

    packed: PackedSequences
    masking: TokenMasking
    permutation: Permutation
    start: int
    count: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def with_seed(self, seed: int) -> "MaskedSequences":
        """The same sequences with other tokens hidden."""
        return replace(self, seed=seed)

    def batches(self, *, batch_size: int, seed: int, epoch: int) -> Sequence[list[int]]:
        """One epoch of batches for `collate`, every sequence once. Numbers go on from epoch to epoch."""
        return ShuffledBatches(self.count, batch_size=batch_size, seed=seed + epoch, offset=epoch * self.count)

    def sequential_batches(self, *, batch_size: int) -> list[list[int]]:
        """All sequences in batches for `collate`, always with the same tokens hidden: for evaluation."""
        return [list(range(start, min(start + batch_size, self.count))) for start in range(0, self.count, batch_size)]

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """One batch, row by row.

        Args:
            indices: ``epoch * len(self) + number`` of each sequence.

        Returns:
            ``input_ids``, the tokens as they are shown, ``attention_mask``, and ``labels``: what stands at the hidden
            tokens, `NOT_ASKED` at all others; each long, ``(batch, tokens)``.
        """
        epochs, numbers = np.divmod(np.asarray(indices, dtype=np.int64), self.count)
        rows = self.permutation(numbers + self.start)
        ids, starts, real = self.packed.read(rows)
        keys = derive_keys(self.seed, rows, epochs)
        hidden, shown = self.masking.mask_tokens(ids, starts, real, keys=keys)
        return {
            "input_ids": torch.from_numpy(shown),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
            "labels": torch.from_numpy(np.where(hidden, ids, IGNORE_INDEX)),
        }

    def prepare_inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch, or some rows of one, as a network that answers at some places takes it. On the CPU.

        Returns:
            ``input_ids`` and ``attention_mask`` as they are; ``positions`` ``(hidden,)``, places in the flattened batch
            that are asked for; ``labels`` ``(hidden,)``, what stands there.
        """
        labels = batch["labels"].flatten()
        positions = (labels != IGNORE_INDEX).nonzero().squeeze(1)
        return batch | {"positions": positions, "labels": labels[positions]}


def split_validation_sequences(
    packed: PackedSequences, masking: TokenMasking, *, num_splits: int, fraction: float, max_sequences: int, seed: int
) -> tuple[MaskedSequences, tuple[MaskedSequences, ...]]:
    """Training sequences, and random slices kept back from them: one that chooses and scores, one to report on.

    Args:
        packed: more than two sequences a slice.
        masking: how words are hidden.
        slices: how many.
        share: of the sequences in each slice.
        limit: at most so many in each slice.
        seed: of the choice and of what is hidden.
    """
    order = Permutation(len(packed), seed=seed)
    size = max(1, min(max_sequences, round(fraction * len(packed)), (len(packed) - 1) // 2))
    kept = tuple(MaskedSequences(packed, masking, order, number * size, size, seed) for number in range(num_splits))
    return MaskedSequences(packed, masking, order, num_splits * size, len(packed) - num_splits * size, seed), kept


def sample_sequences(
    packed: PackedSequences, masking: TokenMasking, *, max_sequences: int, seed: int
) -> MaskedSequences:
    """Sequences of a corpus that is only reported on: all, or a random choice of so many."""
    return MaskedSequences(
        packed, masking, Permutation(len(packed), seed=seed), 0, min(max_sequences, len(packed)), seed
    )
