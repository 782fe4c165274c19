"""Random text, and random packed sequences for masked language modelling."""

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from limbert.data.mlm.masking import CounterMaskingCollator, MaskedSequences

TEXT = "anthropomorphic lobsters unquestionably disliked electroencephalography in Reykjavik , said 37 of them ."


def make_lines(count: int, *, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(TEXT.split(" "), size=rng.integers(1, 30))) for _ in range(count)]


def pack_tokens(
    tokens: np.ndarray, word_starts: np.ndarray, *, max_length: int, special: tuple[int, int, int]
) -> Dataset:
    """Sequences as `pack_corpus` makes them; special: ids of [CLS], [SEP] and padding."""
    rows, content = [], max_length - 2
    for row, start in enumerate(range(0, len(tokens), content)):
        part = tokens[start : start + content]
        ids = np.full(max_length, special[2])
        ids[0], ids[1 : len(part) + 1], ids[len(part) + 1] = special[0], part, special[1]
        starts = np.ones(max_length, dtype=bool)
        starts[2 : len(part) + 1] = word_starts[start + 1 : start + len(part)]
        rows.append({"input_ids": ids, "word_starts": starts, "length": len(part) + 2, "row": row})
    return Dataset.from_list(rows).with_format("numpy")


def make_sequences(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, whole_words: bool = False, seed: int = 7
) -> MaskedSequences:
    collator = CounterMaskingCollator(tokenizer, mlm_probability=0.15, whole_words=whole_words, seed=seed)
    return MaskedSequences(dataset, collator)
