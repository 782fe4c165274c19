"""Sequences with hidden words as a trainer takes them: batch by batch, hidden anew in every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from limbert.data.draws import row_keys
from limbert.data.mlm.masking import Masking
from limbert.data.mlm.packing import PackedRows
from limbert.data.shuffle import Shuffle, ShuffledBatches

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
