"""Which words of a text may be replaced, and how another is written in their place."""

from pathlib import Path

import pytest

from limbert.augment.words import FUNCTION_WORDS, find_replaceable_words, is_word, match_case, read_stop_words
from limbert.errors import DataError


def found(text: str) -> list[str]:
    return [text[start:end] for start, end in find_replaceable_words(text)]


def test_words_stand_between_spaces_and_punctuation() -> None:
    text = 'The "big" dog\u2019s owner (Mary-Ann) didn\'t  pay $5m, in 3rd_place; naïve!'
    assert found(text) == ["big", "dog", "owner", "Mary", "Ann", "pay", "place", "naïve"]


def test_other_scripts_have_words_too() -> None:
    assert found("Москва, क्या हुआ? a\u0301b") == ["Москва", "क्या", "हुआ", "a\u0301b"]
    assert not is_word("\u0301")
    assert not is_word("3rd")
    assert found("") == []


def test_function_words_stay_in_any_case() -> None:
    assert found("THE cat AND The hat") == ["cat", "hat"]
    assert all(word == word.lower() for word in FUNCTION_WORDS)


@pytest.mark.parametrize(
    ("original", "word", "written"),
    [("House", "flat", "Flat"), ("HOUSE", "flat", "FLAT"), ("house", "Paris", "Paris"), ("I", "we", "We")],
)
def test_the_case_of_the_original_is_kept(original: str, word: str, written: str) -> None:
    assert match_case(word, original) == written


def test_stop_words_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("Und\n\noder\n")
    assert read_stop_words(path) == {"und", "oder"}
    path.write_text("\n")
    with pytest.raises(DataError, match="no words"):
        read_stop_words(path)
    with pytest.raises(DataError, match="No such file"):
        read_stop_words(tmp_path / "absent")
