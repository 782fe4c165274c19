"""Masked sequences for pre-training: which tokens are masked follows from seed, sequence and epoch alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForLanguageModeling

from limbert.core.task_types import IGNORE_INDEX
from limbert.files import json_fingerprint


def draw_numbers(seed: int, row: int, epoch: int, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1) ``(count,)`` by a counter-based generator: they follow from the arguments alone."""
    key = np.array([seed % 2**64, row], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, epoch])).random(count)


@dataclass
class CounterMaskingCollator(DataCollatorForLanguageModeling):
    """Masks tokens of packed sequences: of the masked ones 80 % show the mask token, 10 % a random one, 10 % their own.

    (Devlin et al., arXiv 1810.04805, section 3.1; whole words as in its later release.) Unlike the base class, the
    masks of a sequence do not depend on its batch: they follow from ``seed`` and its ``row`` and ``epoch``.

    Always ``round(mlm_probability * tokens)`` tokens of a sequence are masked (without its first and last), at least
    one. With ``whole_words``, which masks all tokens of a word or none, that is the mean: this fraction of the words,
    at least one, is chosen regardless of their lengths, so that long words are masked as often as short ones.
    """

    seed: int = 0
    whole_words: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        special = {int(token) for token in self.tokenizer.all_special_ids}
        self._random_ids = np.setdiff1d(np.arange(len(self.tokenizer)), sorted(special))
        self._unmaskable_ids = sorted(special - {self.tokenizer.unk_token_id})  # an unknown word is a word

    def torch_call(self, examples: list[Any]) -> dict[str, Tensor]:
        """Collate rows of `corpus.pack_corpus`, each perhaps with its ``epoch``.

        Returns:
            ``input_ids`` with masks, ``attention_mask``, and ``labels`` with -100 at tokens that are not masked; each
            long, ``(batch, tokens)``.
        """
        ids = np.stack([example["input_ids"] for example in examples]).astype(np.int64)
        word_starts = np.stack([example["word_starts"] for example in examples])
        attention_mask = np.arange(ids.shape[1]) < np.array([[example["length"]] for example in examples])
        draws = 2 * ids.shape[1] + 1
        counters = [(int(example["row"]), int(example.get("epoch", 0))) for example in examples]
        numbers = np.stack([draw_numbers(self.seed, row, epoch, draws) for row, epoch in counters])
        masked, shown = self.mask_tokens(ids, word_starts, attention_mask, numbers=numbers)
        return {
            "input_ids": torch.from_numpy(shown),
            "attention_mask": torch.from_numpy(attention_mask.astype(np.int64)),
            "labels": torch.from_numpy(np.where(masked, ids, IGNORE_INDEX)),
        }

    def mask_tokens(
        self, ids: np.ndarray, word_starts: np.ndarray, attention_mask: np.ndarray, *, numbers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens are masked, and the sequences as shown to the model, both ``(rows, tokens)``.

        So are ``ids``, ``word_starts`` (does a token begin a word?) and ``attention_mask``; ``numbers``,
        ``(rows, 2 tokens + 1)``, are random in [0, 1).
        """
        rows, length = ids.shape
        maskable = attention_mask & ~np.isin(ids, self._unmaskable_ids)
        num_maskable = maskable.sum(axis=1)
        wanted = np.maximum(1, np.round(self.mlm_probability * (attention_mask.sum(axis=1) - 2)))
        wanted = np.minimum(num_maskable, wanted)
        token_numbers, row_numbers, replacement_numbers = np.split(numbers, [length, length + 1], axis=1)
        units = maskable & word_starts if self.whole_words else maskable
        count = np.floor(
            units.sum(axis=1) * wanted / np.maximum(num_maskable, 1) + row_numbers[:, 0]
        )  # exact in the mean
        lowest = np.sort(np.where(units, token_numbers, 2.0), axis=1)
        threshold = lowest[np.arange(rows), np.maximum(count, 1).astype(np.int64) - 1]
        if self.whole_words:  # a word has the number of its first token
            first = np.maximum.accumulate(np.where(word_starts, np.arange(length), 0), axis=1)
            token_numbers = np.take_along_axis(token_numbers, first, axis=1)
        masked = maskable & (token_numbers <= threshold[:, None])
        drawn = replacement_numbers[masked]
        hidden, fraction = drawn < self.mask_replace_prob, (drawn - self.mask_replace_prob) / self.random_replace_prob
        random_ids = self._random_ids[(fraction.clip(0, 1 - 1e-9) * len(self._random_ids)).astype(np.int64)]
        shown = ids.copy()
        shown[masked] = np.where(hidden, self.tokenizer.mask_token_id, np.where(fraction < 1, random_ids, ids[masked]))
        return masked, shown


@dataclass(frozen=True)
class MaskedSequences:
    """Packed sequences with the collator that masks them; it makes its own batches."""

    dataset: Dataset  # from `corpus.pack_corpus`, or a part of it
    collator: CounterMaskingCollator

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, ``(sequences,)``."""
        return np.asarray(self.dataset["length"][:])

    @property
    def fingerprint(self) -> str:
        """Of the sequences: their number, and some of them evenly spread."""
        some = self.dataset[np.linspace(0, len(self) - 1, min(len(self), 256)).astype(np.int64)]
        return json_fingerprint([len(self), some["row"].tolist(), some["input_ids"].tolist()])

    def with_seed(self, seed: int) -> "MaskedSequences":
        """The same sequences with other masks."""
        return replace(self, collator=replace(self.collator, seed=seed))

    def batches(self, *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
        """One epoch of random batches for `collate`, every sequence once; indices continue from epoch to epoch."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self)) + epoch * len(self)
        return [order[start : start + batch_size].tolist() for start in range(0, len(self), batch_size)]

    def sequential_batches(self, *, batch_size: int) -> list[list[int]]:
        """All sequences in order, with the masks of epoch 0: for evaluation."""
        return [list(range(start, min(start + batch_size, len(self)))) for start in range(0, len(self), batch_size)]

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of indices ``epoch * len(self) + number``; see `CounterMaskingCollator.torch_call`."""
        epochs, numbers = np.divmod(np.asarray(indices, dtype=np.int64), len(self))
        examples = self.dataset.__getitems__(numbers.tolist())
        batch: dict[str, Tensor] = self.collator(
            [example | {"epoch": epoch} for example, epoch in zip(examples, epochs, strict=True)]
        )
        return batch

    def prepare_inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch, or some of its rows, for a network with sparse prediction.

        ``labels`` are those of the masked tokens alone, ``(masked,)``, and ``positions`` ``(masked,)`` are the indices
        of these tokens in the flattened batch.
        """
        labels = batch["labels"].flatten()
        positions = (labels != IGNORE_INDEX).nonzero().squeeze(1)
        return batch | {"positions": positions, "labels": labels[positions]}


def split_validation_sequences(
    sequences: MaskedSequences, *, num_splits: int, fraction: float, max_sequences: int, seed: int
) -> tuple[MaskedSequences, tuple[MaskedSequences, ...]]:
    """Training sequences, and random validation splits that share no sequence with them or one another.

    A split has this fraction of the sequences, at most ``max_sequences``; there must be more than two per split.
    """
    count = len(sequences)
    size = max(1, min(max_sequences, round(fraction * count), (count - 1) // 2))
    order = np.random.default_rng(seed).permutation(count)
    held_out = num_splits * size
    splits = (_select(sequences, order[start : start + size]) for start in range(0, held_out, size))
    return _select(sequences, np.sort(order[held_out:])), tuple(splits)


def sample_sequences(sequences: MaskedSequences, *, max_sequences: int, seed: int) -> MaskedSequences:
    """All sequences, or a random sample of them."""
    if len(sequences) <= max_sequences:
        return sequences
    return _select(sequences, np.random.default_rng(seed).permutation(len(sequences))[:max_sequences])


def _select(sequences: MaskedSequences, indices: np.ndarray) -> MaskedSequences:
    return replace(sequences, dataset=sequences.dataset.select(indices, keep_in_memory=True))
