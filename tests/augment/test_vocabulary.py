"""Whole words are told from endings, by tokenizers of every kind."""

import pytest
from tests.factories.tokenizers import byte_level, sentence_piece
from transformers import PreTrainedTokenizerBase

from limbert.augment.candidates import find_whole_words


def test_word_pieces(tokenizer: PreTrainedTokenizerBase) -> None:
    found = find_whole_words(tokenizer)
    assert {"house", "running"} <= {*found.words}
    assert found.after_space == found.without_space
    for entry, word in [*found.after_space.items()][::500]:
        assert tokenizer.convert_ids_to_tokens(entry) == word
    assert tokenizer.convert_tokens_to_ids("##ing") not in found.after_space
    assert not [word for word in found.words if not word.isalpha()]


@pytest.mark.parametrize("trim", [True, False])
def test_byte_level_pieces_with_and_without_a_space(trim: bool) -> None:
    tokenizer = byte_level(trim=trim)
    found = find_whole_words(tokenizer)
    entry = tokenizer.convert_tokens_to_ids
    assert {"cat", "dog", "café"} <= {*found.words}
    assert found.after_space[entry("Ġcat")] == "cat"
    assert found.without_space[entry("cat")] == "cat"
    assert entry("ness") not in found.without_space | found.after_space
    assert found.compatible_words(entry("Ġcat")) is found.after_space
    assert found.compatible_words(entry("cat")) is found.without_space


def test_sentence_pieces() -> None:
    tokenizer = sentence_piece()
    found = find_whole_words(tokenizer)
    assert {word for word in found.words if len(word) > 1} == {"cat", "dog"}
    assert tokenizer.convert_tokens_to_ids("ness") not in found.after_space
