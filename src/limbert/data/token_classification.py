"""Token classification: words of a text, labels of their first tokens, entities and their metrics."""

import operator
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from limbert.core.task_types import IGNORE_INDEX
from limbert.data.readers import CharSpan, Examples
from limbert.data.task_files import split_words
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, tokenize_aligned
from limbert.errors import ConfigError


class Entity(NamedTuple):
    """Consecutive words of one type, from ``start`` up to but not including ``end``."""

    type: str
    start: int
    end: int


def extract_entities(tags: Sequence[str]) -> list[Entity]:
    """The entities that tags such as ``B-person, I-person, O`` mark, in order.

    As in the evaluation script of CoNLL-2000: an entity begins with ``B`` or ``S``, and with an ``I`` or ``E`` that
    continues no entity of its type; it ends with ``E`` or ``S``, and before a tag that begins an entity or is ``O``.
    ``U`` means ``S``, ``L`` means ``E`` (BILOU), and ``M`` means ``I`` (BMES).
    """
    entities = []
    current: tuple[str, int] | None = None
    previous = "O"
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, entity_type = tag.partition("-")
        if current is not None and (prefix in "BSUO" or previous in "ESLU" or entity_type != current[0]):
            entities.append(Entity(current[0], current[1], index))
            current = None
        if current is None and prefix != "O":
            current = (entity_type, index)
        previous = prefix
    return entities


def entity_metrics(references: Iterable[Sequence[str]], predictions: Iterable[Sequence[str]]) -> dict[str, float]:
    """Micro-averaged F1, precision and recall of the entities in all texts; 0 where a denominator is 0."""
    correct = actual = predicted = 0
    for reference, prediction in zip(references, predictions, strict=True):
        wanted, found = {*extract_entities(reference)}, {*extract_entities(prediction)}
        correct += len(wanted & found)
        actual += len(wanted)
        predicted += len(found)
    return {
        "entity_f1": 2 * correct / max(1, actual + predicted),
        "entity_precision": correct / max(1, predicted),
        "entity_recall": correct / max(1, actual),
    }


def word_examples(texts: Sequence[str], pairs: Sequence[str] | None) -> Examples:
    """Plain texts, split into words."""
    if pairs:
        raise ConfigError("token classification reads one text, not a pair")
    return Examples(tuple(texts), None, None, word_spans=tuple(split_words(text) for text in texts))


def tokenize_words(
    examples: Examples, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int, window: Any = None, **_: Any
) -> TokenizedExamples:
    """Tokens of texts with known words; the label of a word is that of its first token.

    Words beyond the longest input, and the few without any token, get no prediction; metrics count them as missed.
    ``window``: options of the tokenizer, for texts in several windows.
    """
    word_spans = examples.word_spans
    assert word_spans is not None

    def align(number: int, encoded: Any, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        word_of = _word_of_first_token(word_spans[number], encoded["offset_mapping"][row])
        spans = np.asarray([*word_spans[number], (-1, -1)], dtype=np.int32)[word_of]  # the last: tokens without a word
        labels = () if examples.labels is None else np.asarray([*examples.labels[number], IGNORE_INDEX])[word_of]
        return spans[:, 0], spans[:, 1], np.asarray(labels, dtype=np.int64)

    options = {"max_length": max_length} | (window or {})
    return tokenize_aligned(examples, tokenizer, align, has_token_labels=True, **options)


def _word_of_first_token(words: Sequence[CharSpan], offsets: Sequence[CharSpan]) -> np.ndarray:
    """``(tokens,)``: for the first token of each word the word's index; -1 for all others."""
    word_of = np.full(len(offsets), -1, dtype=np.int64)
    word = 0
    for token, (start, end) in enumerate(offsets):
        if start == end:
            continue
        while word < len(words) and words[word][1] <= start:  # the word ends before the token
            word += 1
        if word < len(words) and end > words[word][0]:  # they overlap
            word_of[token] = word
            word += 1
    return word_of


def _word_predictions(logits: np.ndarray, examples: TokenizedExamples) -> list[list[tuple[int, float] | None]]:
    """For each text and word the most probable class and its probability; None for words without a token."""
    from scipy.special import softmax

    alignment = examples.aligned
    tokens = np.flatnonzero(alignment.char_starts >= 0)
    example_of = np.repeat(alignment.example_index, examples.lengths)[tokens]
    classes, probabilities = logits[tokens].argmax(axis=-1), softmax(logits[tokens], axis=-1).max(axis=-1)
    columns = (example_of, alignment.char_starts[tokens], classes, probabilities)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    by_start = {(example, start): (label, probability) for example, start, label, probability in rows}
    spans = enumerate(alignment.examples.word_spans or ())
    return [[by_start.get((example, start)) for start, _ in words] for example, words in spans]


def tag_metrics(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> dict[str, float]:
    """The task's metrics over all words from logits ``(all tokens, classes)``; words without a token are missed."""
    references = examples.aligned.examples.labels
    assert references is not None
    predicted = _word_predictions(logits, examples)
    if task.primary_metric == "accuracy":
        words = [word and word[0] for text in predicted for word in text]
        labels = [label for text in references for label in text]
        return {"accuracy": sum(map(operator.eq, words, labels)) / max(1, len(labels))}
    return entity_metrics(
        [[task.labels[label] for label in labels] for labels in references],
        [["O" if word is None else task.labels[word[0]] for word in words] for words in predicted],
    )


def tag_predictions(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """For each text ``entities``, or ``words`` if tags mark none: text, type or tag, score, first character, end.

    The score is the mean probability of the words' tags. ``words_not_read`` counts words beyond the longest input.
    """
    source = examples.aligned.examples
    assert source.word_spans is not None
    single_words = task.primary_metric == "accuracy"
    key, type_key = ("words", "tag") if single_words else ("entities", "type")
    rows = []
    predictions = _word_predictions(logits, examples)
    for text, words, predicted in zip(source.texts, source.word_spans, predictions, strict=True):
        tags = ["O" if word is None else task.labels[word[0]] for word in predicted]
        spans = extract_entities(tags)
        if single_words:
            spans = [Entity(tag, index, index + 1) for index, tag in enumerate(tags) if predicted[index] is not None]
        items = []
        for tag, first, end in spans:
            start, stop = words[first][0], words[end - 1][1]
            score = statistics.fmean(word[1] for word in predicted[first:end] if word is not None)
            items.append({"text": text[start:stop], type_key: tag, "score": score, "start": start, "end": stop})
        missing = predicted.count(None)
        rows.append({key: items} | ({"words_not_read": missing} if missing else {}))
    return rows
