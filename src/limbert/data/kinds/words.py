"""Token classification: where the words of a text are, and one label a word, on the first of its tokens."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from limbert.core.task_types import IGNORED
from limbert.data.tokenize import Places, TokenizedExamples, check_tokenizer
from limbert.data.readers import Examples, Span
from limbert.data.tokens import Tokens

_WORD = re.compile(r"[@#]?\w+(?:[-'\u2019./]\w+)*|[^\w\s]")
_CHUNK = 1024  # texts given to the tokenizer at a time


def split_words(text: str) -> tuple[Span, ...]:
    """Where the words of a plain text are; punctuation is a word, but within one (``O'Neill``) it is not."""
    return tuple(match.span() for match in _WORD.finditer(text))


def joined(words: Sequence[str]) -> tuple[str, tuple[Span, ...]]:
    """Words as one text with a space between, and where each of them is."""
    ends = np.cumsum([len(word) + 1 for word in words]).tolist()
    return " ".join(words), tuple((end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True))


def tokenize_words(examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> TokenizedExamples:
    """Tokens of texts whose words are known; the label of a word is that of its first token.

    Words beyond the longest input, and the few that a tokenizer makes nothing of, have no token and so no answer; they
    count all the same when answers are scored.

    Raises:
        ConfigError: the tokenizer is not a fast one or cannot pad.
    """
    check_tokenizer(tokenizer)
    assert examples.words is not None
    rows: dict[str, list[np.ndarray]] = {"ids": [], "types": [], "starts": [], "ends": [], "labels": []}
    for begin in range(0, len(examples), _CHUNK):
        encoded = tokenizer(
            list(examples.texts[begin : begin + _CHUNK]),
            truncation=True,
            max_length=max_length,
            padding=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        for row, ids in enumerate(encoded["input_ids"]):
            number = begin + row
            words = examples.words[number]
            word_of = _first_tokens(words, np.asarray(encoded["offset_mapping"][row], dtype=np.int32).reshape(-1, 2))
            spans = np.asarray([*words, (-1, -1)], dtype=np.int32)  # the last one for tokens without a word
            rows["ids"].append(np.asarray(ids, dtype=np.int32))
            rows["starts"].append(spans[word_of, 0])
            rows["ends"].append(spans[word_of, 1])
            if "token_type_ids" in encoded:
                rows["types"].append(np.asarray(encoded["token_type_ids"][row], dtype=np.int32))
            if examples.labels is not None:
                rows["labels"].append(np.asarray([*examples.labels[number], IGNORED], dtype=np.int64)[word_of])
    offsets = np.cumsum([0, *(len(ids) for ids in rows["ids"])], dtype=np.int64)
    flat = {name: np.concatenate(parts) for name, parts in rows.items() if parts}
    return TokenizedExamples(
        Tokens(flat["ids"], flat.get("types"), offsets),
        torch.from_numpy(flat["labels"]) if examples.labels is not None else None,
        pad_id=int(tokenizer.pad_token_id),  # type: ignore[arg-type]  # checked above
        pad_type=int(tokenizer.pad_token_type_id),
        labels_at_tokens=True,
        places=Places(examples, np.arange(len(examples)), flat["starts"], flat["ends"]),
    )


def _first_tokens(words: Sequence[Span], offsets: np.ndarray) -> np.ndarray:
    """``(tokens,)``: the index of the word whose first token each is; -1 for all others.

    Args:
        words: in the order of the text.
        offsets: ``(tokens, 2)``, the characters of each token; none for special ones.
    """
    found = np.full(len(offsets), -1, dtype=np.int64)
    word = 0
    for token, (start, end) in enumerate(offsets.tolist()):
        if start == end:
            continue
        while word < len(words) and words[word][1] <= start:  # behind us
            word += 1
        if word < len(words) and end > words[word][0]:  # they overlap
            found[token] = word
            word += 1
    return found


def word_answers(logits: np.ndarray, examples: TokenizedExamples) -> list[list[tuple[int, float] | None]]:
    """For each text and word the most probable class and its probability; None for words without a token.

    Args:
        logits: ``(all tokens, classes)``.
        examples: from `tokenize_words`.
    """
    places = examples.places
    assert places is not None
    assert places.examples.words is not None
    tokens = np.flatnonzero(places.starts >= 0)
    row_of = np.repeat(places.example_of, examples.lengths)[tokens]
    chosen = logits[tokens]
    best = chosen.argmax(axis=-1)
    probability = 1 / np.exp(chosen - chosen.max(axis=-1, keepdims=True)).sum(axis=-1)
    answered: list[dict[int, tuple[int, float]]] = [{} for _ in places.examples.texts]
    for row, start, label, share in zip(
        row_of.tolist(), places.starts[tokens].tolist(), best.tolist(), probability.tolist(), strict=True
    ):
        answered[row][start] = (label, share)
    return [
        [mine.get(start) for start, _ in words] for mine, words in zip(answered, places.examples.words, strict=True)
    ]
