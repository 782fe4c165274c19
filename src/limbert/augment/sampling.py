"""Copies of an example with words replaced: the sampling of TinyBERT's augmentation (arXiv 1909.10351, algorithm 1).

It does not know where candidates come from. A copy keeps all of a text but the words replaced.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limbert.augment.words import match_case

_ATTEMPTS_PER_EXAMPLE = 4  # for each copy that is asked for: short texts have few different ones


@dataclass(frozen=True)
class ReplaceableWord:
    """A word of a text, ``text[start:end]``, and what may stand in its place."""

    start: int
    end: int
    candidates: tuple[str, ...]


def sample_augmented_texts(
    texts: Sequence[str],
    replaceable_words: Sequence[Sequence[ReplaceableWord]],
    *,
    count: int,
    probability: float,
    generator: np.random.Generator,
) -> list[tuple[str, ...]]:
    """Different copies of one example, each with the words of all its texts replaced by chance.

    Args:
        texts: the example's one or two.
        choices: of each text, from left to right.
        count: copies wanted; there are fewer where the example is too short for so many.
        probability: of replacing a word.
        generator: of everything random here.
    """
    places = [(index, choice) for index, part in enumerate(replaceable_words) for choice in part if choice.candidates]
    sizes = np.array([len(choice.candidates) for _, choice in places], dtype=np.int64)
    seen = {tuple(texts)}
    copies: list[tuple[str, ...]] = []
    for _ in range(_ATTEMPTS_PER_EXAMPLE * count if places else 0):
        replaced = generator.random(len(places)) < probability
        picks = generator.integers(sizes)
        copy = list(texts)
        for place in np.flatnonzero(replaced)[::-1].tolist():  # from the right, so that places to the left stay
            index, choice = places[place]
            old = texts[index][choice.start : choice.end]
            word = match_case(choice.candidates[picks[place]], old)
            copy[index] = copy[index][: choice.start] + word + copy[index][choice.end :]
        if tuple(copy) not in seen:
            seen.add(tuple(copy))
            copies.append(tuple(copy))
            if len(copies) == count:
                break
    return copies
