"""Question answering: long contexts cut into windows that overlap, and where the answer stands in each."""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from limbert.data.tokenize import Places, TokenizedExamples, check_tokenizer
from limbert.data.readers import Answers, Examples
from limbert.data.tokens import Tokens
from limbert.errors import ConfigError

_CHUNK = 256  # questions given to the tokenizer at a time
_SHORTEST = 16  # tokens of a window: less leaves no room for a context


def tokenize_windows(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int, stride: int | None
) -> TokenizedExamples:
    """Questions, each with a window of its context; a long context has several, and as many rows.

    The label of a window is the first and the last token of the question's first answer; where that is not whole in the
    window, twice the first token, which is a special one. A question longer than half a window is cut.

    Args:
        examples: questions, with contexts as their pairs.
        tokenizer: a fast one.
        max_length: tokens of a window, special ones and the question included.
        stride: tokens that a window shares with the one before; at most a third of the window.

    Raises:
        ConfigError: the tokenizer is not a fast one or cannot pad, or windows are too short.
    """
    check_tokenizer(tokenizer)
    if max_length < _SHORTEST:
        raise ConfigError(
            f"longest input is {max_length} tokens; for question answering it must be at least {_SHORTEST}"
        )
    assert examples.pairs is not None
    rows: dict[str, list[np.ndarray]] = {"ids": [], "types": [], "starts": [], "ends": []}
    example_of, labels = [], []
    for begin in range(0, len(examples), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        encoded = tokenizer(
            [_cut(question, tokenizer, most=max_length // 2 - 4) for question in examples.texts[part]],
            list(examples.pairs[part]),
            truncation="only_second",
            max_length=max_length,
            stride=min(stride or max_length // 4, max_length // 3),
            padding=False,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        for row, ids in enumerate(encoded["input_ids"]):
            number = begin + encoded["overflow_to_sample_mapping"][row]
            starts, ends = _of_context(encoded, row)
            example_of.append(number)
            rows["ids"].append(np.asarray(ids, dtype=np.int32))
            rows["starts"].append(starts)
            rows["ends"].append(ends)
            if "token_type_ids" in encoded:
                rows["types"].append(np.asarray(encoded["token_type_ids"][row], dtype=np.int32))
            if examples.labels is not None:
                labels.append(_first_and_last(examples.labels[number], starts, ends))
    offsets = np.cumsum([0, *(len(ids) for ids in rows["ids"])], dtype=np.int64)
    flat = {name: np.concatenate(parts) for name, parts in rows.items() if parts}
    return TokenizedExamples(
        Tokens(flat["ids"], flat.get("types"), offsets),
        torch.tensor(labels, dtype=torch.long) if examples.labels is not None else None,
        pad_id=int(tokenizer.pad_token_id),  # type: ignore[arg-type]  # checked above
        pad_type=int(tokenizer.pad_token_type_id),
        places=Places(examples, np.asarray(example_of), flat["starts"], flat["ends"]),
    )


def _cut(question: str, tokenizer: PreTrainedTokenizerBase, *, most: int) -> str:
    if len(question) <= most:  # no token is shorter than a character
        return question
    offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return question if len(offsets) <= most else question[: offsets[most - 1][1]]


def _of_context(encoded: Any, row: int) -> tuple[np.ndarray, np.ndarray]:
    """First character and the one after the last of each token of the context; -1 for all other tokens."""
    spans = np.asarray(encoded["offset_mapping"][row], dtype=np.int32)
    inside = np.asarray([which == 1 for which in encoded.sequence_ids(row)]) & (spans[:, 1] > spans[:, 0])
    return np.where(inside, spans[:, 0], -1).astype(np.int32), np.where(inside, spans[:, 1], -1).astype(np.int32)


def _first_and_last(answers: Answers, starts: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
    begin, stop = answers.starts[0], answers.starts[0] + len(answers.texts[0])
    inside = np.flatnonzero(starts >= 0)
    first = inside[(starts[inside] <= begin) & (begin < ends[inside])]
    last = inside[(starts[inside] < stop) & (stop <= ends[inside])]
    return (int(first[0]), int(last[-1])) if len(first) and len(last) else (0, 0)
