"""Token classification: reading columns of words and tags, aligning tokens, metrics and entities."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from limbert.core.config import DataConfig
from limbert.core.task_types import IGNORE_INDEX
from limbert.data.conll import CONLL_FORMATS, open_tagged
from limbert.data.labels import natural_sort_key
from limbert.data.readers import CharSpan, Examples, skip_or_raise
from limbert.data.table import Table, TableRow, check_readable, file_format, lines_table
from limbert.data.tasks import Task, custom_task, entity_tags
from limbert.data.tokenize import RaggedTokens, TokenAlignment, TokenizedExamples, check_tokenizer, concatenate_rows
from limbert.errors import ConfigError, DataError

FORMATS = (*CONLL_FORMATS, ".jsonl", ".json", ".parquet")
WORD_COLUMN_NAMES = ("tokens", "words")
TAG_COLUMN_NAMES = ("tags", "ner_tags", "labels", "ner")
_WORD = re.compile(r"[@#]?\w+(?:[-'\u2019./]\w+)*|[^\w\s]")
_CHUNK = 1024  # texts given to the tokenizer at a time


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
    """Micro-averaged F1, precision and recall of entities; 0 where a denominator is 0.

    Args:
        references: tags of the words, text by text.
        predictions: the same.
    """
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


def split_words(text: str) -> tuple[CharSpan, ...]:
    """The words of a plain text; punctuation is a word, but not within one (``O'Neill``)."""
    return tuple(match.span() for match in _WORD.finditer(text))


def join_words(words: Sequence[str]) -> tuple[str, tuple[CharSpan, ...]]:
    """Words as one text with a space between, and the characters of each word."""
    ends = np.cumsum([len(word) + 1 for word in words]).tolist()
    return " ".join(words), tuple((end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True))


def word_examples(texts: Sequence[str], pairs: Sequence[str] | None) -> Examples:
    """Plain texts, split into words.

    Raises:
        ConfigError: pairs.
    """
    if pairs:
        raise ConfigError("token classification reads one text, not a pair")
    return Examples(tuple(texts), None, None, word_spans=tuple(split_words(text) for text in texts))


def tokenize_words(examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> TokenizedExamples:
    """Tokens of texts with known words; the label of a word is that of its first token.

    Words beyond the longest input, and the few without any token, get no prediction; metrics count them as missed.

    Raises:
        ConfigError: the tokenizer is not a fast one or cannot pad.
    """
    check_tokenizer(tokenizer)
    assert examples.word_spans is not None
    ids, types, starts, ends, labels = [], [], [], [], []
    for begin in range(0, len(examples), _CHUNK):
        encoded = tokenizer(
            list(examples.texts[begin : begin + _CHUNK]),
            truncation=True,
            max_length=max_length,
            padding=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        ids += encoded["input_ids"]
        types += encoded.get("token_type_ids", [])
        for number, offsets in enumerate(encoded["offset_mapping"], begin):
            words = examples.word_spans[number]
            word_of = _word_of_first_token(words, offsets)
            spans = np.asarray([*words, (-1, -1)], dtype=np.int32)  # the last one for tokens without a word
            starts.append(spans[word_of, 0])
            ends.append(spans[word_of, 1])
            if examples.labels is not None:
                labels.append(np.asarray([*examples.labels[number], IGNORE_INDEX], dtype=np.int64)[word_of])
    return TokenizedExamples(
        RaggedTokens.from_rows(ids, types),
        torch.from_numpy(concatenate_rows(labels, np.int64)) if examples.labels is not None else None,
        pad_token_id=int(tokenizer.pad_token_id),  # type: ignore[arg-type]  # checked above
        pad_token_type_id=int(tokenizer.pad_token_type_id),
        has_token_labels=True,
        alignment=TokenAlignment(examples, np.arange(len(examples)), concatenate_rows(starts), concatenate_rows(ends)),
    )


def _word_of_first_token(words: Sequence[CharSpan], offsets: Sequence[CharSpan]) -> np.ndarray:
    """``(tokens,)``: for the first token of each word the word's index; -1 for all others.

    Args:
        words: in the order of the text.
        offsets: the characters of each token; none for special tokens.
    """
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


def word_predictions(logits: np.ndarray, examples: TokenizedExamples) -> list[list[tuple[int, float] | None]]:
    """For each text and word the most probable class and its probability; None for words without a token.

    Args:
        logits: ``(all tokens, classes)``.
        examples: from `tokenize_words`.
    """
    from scipy.special import softmax

    alignment = examples.alignment
    assert alignment is not None
    assert alignment.examples.word_spans is not None
    tokens = np.flatnonzero(alignment.char_starts >= 0)
    example_of = np.repeat(alignment.example_index, examples.lengths)[tokens]
    probabilities = softmax(logits[tokens], axis=-1)
    by_start: list[dict[int, tuple[int, float]]] = [{} for _ in alignment.examples.texts]
    for example, start, label, probability in zip(
        example_of.tolist(),
        alignment.char_starts[tokens].tolist(),
        logits[tokens].argmax(axis=-1).tolist(),
        probabilities.max(axis=-1).tolist(),
        strict=True,
    ):
        by_start[example][start] = (label, probability)
    return [
        [predicted.get(start) for start, _ in words]
        for predicted, words in zip(by_start, alignment.examples.word_spans, strict=True)
    ]


def tag_metrics(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> dict[str, float]:
    """The task's metrics over all words; words beyond the longest input count as missed.

    Args:
        task: with entity tags or other tags.
        logits: ``(all tokens, classes)``.
        examples: labelled.
    """
    assert examples.alignment is not None
    references = examples.alignment.examples.labels
    assert references is not None
    predicted = word_predictions(logits, examples)
    if task.primary_metric == "accuracy":
        correct = sum(
            word is not None and word[0] == label
            for words, labels in zip(predicted, references, strict=True)
            for word, label in zip(words, labels, strict=True)
        )
        return {"accuracy": correct / max(1, sum(map(len, references)))}
    return entity_metrics(
        [[task.labels[label] for label in labels] for labels in references],
        [["O" if word is None else task.labels[word[0]] for word in words] for words in predicted],
    )


def tag_predictions(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """For each text ``entities``, or ``words`` if tags mark none: text, type or tag, score, first character, end.

    The score is the mean probability of the words' tags. ``words_not_read`` counts words beyond the longest input.
    """
    assert examples.alignment is not None
    source = examples.alignment.examples
    assert source.word_spans is not None
    single_words = task.primary_metric == "accuracy"
    key, type_key = ("words", "tag") if single_words else ("entities", "type")
    rows = []
    for text, words, predicted in zip(source.texts, source.word_spans, word_predictions(logits, examples), strict=True):
        tags = ["O" if word is None else task.labels[word[0]] for word in predicted]
        if single_words:
            spans = [Entity(tag, index, index + 1) for index, tag in enumerate(tags) if predicted[index] is not None]
        else:
            spans = extract_entities(tags)
        items = []
        for span in spans:
            start, end = words[span.start][0], words[span.end - 1][1]
            scores = [word[1] for word in predicted[span.start : span.end] if word is not None]
            score = sum(scores) / len(scores)
            items.append({"text": text[start:end], type_key: span.type, "score": score, "start": start, "end": end})
        row: dict[str, Any] = {key: items}
        missing = sum(word is None for word in predicted)
        rows.append(row | {"words_not_read": missing} if missing else row)
    return rows


def read_tagged(table: Table, config: DataConfig, task: Task | None) -> tuple[Task, Examples]:
    """The sentences of a table with their tags, and the task, inferred from the tags if it is None.

    Raises:
        DataError: a missing column, or a bad row (``FILE:LINE: what, expected``).
    """
    word_column = _column_index(table, config.text_column, WORD_COLUMN_NAMES)
    tag_column = _column_index(table, config.label_column, TAG_COLUMN_NAMES)
    rows, bad_rows = [], 0
    for row in table.rows():
        try:
            rows.append((row.line_number, *_words_and_tags(row, word_column, tag_column)))
        except ValueError as error:
            bad_rows += skip_or_raise(table, row.line_number, error, skip=config.skip_bad_rows)
    if not rows:
        raise DataError(f"{table.name}: no sentence with tags; expected at least one")
    if task is None:
        names = config.label_names or _infer_tag_names([tags for *_, tags in rows], table)
        task = custom_task("token-classification", names)
    name_to_id = {name: index for index, name in enumerate(task.labels)}
    texts, spans, labels = [], [], []
    for line, words, tags in rows:
        try:
            ids = tuple(_tag_id(tag, name_to_id, config) for tag in tags)
        except ValueError as error:
            bad_rows += skip_or_raise(table, line, error, skip=config.skip_bad_rows)
            continue
        text, word_spans = join_words(words)
        texts.append(text)
        spans.append(word_spans)
        labels.append(ids)
    if not texts:
        raise DataError(f"{table.name}: none of the {bad_rows} sentences can be used; expected at least one")
    return task, Examples(tuple(texts), None, tuple(labels), bad_rows, word_spans=tuple(spans))


def read_untagged(path: Path, config: DataConfig) -> Examples:
    """Texts to tag: one text per line (``.txt``), words already split (CoNLL, or lists), or a column of texts.

    Raises:
        DataError: a missing or unusable file, column or row.
    """
    table = lines_table(check_readable(path)) if file_format(path) == ".txt" else open_tagged(path)
    names = (config.text_column,) if config.text_column in table.columns else (*WORD_COLUMN_NAMES, "text", "sentence")
    column = _column_index(table, None, [name for name in names if name])
    texts, spans, bad_rows = [], [], 0
    for row in table.rows():
        value = row.cells[column] if row.problem is None else None
        if isinstance(value, str) and value.strip():
            text, word_spans = value, split_words(value)
        elif isinstance(value, list) and value and all(isinstance(word, str) and word for word in value):
            text, word_spans = join_words(value)
        else:
            reason = row.problem or f"no words in column {table.columns[column]!r}, expected a list of words or a text"
            bad_rows += skip_or_raise(table, row.line_number, reason, skip=config.skip_bad_rows)
            continue
        texts.append(text)
        spans.append(word_spans)
    if not texts:
        raise DataError(f"{table.name}: no words; expected a text or a list of words in some row")
    return Examples(tuple(texts), None, None, bad_rows, word_spans=tuple(spans))


def _column_index(table: Table, requested: str | None, names: Sequence[str]) -> int:
    wanted = (requested,) if requested else tuple(names)
    for name in wanted:
        if name in table.columns:
            return table.columns.index(name)
    columns = ", ".join(map(repr, table.columns))
    raise DataError(f"{table.name}: no column {' or '.join(map(repr, wanted))}; it has {columns}")


def _words_and_tags(row: TableRow, word_column: int, tag_column: int) -> tuple[list[str], list[str | int]]:
    if row.problem is not None:
        raise ValueError(row.problem)
    words, tags = row.cells[word_column], row.cells[tag_column]
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError("a word is missing, expected a list of words")
    if not isinstance(tags, list) or len(tags) != len(words):
        found = len(tags) if isinstance(tags, list) else "no"
        raise ValueError(f"{found} tags for {len(words)} words, expected one per word")
    for word, tag in zip(words, tags, strict=True):
        if not isinstance(tag, (str, int)) or tag == "":
            raise ValueError(f"the word {word!r} has no tag, expected one")
    return words, tags


def _infer_tag_names(tag_rows: Sequence[Sequence[str | int]], table: Table) -> tuple[str, ...]:
    """All tags, ``O`` first; each entity type has a tag for every prefix in use, seen or not.

    Tags that mark no entity among those that do are left out, so that their rows are bad rows.
    """
    tags = {tag for row in tag_rows for tag in row}
    if any(isinstance(tag, int) for tag in tags):
        raise DataError(f"{table.name}: tags are numbers; give their names in the order of the ids with --label-names")
    names = {str(tag) for tag in tags}
    entities = entity_tags(names)
    if entities:
        prefixes = {name[0] for name in entities} - {"O"}
        if prefixes & {"B", "I"}:
            prefixes |= {"B"} if "M" in prefixes else {"B", "I"}
        names = {f"{prefix}-{name[2:]}" for name in entities - {"O"} for prefix in prefixes} | (entities & {"O"})
    return tuple(sorted(names, key=lambda name: (name != "O", natural_sort_key(name[2:]), name)))


def _tag_id(tag: str | int, name_to_id: dict[str, int], config: DataConfig) -> int:
    given = config.label_names
    if given is not None and isinstance(tag, int) and not isinstance(tag, bool) and 0 <= tag < len(given):
        return name_to_id[given[tag]]
    if str(tag) not in name_to_id:
        raise ValueError(f"tag {tag!r} is unknown, expected one of {', '.join(name_to_id)}")
    return name_to_id[str(tag)]
