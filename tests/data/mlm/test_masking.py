"""Masks are what the rule says, and depend on seed, sequence and epoch alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tests.factories.corpora import make_lines, make_sequences, pack_tokens
from transformers import PreTrainedTokenizerBase

from limbert.core.config import CorpusConfig
from limbert.data.mlm.corpus import pack_corpus
from limbert.data.mlm.masking import MaskedSequences, draw_numbers, sample_sequences, split_validation_sequences


@pytest.fixture
def sequences(
    tokenizer: PreTrainedTokenizerBase, write: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> MaskedSequences:
    monkeypatch.setenv("LIMBERT_CACHE", str(tmp_path / "cache"))
    path = write("text.txt", "\n".join(make_lines(1000)))
    packed = pack_corpus([str(path)], CorpusConfig(corpus=("-",)), tokenizer, max_length=66)
    return make_sequences(packed, tokenizer)


def mask_all(sequences: MaskedSequences, epoch: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of all sequences in an epoch: true ids, shown ids, and whether they are masked."""
    batch = sequences.collate(range(epoch * len(sequences), (epoch + 1) * len(sequences)))
    ids, labels = sequences.dataset[:]["input_ids"], batch["labels"].numpy()
    masked = labels != -100
    assert np.array_equal(ids[masked], labels[masked])
    prepared = sequences.prepare_inputs(batch)
    assert prepared["positions"].tolist() == np.flatnonzero(masked).tolist()
    assert prepared["labels"].tolist() == ids[masked].tolist()
    return ids, batch["input_ids"].numpy(), masked


def test_fractions_of_masked_tokens(sequences: MaskedSequences, tokenizer: PreTrainedTokenizerBase) -> None:
    ids, shown, masked = mask_all(sequences)
    special = np.isin(ids, tokenizer.all_special_ids)
    assert special.sum() > 2 * len(sequences)  # inside sequences too
    assert not (masked & special).any()
    assert (shown[~masked] == ids[~masked]).all()
    full = (ids != tokenizer.pad_token_id).all(axis=1)
    assert (masked[full].sum(axis=1) == round(0.15 * 64)).all()
    hidden, own = (shown == tokenizer.mask_token_id)[masked].mean(), (shown == ids)[masked].mean()
    assert hidden == pytest.approx(0.8, abs=0.02)
    assert own == pytest.approx(0.1, abs=0.02)
    random = shown[masked & (shown != ids) & (shown != tokenizer.mask_token_id)]
    assert not np.isin(random, tokenizer.all_special_ids).any()
    assert len({*random.tolist()}) > 0.9 * len(random)  # of the whole vocabulary
    assert np.ptp(np.bincount(np.nonzero(masked)[1], minlength=66)[1:-1]) < len(sequences) / 3  # at any index


def test_masks_follow_from_seed_row_and_epoch(sequences: MaskedSequences) -> None:
    first, second = mask_all(sequences)[2], mask_all(sequences, epoch=1)[2]
    assert np.array_equal(first, mask_all(sequences)[2])
    assert (first & second).sum() < 0.5 * first.sum()
    assert not np.array_equal(first, mask_all(sequences.with_seed(99))[2])
    part = MaskedSequences(sequences.dataset.select([7, 3]), sequences.collator)
    assert np.array_equal(mask_all(part)[2], first[[7, 3]])


@pytest.mark.parametrize("whole_words", [False, True])
def test_masks_do_not_depend_on_the_batch(
    sequences: MaskedSequences, tokenizer: PreTrainedTokenizerBase, whole_words: bool
) -> None:
    chosen = make_sequences(sequences.dataset, tokenizer, whole_words=whole_words)
    together = chosen.collate(range(40))
    for row in (0, 7, 39):
        alone = chosen.collate([row])
        assert all(torch.equal(alone[name][0], values[row]) for name, values in together.items())


def test_whole_words_are_masked_whole(sequences: MaskedSequences, tokenizer: PreTrainedTokenizerBase) -> None:
    ids, _, masked = mask_all(make_sequences(sequences.dataset, tokenizer, whole_words=True))
    inside = ~sequences.dataset[:]["word_starts"][:, 1:]
    assert inside.sum() > 1000
    assert (masked[:, 1:][inside] == masked[:, :-1][inside]).all()
    assert not (masked & np.isin(ids, tokenizer.all_special_ids)).any()
    assert 0.13 < masked.sum() / (ids.size - 2 * len(sequences)) < 0.18
    single = mask_all(sequences)[2]
    assert (single[:, 1:][inside] != single[:, :-1][inside]).mean() > 0.1  # this test sees split words


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("length", [16, 128])
def test_words_of_all_lengths_are_masked_equally(
    length: int, whole_words: bool, tokenizer: PreTrainedTokenizerBase
) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.choice([1, 2, 3, 4, 5], size=40_000, p=[0.7, 0.15, 0.07, 0.05, 0.03])
    starts = np.zeros(sizes.sum(), dtype=bool)
    starts[np.cumsum(sizes) - sizes] = True
    tokens = np.repeat(sizes, sizes) + 2000  # the token id tells the length of its word
    packed = pack_tokens(tokens, starts, max_length=length, special=(101, 102, 0))
    ids, _, masked = mask_all(make_sequences(packed, tokenizer, whole_words=whole_words))
    content = packed[:]["length"] - 2
    expected = np.maximum(1, np.round(0.15 * content)).sum() / content.sum()
    for size in range(1, 6):
        of_size = ids == size + 2000
        error = 4 * (0.15 * 0.85 / of_size.sum() * (size if whole_words else 1)) ** 0.5  # four standard errors
        assert masked[of_size].mean() == pytest.approx(expected, abs=error + 0.01)
    per_sequence = masked[content == length - 2].sum(axis=1)
    assert per_sequence.min() >= 1
    assert (np.ptp(per_sequence) > 0) == whole_words


def test_counter_based_numbers_are_uniform_and_independent() -> None:
    numbers = np.stack([draw_numbers(3, row, 5, 500) for row in range(400)])
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert stats.chisquare(counts).pvalue > 0.001
    for left, right in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):
        assert abs(np.corrcoef(left.flatten(), right.flatten())[0, 1]) < 0.01
    assert draw_numbers(3, 7, 5, 9)[8] == numbers[7, 8]
    first = [draw_numbers(seed, row, epoch, 1)[0] for seed, row, epoch in np.ndindex(9, 9, 9)]
    assert len({*first}) == 9**3


def test_an_epoch_visits_every_sequence_once(sequences: MaskedSequences) -> None:
    count = len(sequences)
    batches = sequences.batches(batch_size=10, seed=1, epoch=2)
    assert [len(batch) for batch in batches] == [10] * (count // 10) + [count % 10] * (count % 10 > 0)
    assert sorted(index for batch in batches for index in batch) == list(range(2 * count, 3 * count))
    assert batches == sequences.batches(batch_size=10, seed=1, epoch=2)
    assert batches[0] != sequences.batches(batch_size=10, seed=2, epoch=2)[0]


def test_validation_sequences_never_train(sequences: MaskedSequences) -> None:
    train, splits = split_validation_sequences(sequences, num_splits=2, fraction=0.1, max_sequences=5, seed=3)
    rows = [part.dataset["row"][:].tolist() for part in (train, *splits)]
    assert [len(part) for part in rows] == [len(sequences) - 10, 5, 5]
    assert sorted(row for part in rows for row in part) == list(range(len(sequences)))
    assert len(sample_sequences(sequences, max_sequences=4, seed=3)) == 4
    assert sample_sequences(sequences, max_sequences=10**6, seed=3) is sequences
