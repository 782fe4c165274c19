"""Whole words are told from endings, by tokenizers of every kind."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from limbert.augment.candidates import find_whole_words


def byte_level(*, trim: bool) -> PreTrainedTokenizerFast:
    """As RoBERTa's (trim) and ModernBERT's: ``Ġ`` marks a space before."""
    words = ["Ġcat", "cat", "Ġdog", "Ġcafé".replace("é", "Ã©"), "ness", "Ġ", ",", "Ġ("]
    letters = sorted({letter for word in words for letter in word} | {*"abcdefghijklmnopqrstuvwxyz0123456789"})
    merges, known = [], {*letters}
    for word in words:
        left = word[0]
        for letter in word[1:]:
            merges.append((left, letter))
            left += letter
            known.add(left)
    vocabulary = {token: place for place, token in enumerate(["<s>", "</s>", "<pad>", "<mask>", *sorted(known)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(dict.fromkeys(merges))))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=trim)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", mask_token="<mask>",
    )  # fmt: skip


def sentence_piece() -> PreTrainedTokenizerFast:
    pieces = [
        "<s>",
        "</s>",
        "<pad>",
        "<mask>",
        "<unk>",
        "▁cat",
        "▁dog",
        "ness",
        "▁",
        ",",
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    backend = Tokenizer(models.Unigram([(piece, -float(place)) for place, piece in enumerate(pieces)], unk_id=4))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", mask_token="<mask>", cls_token="<s>"
    )


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
