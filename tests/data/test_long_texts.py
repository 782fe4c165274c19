"""Long texts in windows: logits are averaged per text, tokens count where they have most context, labels stay."""

import numpy as np
import pytest
import torch
from tests.factories.tokenizers import byte_level

from limbert.core.config import TaskType
from limbert.data.long_texts import average_windows, count_truncated, tokenize_in_windows, window_starts
from limbert.data.readers import Examples
from limbert.data.task_registry import compute_task_metrics, decode_predictions, tokenize_for_task
from limbert.data.tasks import custom_task
from limbert.data.token_classification import word_examples
from limbert.errors import ConfigError

TOKENIZER = byte_level(trim=True)
TEXTS = ("cat", " cat dog" * 20, " dog", " dog, cat" * 9)
LENGTH, STRIDE = 12, 3
LABELS: dict[TaskType, tuple[object, ...]] = {
    "classification": (1, 0, 1, 0),
    "regression": (0.5, 1.5, 2.0, 3.0),
    "multi-label": ((0,), (0, 1), (), (1,)),
}


@pytest.mark.parametrize("task_type", LABELS)
def test_logits_of_windows_are_averaged(task_type: TaskType) -> None:
    task = custom_task(task_type, () if task_type == "regression" else ("no", "yes"))
    examples = Examples(TEXTS, None, LABELS[task_type])
    tokens = tokenize_in_windows(examples, task, TOKENIZER, max_length=LENGTH, stride=STRIDE)
    whole = tokenize_for_task(examples, task, TOKENIZER, max_length=1000, use_cache=False)
    first, counts = window_starts(tokens)
    assert counts[0] == counts[2] == 1 < counts[1]
    assert tokens.lengths.max() == LENGTH
    step = LENGTH - 2 - STRIDE  # tokens of the text that each further window brings
    assert counts[1] == 1 + np.ceil((whole.lengths[1] - LENGTH) / step)
    logits = np.random.default_rng(0).normal(size=(len(tokens), task.num_outputs)).astype(np.float32)
    means, rows = average_windows(task, logits, tokens)
    for text, (start, count) in enumerate(zip(first, counts, strict=True)):
        np.testing.assert_allclose(means[text], logits[start : start + count].mean(axis=0), rtol=1e-6)
    assert rows.labels is not None
    assert whole.labels is not None
    torch.testing.assert_close(rows.labels, whole.labels)
    assert compute_task_metrics(task, means, rows) == compute_task_metrics(task, means, whole)


def test_tokens_count_where_they_have_most_context() -> None:
    task = custom_task("token-classification", tuple(f"B-{number}" for number in range(LENGTH // 2)))
    text = "".join(f" cat{number % 10}" for number in range(30))
    examples = word_examples([text, " dog"], None)
    tokens = tokenize_in_windows(examples, task, TOKENIZER, max_length=LENGTH, stride=4)
    logits = np.zeros((len(tokens.tokens.ids), len(task.labels)))
    position = np.concatenate([np.minimum(row := np.arange(size), row[::-1]) for size in tokens.lengths])
    logits[np.arange(len(logits)), position] = 9  # each token predicts its context
    words, short = decode_predictions(task, logits, tokens)
    assert [word["text"] for word in words["entities"]] == text.split()
    assert len(short["entities"]) == 1
    middle = [int(word["type"]) for word in words["entities"]][2:-2]
    assert min(middle) >= 2  # 4 shared tokens: one of the two windows has at least 2 on each side


def test_truncated_texts_are_counted() -> None:
    task, examples = custom_task("classification", ("no", "yes")), Examples(TEXTS, None, None)
    for length, count in ((3, 2), (LENGTH, 2), (30, 1), (100, 0)):
        tokens = tokenize_for_task(examples, task, TOKENIZER, max_length=length, use_cache=False)
        assert count_truncated(examples, tokens, TOKENIZER, max_length=length) == count
    windows = tokenize_in_windows(examples, task, TOKENIZER, max_length=LENGTH)
    assert count_truncated(examples, windows, TOKENIZER, max_length=LENGTH) == 0


def test_pairs_have_no_windows() -> None:
    with pytest.raises(ConfigError, match="pairs"):
        examples = Examples(("cat",), ("dog",), None)
        tokenize_in_windows(examples, custom_task("regression", ()), TOKENIZER, max_length=LENGTH)
