"""Candidates are the stock model's predictions at the mask, or nearest neighbours, for every type of tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.factories.networks import make_network
from tests.factories.tokenizers import byte_level, sentence_piece
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from limbert.augment.candidates import (
    WordCandidateGenerator,
    WordVectors,
    find_whole_words,
    load_masked_lm,
    read_word_vectors,
)
from limbert.augment.words import FUNCTION_WORDS
from limbert.errors import CheckpointError, DataError
from limbert.model.sparse_prediction import enable_sparse_prediction


def test_wordpiece_endings_are_not_words(tokenizer: PreTrainedTokenizerBase) -> None:
    after_space, without_space = find_whole_words(tokenizer)
    assert {"house", "running"} <= {*after_space.values()}
    assert after_space == without_space
    for token_id, word in [*after_space.items()][::500]:
        assert tokenizer.convert_ids_to_tokens(token_id) == word
    assert tokenizer.convert_tokens_to_ids("##ing") not in after_space
    assert not [word for word in after_space.values() if not word.isalpha()]


@pytest.mark.parametrize("trim", [True, False])
def test_byte_level_tokens_with_and_without_space(trim: bool) -> None:
    pieces = sentence_piece()
    after_space, _ = find_whole_words(pieces)
    assert {word for word in after_space.values() if len(word) > 1} == {"cat", "dog"}
    tokenizer = byte_level(trim=trim)
    after_space, without_space = find_whole_words(tokenizer)
    token_id = tokenizer.convert_tokens_to_ids
    assert {"cat", "dog", "café"} <= {*after_space.values()}
    assert after_space[token_id("Ġcat")] == "cat"
    assert without_space[token_id("cat")] == "cat"
    assert token_id("ness") not in without_space | after_space


def test_neighbours_are_nearest_by_cosine() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 8)) * np.arange(1, 41)[:, None]
    words = [f"word{'abcdefghij'[index % 10]}{'klmn'[index // 10]}" for index in range(40)]
    norms = np.linalg.norm(vectors, axis=1)
    for index in (0, 17, 39):
        cosine = vectors @ vectors[index] / norms / norms[index]
        expected = [words[other] for other in np.argsort(-cosine)[1:6]]
        assert [*WordVectors(words, vectors).nearest(words[index], 5)] == expected
    assert WordVectors(words, vectors).nearest("absent", 5) == ()


def test_neighbours_contain_a_word_in_one_case() -> None:
    vectors = WordVectors(["Cat", "cat", "CAT", "dog", "Dog", "bird"], np.array([[1, 0]] * 3 + [[1, 1]] * 2 + [[0, 1]]))
    assert vectors.nearest("cat", 5) == ("dog", "bird")
    assert vectors.nearest("BIRD", 1) == ("dog",)  # looked up in lower case


@pytest.mark.parametrize("first", ["", "4 3\n"], ids=["glove", "word2vec"])
def test_word_vector_formats_are_read(write: Callable[[str, str], Path], first: str) -> None:
    path = write("v.txt", first + "house 1 0 0\n, 1 0 0\nat home 0.9 0.1 0\nflat 0.9 0.2 0\nsky 0 0 -1e-1\n")
    assert read_word_vectors(path).nearest("House", 2) == ("flat", "sky")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"house 1 0\nflat 1\n", "v.txt:2: 1 numbers"),
        (b"house 1 0\nflat 1 nan\n", "v.txt:2: 'nan'"),
        (b"house 1 0\nflat -1e99 1\n", "v.txt:2: '-1e99'"),
        (b"house 1 0\nfl\xe4t 1 0\n", "v.txt:2: .*not UTF-8"),
        (b", 1 2\n", "no words"),
        (b"", "empty"),
    ],
)
def test_bad_word_vectors_are_named(write: Callable[[str, bytes], Path], content: bytes, named: str) -> None:
    with pytest.raises(DataError, match=named):
        read_word_vectors(write("v.txt", content))


def make_lm(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0, "eos_token_id": 1}
    network = make_network("roberta", AutoModelForMaskedLM, vocab_size=len(tokenizer), **special)
    enable_sparse_prediction(network)
    return network


def make_generator(tokenizer: Any, network: PreTrainedModel, *, max_tokens: int = 64) -> WordCandidateGenerator:
    options = {"neighbours": None, "stop_words": FUNCTION_WORDS, "num_candidates": 4, "max_tokens": max_tokens}
    return WordCandidateGenerator(network, tokenizer, **options)


@pytest.mark.parametrize("name", ["trimmed", "untrimmed", "sentencepiece"])
@torch.no_grad()
def test_candidates_equal_stock_predictions_and_neighbours(name: str) -> None:
    tokenizer = sentence_piece() if name == "sentencepiece" else byte_level(trim=name == "trimmed")
    network = make_lm(tokenizer)
    text = "the dog, a catdog dog"
    (words,), masked = make_generator(tokenizer, network).generate([text])
    assert [text[word.start : word.end] for word in words] == ["dog", "catdog", "dog"]
    assert masked == [2]
    ids = tokenizer(text)["input_ids"]
    dog = tokenizer.convert_tokens_to_ids("▁dog" if name == "sentencepiece" else "Ġdog")
    decoded = {tokenizer.decode([token]).strip(): token for token in range(4, len(tokenizer))}
    after_space = {
        token
        for word, token in decoded.items()
        if word.isalpha() and tokenizer.encode(f" {word}", add_special_tokens=False) == [token]
    }
    for word, index in ((words[0], ids.index(dog)), (words[2], len(ids) - 1 - ids[::-1].index(dog))):
        shown = [*ids]
        shown[index] = tokenizer.mask_token_id
        logits = network(input_ids=torch.tensor([shown])).logits[0, index]
        best = sorted(after_space - {dog}, key=lambda token: -logits[token])[:4]
        assert [*word.candidates] == [tokenizer.decode([token]).strip() for token in best]
    tokens = tokenizer(" catdog", add_special_tokens=False)["input_ids"]
    embeddings = network.get_input_embeddings().weight
    unit = torch.nn.functional.normalize(embeddings)
    mean = embeddings[tokens].mean(dim=0)
    nearest = sorted(after_space, key=lambda token: -float(unit[token] @ mean))[:4]
    assert [*words[1].candidates] == [tokenizer.decode([token]).strip() for token in nearest]


@torch.no_grad()
def test_candidates_at_the_start_have_no_space() -> None:
    tokenizer = byte_level(trim=True)
    network = make_lm(tokenizer)
    _, without_space = find_whole_words(tokenizer)
    ids = tokenizer("cat dog")["input_ids"]
    index = ids.index(tokenizer.convert_tokens_to_ids("cat"))
    shown = [*ids[:index], tokenizer.mask_token_id, *ids[index + 1 :]]
    logits = network(input_ids=torch.tensor([shown])).logits[0, index]
    best = sorted({*without_space} - {ids[index]}, key=lambda token: -logits[token])[:4]
    (words,), _ = make_generator(tokenizer, network).generate(["cat dog"])
    assert [*words[0].candidates] == [without_space[token] for token in best]


def test_long_text_is_cut_around_the_mask() -> None:
    tokenizer = byte_level(trim=True)
    text = " ".join(["dog", "cat"] * 40)
    (words,), masked = make_generator(tokenizer, make_lm(tokenizer), max_tokens=10).generate([text])
    assert masked == [79]  # the first word, without a space before it, is three tokens
    assert all(len(word.candidates) == 4 for word in words[1:])
    assert len({word.candidates for word in words[21:-20:2]}) == 1  # the same eight tokens surround each of these


def test_candidates_do_not_depend_on_other_texts() -> None:
    tokenizer = byte_level(trim=True)
    texts = ["a dog", "the cat ran, the dog sat" * 3, "cat (dog)"]
    generator = make_generator(tokenizer, make_lm(tokenizer))
    assert generator.generate(texts)[0] == [generator.generate([text])[0][0] for text in texts]


def test_unusable_language_models_are_refused(tmp_path: Path) -> None:
    tokenizer = byte_level(trim=True)
    make_lm(tokenizer).base_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="lm_head"):
        load_masked_lm(str(tmp_path))
    make_lm(tokenizer).save_pretrained(tmp_path)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="mask"):
        load_masked_lm(str(tmp_path))
    with pytest.raises(CheckpointError, match="absent"):
        load_masked_lm(str(tmp_path / "absent"))
