"""Which words of a text augmentation may replace, and how texts with replaced words are sampled.

A word is what stands between white space and punctuation, as in BERT's basic tokenisation. It is replaceable if it
consists of letters and is not a stop word; everything else in a text, spaces included, stays as it is.
"""

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers.pre_tokenizers import BertPreTokenizer

from limbert.data.table import lines_table
from limbert.errors import DataError

# English function words by class; the last two lines are the parts of contractions around the apostrophe.
_ENGLISH_FUNCTION_WORDS = """
    i me my myself mine we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
    herself it its itself they them their theirs themselves
    this that these those who whom whose which what when where why how here there
    a an the all any both each either every few more most much neither no nor none not only other own same several
    some such
    am is are was were be been being have has had having do does did doing can could will would shall should may might
    must
    and but if or because as until while although though unless since so than whether yet
    about above across after against along among around at before behind below between beyond by down during for from
    in into of off on onto out over through to toward towards under up upon via with within without
    again also just now once then too very
    s t d m o y ll re ve don ain aren couldn didn doesn hadn hasn haven isn ma mightn mustn needn shan shouldn wasn
    weren won wouldn
"""
_PRE_TOKENIZER = BertPreTokenizer()
FUNCTION_WORDS = frozenset(_ENGLISH_FUNCTION_WORDS.split())
_ATTEMPTS_PER_EXAMPLE = 4  # for each requested example: short texts have few different variants


@dataclass(frozen=True)
class ReplaceableWord:
    """A word of a text, ``text[start:end]``, and the words that can replace it."""

    start: int
    end: int
    candidates: tuple[str, ...]


def find_replaceable_words(text: str, *, stop_words: Collection[str] = FUNCTION_WORDS) -> list[tuple[int, int]]:
    """The spans ``(start, end)`` of the replaceable words, from left to right; ``stop_words`` are in lower case."""
    words = _PRE_TOKENIZER.pre_tokenize_str(text)
    return [span for word, span in words if is_word(word) and word.lower() not in stop_words]


def is_word(text: str) -> bool:
    """Whether a text consists of letters, with combining accents among them."""
    return any(map(str.isalpha, text)) and all(unicodedata.category(character)[0] in "LM" for character in text)


def match_case(word: str, original: str) -> str:
    """The word in the case of the original: ALL CAPITALS or Capitalised; otherwise unchanged."""
    if len(original) > 1 and original.isupper():
        return word.upper()
    return word[0].upper() + word[1:] if original[0].isupper() else word


def read_stop_words(path: str | Path) -> frozenset[str]:
    """Stop words, in lower case, from a text file with one word a line; DataError if it has none."""
    words, _ = lines_table(Path(path)).parse(lambda cells: cells["text"].strip().lower(), skip_bad_rows=False)
    if not (stop_words := frozenset(words.values()) - {""}):
        raise DataError(f"{path}: no words; expected one word a line")
    return stop_words


def sample_augmented_texts(
    texts: Sequence[str],
    replaceable_words: Sequence[Sequence[ReplaceableWord]],
    *,
    count: int,
    probability: float,
    generator: np.random.Generator,
) -> list[tuple[str, ...]]:
    """Up to ``count`` different variants of an example (one or two texts), each with words replaced at random.

    The sampling of TinyBERT's augmentation (arXiv 1909.10351, algorithm 1), over all texts of an example at once. Each
    of the replaceable words of each text (from left to right) is replaced with this probability.
    """
    words = [(index, word) for index, part in enumerate(replaceable_words) for word in part if word.candidates]
    num_candidates = np.array([len(word.candidates) for _, word in words], dtype=np.int64)
    seen = {tuple(texts)}
    variants: list[tuple[str, ...]] = []
    for _ in range(_ATTEMPTS_PER_EXAMPLE * count if words else 0):
        replaced = generator.random(len(words)) < probability
        picks = generator.integers(num_candidates)
        variant = list(texts)
        for number in np.flatnonzero(replaced)[::-1].tolist():  # from the right, so that spans to the left stay valid
            index, word = words[number]
            new = match_case(word.candidates[picks[number]], texts[index][word.start : word.end])
            variant[index] = variant[index][: word.start] + new + variant[index][word.end :]
        if tuple(variant) not in seen:
            seen.add(tuple(variant))
            variants.append(tuple(variant))
            if len(variants) == count:
                break
    return variants
