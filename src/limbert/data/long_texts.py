"""Texts longer than the model's input: counted, or read in overlapping windows whose logits are averaged."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from limbert.core.task_types import TASK_TYPE_SPECS
from limbert.data.metrics import label_tensor
from limbert.data.readers import Examples
from limbert.data.task_registry import tokenize_for_task
from limbert.data.tasks import Task
from limbert.data.token_classification import tokenize_words
from limbert.data.tokenize import TokenizedExamples, tokenize_aligned
from limbert.errors import ConfigError

LongTexts = Literal["truncate", "windows"]


def tokenize_in_windows(
    examples: Examples, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int, stride: int | None = None
) -> TokenizedExamples:
    """Examples as tokens, a long text as several windows that share ``stride`` tokens (default: a quarter of a window).

    `average_windows` averages the logits of a text's windows. In token classification each token counts only in the
    window where it has most context. Question answering reads windows in any case.

    Raises:
        ConfigError: for pairs of texts, of which it is not clear which one to divide.
    """
    if task.task_type == "question-answering":
        return tokenize_for_task(examples, task, tokenizer, max_length=max_length, stride=stride)
    if examples.pairs is not None:
        raise ConfigError("long texts is 'windows'; pairs of texts can only be truncated: --long-texts truncate")
    stride = min(stride or max_length // 4, max_length // 3)
    windows: dict[str, Any] = {"stride": stride, "return_overflowing_tokens": True}
    if task.task_type == "token-classification":
        return _with_most_context(tokenize_words(examples, task, tokenizer, max_length=max_length, window=windows))

    def align(number: int, encoded: Any, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        no_characters = np.full(len(encoded["input_ids"][row]), -1, dtype=np.int32)
        return no_characters, no_characters, np.empty(0)

    tokens = tokenize_aligned(replace(examples, labels=None), tokenizer, align, max_length=max_length, **windows)
    labels = label_tensor(task, examples)
    return tokens if labels is None else tokens.with_labels(labels[torch.from_numpy(tokens.aligned.example_index)])


def _with_most_context(tokens: TokenizedExamples) -> TokenizedExamples:
    """Of the tokens at one character of a text, in several windows, all but the one with most context lose their word.

    The context of a token is the smaller number of tokens that its window has before and after it.
    """
    alignment, lengths = tokens.aligned, tokens.lengths
    position = np.arange(len(tokens.tokens.ids)) - np.repeat(tokens.tokens.offsets[:-1], lengths)
    context = np.minimum(position, np.repeat(lengths, lengths) - 1 - position)
    example = np.repeat(alignment.example_index, lengths)
    order = np.lexsort((-context, alignment.char_starts, example))
    same = (np.diff(example[order]) == 0) & (np.diff(alignment.char_starts[order]) == 0)
    starts = alignment.char_starts.copy()
    starts[order[1:][same]] = -1
    return replace(tokens, alignment=replace(alignment, char_starts=starts))


def average_windows(
    task: Task, logits: np.ndarray, examples: TokenizedExamples
) -> tuple[np.ndarray, TokenizedExamples]:
    """The mean of the logits ``(rows, outputs)`` over the windows of each text, ``(texts, outputs)``, and the texts.

    Logits and examples that have no such windows are returned as they are.
    """
    if examples.alignment is None or TASK_TYPE_SPECS[task.task_type].token_level:
        return logits, examples
    first, counts = window_starts(examples)
    means = np.add.reduceat(logits, first) / counts[:, None].astype(logits.dtype)
    return means, replace(examples, alignment=None).select(first)


def window_starts(examples: TokenizedExamples) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each text and its number of rows, ``(texts,)`` each."""
    if examples.alignment is None:
        return np.arange(len(examples)), np.ones(len(examples), dtype=np.int64)
    _, first, counts = np.unique(examples.alignment.example_index, return_index=True, return_counts=True)
    return first, counts


def count_truncated(
    examples: Examples, tokens: TokenizedExamples, tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> int:
    """The number of texts of which ``tokens`` holds only the beginning."""
    if len(tokens) != len(examples):
        return 0  # long ones are read in windows
    longest = examples.select(np.flatnonzero(tokens.lengths >= max_length).tolist())
    if not len(longest):
        return 0
    whole = tokenizer(list(longest.texts), list(longest.pairs) if longest.pairs else None, verbose=False)
    return sum(len(ids) > max_length for ids in whole["input_ids"])
