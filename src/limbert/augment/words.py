"""The words of a text that augmentation may replace, where they stand, and how another is written in their place.

A word is what stands between white space and punctuation, as in BERT's basic tokenisation. It may be replaced if it
has letters only and is no function word; all else in a text stays as it is, to the last space.
"""

import functools
import itertools
import unicodedata
from collections.abc import Collection
from pathlib import Path

from limbert.errors import DataError

# English function words by kind; the last row is what a contraction leaves on either side of its apostrophe.
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
FUNCTION_WORDS = frozenset(_ENGLISH_FUNCTION_WORDS.split())


def find_replaceable_words(text: str, *, stop_words: Collection[str] = FUNCTION_WORDS) -> list[tuple[int, int]]:
    """Where the words that may be replaced stand, as ``text[start:end]``, from left to right.

    Args:
        text: any.
        keep: words in small letters that stay.
    """
    found = []
    for breaks, group in itertools.groupby(range(len(text)), key=lambda place: _is_separator(text[place])):
        places = list(group)
        word = text[places[0] : places[-1] + 1]
        if not breaks and is_word(word) and word.lower() not in stop_words:
            found.append((places[0], places[-1] + 1))
    return found


def is_word(text: str) -> bool:
    """Whether a text is letters only, accents that stand on their own included."""
    return any(_category(character) == "L" for character in text) and all(
        _category(character) in "LM" for character in text
    )


def match_case(word: str, original: str) -> str:
    """The word in the case of the one it replaces: ALL capitals, a Capital first; else as it is."""
    if len(original) > 1 and original.isupper():
        return word.upper()
    return word[0].upper() + word[1:] if original[0].isupper() else word


def read_stop_words(path: str | Path) -> frozenset[str]:
    """Words in small letters from a file with one a line.

    Raises:
        DataError: if it cannot be read, or has no words.
    """
    try:
        words = frozenset(line.strip().lower() for line in Path(path).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    if not words - {""}:
        raise DataError(f"{path}: no words; expected one a line")
    return words - {""}


@functools.lru_cache(100_000)
def _category(character: str) -> str:
    return unicodedata.category(character)[0]


@functools.lru_cache(100_000)
def _is_separator(character: str) -> bool:
    """White space, punctuation, control characters and separators; of ASCII all that is neither letter nor digit."""
    if character.isascii():
        return not character.isalnum()
    return _category(character) in "PZC"
