"""Which tokens of a sequence are hidden, and what stands in their place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from limbert.data.mlm.packing import PackedRows

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def row_keys(seed: int, *numbers: np.ndarray) -> np.ndarray:
    """A key for each row, ``(rows,)`` uint64, that follows from the seed and the row's numbers, each ``(rows,)``."""
    keys = mixed(np.full(len(numbers[0]), seed % 2**64, dtype=np.uint64) + _STEP)
    for values in numbers:
        keys = mixed((keys ^ values.astype(np.uint64)) + _STEP)
    return keys


def uniform(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Numbers from 0 to below 1: those at these places of the sequences that the keys begin; shapes are broadcast."""
    values = mixed(keys + _STEP * (places.astype(np.uint64) + np.uint64(1)))
    return (values >> np.uint64(11)) * 2.0**-53


def mixed(values: np.ndarray) -> np.ndarray:
    """Bits spread over the whole word (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))


_ROUNDS = 4


class Shuffle:
    """A permutation of ``0 .. count-1``: a Feistel network over the next power of four, walked until it falls inside.

    (J. Black, P. Rogaway: "Ciphers with arbitrary finite domains", CT-RSA 2002.) The same seed gives the same order.
    """

    def __init__(self, count: int, *, seed: int) -> None:
        self.count = count
        self._half = np.uint64(max(1, (max(count - 1, 1).bit_length() + 1) // 2))
        self._keys = np.random.default_rng([seed, count]).integers(0, 2**63, _ROUNDS, dtype=np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """The rows that stand at these places, both ``(places,)`` int64."""
        values = self._walk(places.astype(np.uint64))
        while (outside := values >= self.count).any():
            values[outside] = self._walk(values[outside])
        return values.astype(np.int64)

    def _walk(self, values: np.ndarray) -> np.ndarray:
        mask = (np.uint64(1) << self._half) - np.uint64(1)
        left, right = values >> self._half, values & mask
        for key in self._keys:
            left, right = right, left ^ (mixed(right + key) & mask)
        return (left << self._half) | right


class ShuffledBatches(Sequence[list[int]]):
    """One epoch of batches in random order, every row once; the last batch may be smaller.

    Args:
        count: rows.
        batch_size: rows a batch.
        seed: of the order.
        offset: added to every row's number.
    """

    def __init__(self, count: int, *, batch_size: int, seed: int, offset: int = 0) -> None:
        self._order, self._size, self._offset = Shuffle(count, seed=seed), batch_size, offset
        self._numbers = range(-(-count // batch_size))

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> list[int]: ...
    @overload
    def __getitem__(self, place: slice) -> "ShuffledBatches": ...
    def __getitem__(self, place: int | slice) -> "list[int] | ShuffledBatches":
        if isinstance(place, slice):
            part = ShuffledBatches.__new__(ShuffledBatches)
            part._order, part._size, part._offset = self._order, self._size, self._offset
            part._numbers = self._numbers[place]
            return part
        start = self._numbers[place] * self._size
        rows = self._order(np.arange(start, min(start + self._size, self._order.count)))
        return (rows + self._offset).tolist()


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


NOT_ASKED = -100  # the label of a token that is not hidden


@dataclass(frozen=True)
class MaskedRows:
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

    packed: PackedRows
    masking: Masking
    order: Shuffle
    first: int
    count: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def seeded(self, seed: int) -> "MaskedRows":
        """The same sequences with other tokens hidden."""
        return replace(self, seed=seed)

    def batches(self, *, batch_size: int, seed: int, epoch: int) -> Sequence[list[int]]:
        """One epoch of batches for `collate`, every sequence once. Numbers go on from epoch to epoch."""
        return ShuffledBatches(self.count, batch_size=batch_size, seed=seed + epoch, offset=epoch * self.count)

    def in_order(self, *, batch_size: int) -> list[list[int]]:
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
        rows = self.order(numbers + self.first)
        ids, starts, real = self.packed.read(rows)
        keys = row_keys(self.seed, rows, epochs)
        hidden, shown = self.masking.hide(ids, starts, real, keys=keys)
        return {
            "input_ids": torch.from_numpy(shown),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
            "labels": torch.from_numpy(np.where(hidden, ids, NOT_ASKED)),
        }

    def ready(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch, or some rows of one, as a network that answers at some places takes it. On the CPU.

        Returns:
            ``input_ids`` and ``attention_mask`` as they are; ``positions`` ``(hidden,)``, places in the flattened batch
            that are asked for; ``labels`` ``(hidden,)``, what stands there.
        """
        labels = batch["labels"].flatten()
        positions = (labels != NOT_ASKED).nonzero().squeeze(1)
        return batch | {"positions": positions, "labels": labels[positions]}


def held_back(
    packed: PackedRows, masking: Masking, *, slices: int, share: float, limit: int, seed: int
) -> tuple[MaskedRows, tuple[MaskedRows, ...]]:
    """Training sequences, and random slices kept back from them: one that chooses and scores, one to report on.

    Args:
        packed: more than two sequences a slice.
        masking: how words are hidden.
        slices: how many.
        share: of the sequences in each slice.
        limit: at most so many in each slice.
        seed: of the choice and of what is hidden.
    """
    order = Shuffle(len(packed), seed=seed)
    size = max(1, min(limit, round(share * len(packed)), (len(packed) - 1) // 2))
    kept = tuple(MaskedRows(packed, masking, order, number * size, size, seed) for number in range(slices))
    return MaskedRows(packed, masking, order, slices * size, len(packed) - slices * size, seed), kept


def all_rows(packed: PackedRows, masking: Masking, *, limit: int, seed: int) -> MaskedRows:
    """Sequences of a corpus that is only reported on: all, or a random choice of so many."""
    return MaskedRows(packed, masking, Shuffle(len(packed), seed=seed), 0, min(limit, len(packed)), seed)
