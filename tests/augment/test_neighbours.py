"""Neighbours are those that cosine says, and a file that is no vectors is named with its line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from limbert.augment.candidates import WordVectors, read_word_vectors
from limbert.errors import DataError


def test_nearest_by_cosine_without_the_word_itself() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 8)) * np.arange(1, 41)[:, None]
    words = [f"word{'abcdefghij'[place % 10]}{'klmn'[place // 10]}" for place in range(40)]
    lengths = np.linalg.norm(vectors, axis=1)
    for place in (0, 17, 39):
        cosine = vectors @ vectors[place] / lengths / lengths[place]
        expected = [words[index] for index in np.argsort(-cosine)[1:6]]
        assert [*WordVectors(words, vectors).nearest_to_word(words[place], 5)] == expected
    assert WordVectors(words, vectors).nearest_to_word("absent", 5) == ()


def test_words_that_differ_in_case_only_count_once() -> None:
    near = WordVectors(["Cat", "cat", "CAT", "dog", "Dog", "bird"], np.array([[1, 0]] * 3 + [[1, 1]] * 2 + [[0, 1]]))
    assert near.nearest_to_word("cat", 5) == ("dog", "bird")
    assert near.nearest_to_word("BIRD", 1) == ("dog",)  # found by its small letters


@pytest.mark.parametrize("first", ["", "4 3\n"], ids=["glove", "word2vec"])
def test_both_text_formats(write: Callable[[str, str], Path], first: str) -> None:
    path = write("v.txt", first + "house 1 0 0\n, 1 0 0\nat home 0.9 0.1 0\nflat 0.9 0.2 0\nsky 0 0 -1e-1\n")
    assert read_word_vectors(path).nearest_to_word("House", 2) == ("flat", "sky")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"house 1 0\nflat 1\n", r"v.txt:2: 1 numbers, expected a word and 2"),
        (b"house 1 0\nflat 1 x\n", r"v.txt:2: .*no number"),
        (b"house 1 0\nflat 1 nan\n", r"v.txt:2: .nan. is no finite number"),
        (b"house 1 0\nflat -1e99 1\n", r"v.txt:2: .-1e99. is no finite number"),
        (b"\xff\xfe", "not UTF-8"),
        (b", 1 2\n", "no words"),
        (b"", "no words"),
    ],
)
def test_what_is_wrong_with_a_file(write: Callable[[str, bytes], Path], content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_word_vectors(write("v.txt", content))
