"""Replaceable words of a text, and the texts sampled by replacing them."""

from pathlib import Path

import numpy as np
import pytest

from limbert.augment.words import (
    ReplaceableWord,
    find_replaceable_words,
    is_word,
    match_case,
    read_stop_words,
    sample_augmented_texts,
)
from limbert.errors import DataError

TEXTS = ("The  cat sat,\tquietly.", "A Dog ran")
WORDS = (
    [
        ReplaceableWord(5, 8, ("dog", "bird")),
        ReplaceableWord(9, 12, ()),
        ReplaceableWord(14, 21, ("loudly", "gladly", "here")),
    ],
    [ReplaceableWord(2, 5, ("cow",))],
)


def words_of(text: str) -> list[str]:
    return [text[start:end] for start, end in find_replaceable_words(text)]


def test_words_of_all_scripts_are_found() -> None:
    assert words_of("Москва, क्या हुआ? a\u0301b") == ["Москва", "क्या", "हुआ", "a\u0301b"]
    assert not is_word("\u0301")
    assert words_of("THE cat AND The hat") == ["cat", "hat"]  # no function words
    text = 'The "big" dog\u2019s owner (Mary-Ann) didn\'t  pay $5m, in 3rd_place; naïve!'
    assert words_of(text) == ["big", "dog", "owner", "Mary", "Ann", "pay", "place", "naïve"]


@pytest.mark.parametrize(
    ("original", "word", "expected"),
    [("House", "flat", "Flat"), ("HOUSE", "flat", "FLAT"), ("house", "Paris", "Paris"), ("I", "we", "We")],
)
def test_replacement_has_the_original_case(original: str, word: str, expected: str) -> None:
    assert match_case(word, original) == expected


def test_stop_words_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("Und\n\noder\n")
    assert read_stop_words(path) == {"und", "oder"}
    path.write_text("\n")
    with pytest.raises(DataError, match="no words"):
        read_stop_words(path)
    with pytest.raises(DataError, match="absent"):
        read_stop_words(tmp_path / "absent")


def sample(count: int, *, probability: float = 0.4, seed: int = 0) -> list[tuple[str, ...]]:
    generator = np.random.default_rng(seed)
    return sample_augmented_texts(TEXTS, WORDS, count=count, probability=probability, generator=generator)


def test_variants_differ_only_in_replaced_words() -> None:
    variants = sample(23)  # of 3 x 4 x 2 variants one is the original
    assert len({*variants}) == len(variants) > 12
    assert TEXTS not in variants
    for first, second in variants:
        start, end = first.split(" sat,\t")
        assert start in {"The  cat", "The  dog", "The  bird"}
        assert end in {"quietly.", "loudly.", "gladly.", "here."}
        assert second in {"A Dog ran", "A Cow ran"}
    assert sample(23) == variants
    assert sample(23, seed=1) != variants
    assert len(sample(200)) == 23
    nothing = sample_augmented_texts(("It is.",), ([],), count=5, probability=1.0, generator=np.random.default_rng(0))
    assert nothing == []


def test_words_are_replaced_with_the_given_probability() -> None:
    text = " ".join(["word"] * 400)
    words = [ReplaceableWord(5 * index, 5 * index + 4, ("a", "b", "c", "d")) for index in range(400)]
    variants = sample_augmented_texts((text,), (words,), count=30, probability=0.4, generator=np.random.default_rng(3))
    sampled = [word for (variant,) in variants for word in variant.split()]
    assert sum(word != "word" for word in sampled) / len(sampled) == pytest.approx(0.4, abs=0.02)
    assert sampled.count("a") / len(sampled) == pytest.approx(0.1, abs=0.01)
