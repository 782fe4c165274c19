"""Small tokenizers other than WordPiece: byte-level BPE and SentencePiece."""

from collections.abc import Sequence
from string import ascii_lowercase

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


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
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "<pad>", "<mask>", *sorted(known)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(dict.fromkeys(merges))))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=trim)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", mask_token="<mask>",
    )  # fmt: skip


def sentence_piece() -> PreTrainedTokenizerFast:
    pieces = ["<s>", "</s>", "<pad>", "<mask>", "<unk>", "▁cat", "▁dog", "ness", "▁", ",", *ascii_lowercase]
    backend = Tokenizer(models.Unigram([(piece, -float(index)) for index, piece in enumerate(pieces)], unk_id=4))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", mask_token="<mask>", cls_token="<s>"
    )


def trained(
    kind: str, texts: Sequence[str], *, size: int = 1000, specials_last: bool = False
) -> PreTrainedTokenizerFast:
    """Byte-level BPE or Unigram, trained on texts; special tokens first as in RoBERTa, or last as in ModernBERT."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    first = [] if specials_last else special
    if kind == "BPE":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=first, initial_alphabet=alphabet)
    else:
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=first, unk_token="<unk>")
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(special)
    end, start = ((token, backend.token_to_id(token)) for token in ("</s>", "<s>"))
    backend.post_processor = processors.RobertaProcessing(end, start)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip
