"""Copies replace words by chance and nothing else."""

import numpy as np
import pytest

from limbert.augment.sampling import ReplaceableWord, sample_augmented_texts
from limbert.data.augmented import compute_source_id

TEXTS = ("The  cat sat,\tquietly.", "A Dog ran")
CHOICES = (
    [
        ReplaceableWord(5, 8, ("dog", "bird")),
        ReplaceableWord(9, 12, ()),
        ReplaceableWord(14, 21, ("loudly", "gladly", "here")),
    ],
    [ReplaceableWord(2, 5, ("cow",))],
)


def sample(count: int, *, probability: float = 0.4, seed: int = 0) -> list[tuple[str, ...]]:
    generator = np.random.default_rng(seed)
    return sample_augmented_texts(TEXTS, CHOICES, count=count, probability=probability, generator=generator)


def test_every_copy_is_another_and_keeps_all_but_the_words() -> None:
    copies = sample(23)  # 3 x 4 x 2 ways to write it, one of them the original
    assert len({*copies}) == len(copies) > 12
    assert TEXTS not in copies
    for first, second in copies:
        start, end = first.split(" sat,\t")
        assert start in {"The  cat", "The  dog", "The  bird"}
        assert end in {"quietly.", "loudly.", "gladly.", "here."}
        assert second in {"A Dog ran", "A Cow ran"}
    assert sample(23) == copies
    assert sample(23, seed=1) != copies
    assert len(sample(200)) == 23


def test_each_word_is_replaced_with_the_probability_asked_for() -> None:
    text = " ".join(["word"] * 400)
    choices = [ReplaceableWord(5 * place, 5 * place + 4, ("a", "b", "c", "d")) for place in range(400)]
    copies = sample_augmented_texts((text,), (choices,), count=30, probability=0.4, generator=np.random.default_rng(3))
    words = [word for (copy,) in copies for word in copy.split()]
    assert sum(word != "word" for word in words) / len(words) == pytest.approx(0.4, abs=0.02)
    assert words.count("a") / len(words) == pytest.approx(0.1, abs=0.01)


def test_nothing_to_replace_gives_no_copies() -> None:
    assert (
        sample_augmented_texts(("It is.",), ([],), count=5, probability=1.0, generator=np.random.default_rng(0)) == []
    )


def test_the_mark_of_an_example_is_its_texts() -> None:
    assert compute_source_id(("a", "b")) == compute_source_id(["a", "b"])
    assert (
        len({compute_source_id(texts) for texts in (("a", "b"), ("b", "a"), ("ab", ""), ("ab",), ("a", "b", ""))}) == 5
    )
