"""Batches equal the tokenizer's own padding and are as long as their longest example."""

import copy

import numpy as np
import pytest
import torch

from limbert.data import tokenize as batches
from limbert.data.readers import Examples
from limbert.data.tokenize import evaluation_batches, tokenize_texts, training_batches
from limbert.errors import ConfigError

TEXTS = ("A short one.", "A somewhat longer sentence that has more tokens than the others.", "Two.", "word " * 300)
PAIRS = ("Its pair is longer than it is.", "No.", "x " * 200, "word " * 100)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBERT_CACHE", str(tmp_path))


@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_batches_equal_padding_by_the_tokenizer(tokenizer, pairs, monkeypatch):
    monkeypatch.setattr(batches, "_CHUNK", 3)  # several chunks
    data = tokenize_texts(Examples(TEXTS, pairs, None), tokenizer, max_length=32)
    for indices in ([0, 1, 2, 3], [2, 0], [2], [3, 3]):
        expected = tokenizer(
            [TEXTS[index] for index in indices],
            pairs and [pairs[index] for index in indices],
            truncation=True,
            max_length=32,
            padding=True,
            return_tensors="pt",
        )
        batch = data.collate(indices)
        assert batch.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(batch[name], tensor), name
            assert batch[name].dtype == torch.long


@pytest.mark.parametrize(("labels", "dtype"), [((2, 0, 1, 1), torch.long), ((0.5, 5.0, 1.0, 2.0), torch.float32)])
def test_labels_follow_their_examples(tokenizer, labels, dtype):
    data = tokenize_texts(Examples(TEXTS, None, labels), tokenizer, max_length=16)
    found = data.collate([3, 0])["labels"]
    assert found.dtype == dtype
    assert found.tolist() == [labels[3], labels[0]]
    unlabelled = tokenize_texts(Examples(TEXTS, None, None), tokenizer, max_length=16)
    assert "labels" not in unlabelled.collate([0])


def test_tokenizer_without_padding_token_is_refused(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(ConfigError, match="padding token"):
        tokenize_texts(Examples(TEXTS, None, None), tokenizer, max_length=16)


@pytest.mark.parametrize("examples", [1, 31, 32, 33, 5000])
def test_training_batches_hold_every_example_once(examples):
    lengths = np.random.default_rng(0).integers(3, 128, size=examples)
    found = training_batches(lengths, batch_size=32, seed=1, epoch=0)
    assert sorted(index for batch in found for index in batch) == list(range(examples))
    assert len(found) == -(-examples // 32)
    assert sum(len(batch) < 32 for batch in found) == (examples % 32 > 0)


def test_training_batches_follow_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(3, 128, size=4000)
    first, again, second, other = (
        {frozenset(batch) for batch in training_batches(lengths, batch_size=8, seed=seed, epoch=epoch)}
        for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    assert first == again
    assert max(len(first & second), len(first & other)) < len(first) / 10


def test_training_batches_have_little_padding():
    lengths = np.random.default_rng(0).integers(3, 128, size=10_000)
    found = training_batches(lengths, batch_size=32, seed=0, epoch=0)
    padded = sum(len(batch) * lengths[batch].max() for batch in found)
    assert padded < 1.05 * lengths.sum()
    one_pool = training_batches(lengths[:1600], batch_size=32, seed=0, epoch=0)
    longest = np.array([lengths[batch].max() for batch in one_pool])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.5


def test_evaluation_batches_start_with_the_longest():
    lengths = np.random.default_rng(0).integers(3, 128, size=1000)
    for limit in (None, 512, 1):
        found = evaluation_batches(lengths, batch_size=16, max_tokens=limit)
        assert sorted(index for batch in found for index in batch) == list(range(1000))
        order = [lengths[index] for batch in found for index in batch]
        assert order == sorted(order, reverse=True)
        assert all(len(batch) <= 16 for batch in found)
        assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= (limit or 10**9) for batch in found)
    assert evaluation_batches([], batch_size=4) == []
