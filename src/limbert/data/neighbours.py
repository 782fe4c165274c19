"""Nearest neighbours of a word in a space of word vectors: from a GloVe or word2vec text file, or from embeddings."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from limbert.augment.words import is_word
from limbert.errors import DataError

MOST_WORDS = 100_000  # read from a file: the frequent ones stand first


class Neighbours:
    """Words with their vectors, asked for those nearest by cosine.

    Args:
        words: as they are written.
        vectors: ``(words, size)``, of any length; a vector of zeros is near to nothing.
    """

    def __init__(self, words: Sequence[str], vectors: np.ndarray) -> None:
        self._words = tuple(words)
        self._vectors = _unit(vectors.astype(np.float32))
        self._places = {word: place for place, word in reversed(list(enumerate(self._words)))}

    def of_word(self, word: str, count: int) -> tuple[str, ...]:
        """The nearest other words, nearest first; none where the word, as it is or in small letters, has no vector."""
        place = self._places.get(word, self._places.get(word.lower()))
        return () if place is None else self.of_vector(self._vectors[place], count, besides=word)

    def of_vector(self, vector: np.ndarray, count: int, *, besides: str) -> tuple[str, ...]:
        """The words nearest to a vector ``(size,)``, nearest first, each in one case only and without ``besides``."""
        nearness = self._vectors @ _unit(vector.astype(np.float32))  # (words,)
        many = min(len(nearness), 4 * (count + 1))  # among so many, enough differ in more than their case
        found: dict[str, str] = {}
        for place in np.argsort(-nearness, kind="stable")[:many].tolist():
            found.setdefault(self._words[place].lower(), self._words[place])
        found.pop(besides.lower(), None)
        return tuple(found.values())[:count]


def read_neighbours(path: str | Path, *, most: int = MOST_WORDS) -> Neighbours:
    """The first words of a text file ``WORD NUMBER NUMBER ...``, with or without word2vec's first line of two counts.

    Words that are not letters only are read over, since they replace nothing.

    Raises:
        DataError: if it cannot be read (``FILE:LINE: what, expected``), or holds no word.
    """
    words: list[str] = []
    vectors: list[np.ndarray] = []
    size = 0
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                parts = line.rstrip().split(" ")
                if number == 1 and len(parts) == 2 and all(part.isdecimal() for part in parts):
                    continue
                size = size or len(parts) - 1
                if len(parts) < 2 or len(parts) <= size:
                    raise DataError(f"{path}:{number}: {len(parts) - 1} numbers, expected a word and {size or 'some'}")
                word = " ".join(parts[:-size])  # a few words of large files hold spaces
                if is_word(word):
                    words.append(word)
                    vectors.append(_numbers(parts[-size:], f"{path}:{number}"))
                if len(words) == most:
                    break
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; expected GloVe's or word2vec's text format, not binary") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if not words:
        raise DataError(f"{path}: no words with vectors; expected lines such as 'house 0.12 -0.5 ...'")
    return Neighbours(words, np.stack(vectors))


def _numbers(parts: list[str], place: str) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # what is too large is refused below
            numbers = np.array(parts, dtype=np.float32)
    except ValueError:
        raise DataError(f"{place}: {parts[0]!r} or another is no number, expected a word and its vector") from None
    if not np.isfinite(numbers).all():
        bad = parts[int(np.flatnonzero(~np.isfinite(numbers))[0])]
        raise DataError(f"{place}: {bad!r} is no finite number, expected a word and its vector")
    return numbers


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: np.ndarray = vectors / np.where(lengths > 0, lengths, 1.0)
    return unit
