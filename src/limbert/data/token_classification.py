"""Token classification: reading CoNLL files and columns of words and tags, scoring the tags, and naming entities."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from limbert.core.config import DataConfig
from limbert.core.task_types import IGNORE_INDEX
from limbert.data.labels import natural_sort_key
from limbert.data.readers import CharSpan, Examples, Table, TableRow, check_readable, lines_table, open_table
from limbert.data.tasks import Task, custom_task, entity_tags
from limbert.data.tokenize import RaggedTokens, TokenAlignment, TokenizedExamples, check_tokenizer
from limbert.errors import ConfigError, DataError


class Entity(NamedTuple):
    """Consecutive words of one type."""

    type: str
    start: int
    end: int  # the word after its last


def extract_entities(tags: Sequence[str]) -> list[Entity]:
    """The entities that tags such as ``B-person, I-person, O`` mark, in their order.

    As in the evaluation script of CoNLL-2000: an entity begins with ``B`` or ``S``, and with an ``I`` or ``E`` that
    does not go on with an entity of its type; it ends with ``E`` or ``S``, and before whatever begins or is ``O``.
    ``U`` means ``S``, ``L`` means ``E`` (BILOU), and ``M`` means ``I`` (BMES).
    """
    found = []
    running: tuple[str, int] | None = None
    before = "O"
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if running is not None and (prefix in "BSUO" or before in "ESLU" or kind != running[0]):
            found.append(Entity(running[0], running[1], place))
            running = None
        if running is None and prefix != "O":
            running = (kind, place)
        before = prefix
    return found


def entity_metrics(references: Iterable[Sequence[str]], predictions: Iterable[Sequence[str]]) -> dict[str, float]:
    """Micro-averaged F1, precision and recall of entities; 0 where there is nothing to divide by.

    Args:
        gold, predicted: tags of the words, text by text.
    """
    right = there = claimed = 0
    for ours, theirs in zip(references, predictions, strict=True):
        wanted, found = {*extract_entities(ours)}, {*extract_entities(theirs)}
        right += len(wanted & found)
        there += len(wanted)
        claimed += len(found)
    return {
        "entity_f1": _ratio(2 * right, there + claimed),
        "entity_precision": _ratio(right, claimed),
        "entity_recall": _ratio(right, there),
    }


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else 0.0


_WORD = re.compile(r"[@#]?\w+(?:[-'\u2019./]\w+)*|[^\w\s]")
_CHUNK = 1024  # texts given to the tokenizer at a time


def split_words(text: str) -> tuple[CharSpan, ...]:
    """Where the words of a plain text are; punctuation is a word, but within one (``O'Neill``) it is not."""
    return tuple(match.span() for match in _WORD.finditer(text))


def join_words(words: Sequence[str]) -> tuple[str, tuple[CharSpan, ...]]:
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
    assert examples.word_spans is not None
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
            words = examples.word_spans[number]
            word_of = _word_of_first_token(
                words, np.asarray(encoded["offset_mapping"][row], dtype=np.int32).reshape(-1, 2)
            )
            spans = np.asarray([*words, (-1, -1)], dtype=np.int32)  # the last one for tokens without a word
            rows["ids"].append(np.asarray(ids, dtype=np.int32))
            rows["starts"].append(spans[word_of, 0])
            rows["ends"].append(spans[word_of, 1])
            if "token_type_ids" in encoded:
                rows["types"].append(np.asarray(encoded["token_type_ids"][row], dtype=np.int32))
            if examples.labels is not None:
                rows["labels"].append(np.asarray([*examples.labels[number], IGNORE_INDEX], dtype=np.int64)[word_of])
    offsets = np.cumsum([0, *(len(ids) for ids in rows["ids"])], dtype=np.int64)
    flat = {name: np.concatenate(parts) for name, parts in rows.items() if parts}
    return TokenizedExamples(
        RaggedTokens(flat["ids"], flat.get("types"), offsets),
        torch.from_numpy(flat["labels"]) if examples.labels is not None else None,
        pad_token_id=int(tokenizer.pad_token_id),  # type: ignore[arg-type]  # checked above
        pad_token_type_id=int(tokenizer.pad_token_type_id),
        has_token_labels=True,
        alignment=TokenAlignment(examples, np.arange(len(examples)), flat["starts"], flat["ends"]),
    )


def _word_of_first_token(words: Sequence[CharSpan], offsets: np.ndarray) -> np.ndarray:
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


def word_predictions(logits: np.ndarray, examples: TokenizedExamples) -> list[list[tuple[int, float] | None]]:
    """For each text and word the most probable class and its probability; None for words without a token.

    Args:
        logits: ``(all tokens, classes)``.
        examples: from `tokenize_words`.
    """
    places = examples.alignment
    assert places is not None
    assert places.examples.word_spans is not None
    tokens = np.flatnonzero(places.char_starts >= 0)
    row_of = np.repeat(places.example_index, examples.lengths)[tokens]
    chosen = logits[tokens]
    best = chosen.argmax(axis=-1)
    probability = 1 / np.exp(chosen - chosen.max(axis=-1, keepdims=True)).sum(axis=-1)
    answered: list[dict[int, tuple[int, float]]] = [{} for _ in places.examples.texts]
    for row, start, label, share in zip(
        row_of.tolist(), places.char_starts[tokens].tolist(), best.tolist(), probability.tolist(), strict=True
    ):
        answered[row][start] = (label, share)
    return [
        [mine.get(start) for start, _ in words]
        for mine, words in zip(answered, places.examples.word_spans, strict=True)
    ]


CONLL_FORMATS = (".conll", ".iob", ".bio", ".txt")
FORMATS = (*CONLL_FORMATS, ".jsonl", ".json", ".parquet")
WORD_COLUMN_NAMES = ("tokens", "words")
TAG_COLUMN_NAMES = ("tags", "ner_tags", "labels", "ner")
_DEFAULT_CONLL_COLUMNS = 2  # columns of the simplest CoNLL file
_COMMENT = re.compile(r"# +\S+ += ")


def open_tagged(path: Path) -> Table:
    """A CoNLL file as a table of ``tokens`` and ``tags``, a row a sentence; other formats as they are.

    Raises:
        DataError: the file is missing, unreadable or empty, or of a format that is not read.
    """
    return conll_table(check_readable(path)) if path.suffix.lower() in CONLL_FORMATS else open_table(path)


def conll_table(path: Path) -> Table:
    """Sentences of one word a line with a blank line between: columns parted by tabs or spaces, the first the word, the
    last its tag. Lines that begin with ``-DOCSTART-`` and comments above a sentence (``# sent_id = 7``) are left out; a
    row is named by its first line."""

    def rows() -> Iterator[TableRow]:
        lines: list[_ConllLine] = []
        problem, columns = None, 0
        for line, cells, wrong in chain(lines_table(path).rows(), [TableRow(0, ())]):
            text = str(cells[0]) if cells else ""
            if wrong is not None or (text.strip() and not text.startswith("-DOCSTART-")):
                lines.append(_ConllLine(line, text))
                problem = wrong or problem
            elif lines:
                words = lines if problem else _without_comments(lines, column_count=columns)
                if words:
                    columns = len(words[-1].cells)
                    tags = [one.cells[-1].strip() if len(one.cells) > 1 else None for one in words]
                    yield TableRow(words[0].line_number, ([one.cells[0] for one in words], tags), problem)
                lines, problem = [], None

    return Table(str(path), ("tokens", "tags"), rows)


class _ConllLine(NamedTuple):
    """A line of a CoNLL file, by its number."""

    line_number: int
    text: str

    @property
    def cells(self) -> list[str]:
        if "\t" in self.text:
            return self.text.split("\t")
        return [part for part in self.text.split(" ") if part]  # no other white space parts columns: words hold some


def _without_comments(lines: list[_ConllLine], *, column_count: int) -> list[_ConllLine]:
    """The lines of a sentence without the comments above it.

    A comment begins with ``#`` and a space and is not a line like the others: it says ``KEY = VALUE``, or has another
    number of columns. ``# O`` in a file of two columns is the word ``#``.

    Args:
        columns: those of the sentence before, which decide where all lines look like comments; 0: there is none.
    """
    words = [line for line in lines if not line.text.startswith("# ")]
    usual = len(words[-1].cells) if words else column_count or _DEFAULT_CONLL_COLUMNS
    for place, line in enumerate(lines):
        if not line.text.startswith("# ") or (len(line.cells) == usual and not _COMMENT.match(line.text)):
            return lines[place:]
    return []


def read_tagged(table: Table, config: DataConfig, task: Task | None) -> tuple[Task, Examples]:
    """The sentences of a table with their tags, and the task; without one it follows from the tags.

    Raises:
        DataError: a missing column, or a row (``FILE:LINE: what, expected``).
    """
    at = (
        _column_index(table, config.text_column, WORD_COLUMN_NAMES),
        _column_index(table, config.label_column, TAG_COLUMN_NAMES),
    )
    rows, bad_rows = [], 0
    for row in table.rows():
        try:
            rows.append((row.line_number, *_words_and_tags(row, at)))
        except ValueError as error:
            bad_rows += _skip_or_raise(table, row.line_number, error, config)
    if not rows:
        raise DataError(f"{table.name}: no sentence with tags; expected at least one")
    task = task or custom_task(
        "token-classification", config.label_names or _infer_tag_names([tags for *_, tags in rows], table)
    )
    known = {name: index for index, name in enumerate(task.labels)}
    texts, spans, labels = [], [], []
    for line, words, tags in rows:
        try:
            ids = tuple(_tag_id(tag, known, config) for tag in tags)
        except ValueError as error:
            bad_rows += _skip_or_raise(table, line, error, config)
            continue
        text, places = join_words(words)
        texts.append(text)
        spans.append(places)
        labels.append(ids)
    if not texts:
        raise DataError(f"{table.name}: none of the {bad_rows} sentences can be used; expected at least one")
    return task, Examples(tuple(texts), None, tuple(labels), bad_rows, word_spans=tuple(spans))


def read_untagged(path: Path, config: DataConfig) -> Examples:
    """Texts to be tagged: a plain text a line (``.txt``), words already split (CoNLL, or lists), or a column of texts.

    Raises:
        DataError: a missing or unusable file, column or row.
    """
    table = lines_table(check_readable(path)) if path.suffix.lower() == ".txt" else open_tagged(path)
    names = (config.text_column,) if config.text_column in table.columns else (*WORD_COLUMN_NAMES, "text", "sentence")
    at = _column_index(table, None, [name for name in names if name])
    texts, spans = [], []
    for row in table.rows():
        value = row.cells[at] if row.problem is None else None
        if isinstance(value, str) and value.strip():
            text, places = value, split_words(value)
        elif isinstance(value, list) and value and all(isinstance(word, str) and word for word in value):
            text, places = join_words(value)
        else:
            reason = row.problem or f"no words in column {table.columns[at]!r}, expected a list of words or a text"
            _skip_or_raise(table, row.line_number, reason, config)
            continue
        texts.append(text)
        spans.append(places)
    if not texts:
        raise DataError(f"{table.name}: no words; expected a text or a list of words in some row")
    return Examples(tuple(texts), None, None, word_spans=tuple(spans))


def word_examples(texts: Sequence[str], pairs: Sequence[str] | None) -> Examples:
    """Plain texts, split into words.

    Raises:
        ConfigError: pairs.
    """
    if pairs:
        raise ConfigError("token classification reads one text, not a pair")
    return Examples(tuple(texts), None, None, word_spans=tuple(split_words(text) for text in texts))


def tag_metrics(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> dict[str, float]:
    """The task's metrics, over all words, also those beyond the longest input: these count as not found.

    Args:
        task: with tags of entities, or others.
        logits: ``(all tokens, classes)``.
        examples: labelled.
    """
    assert examples.alignment is not None
    gold = examples.alignment.examples.labels
    assert gold is not None
    answers = word_predictions(logits, examples)
    if task.primary_metric == "accuracy":
        right = sum(
            one is not None and one[0] == label
            for text, ids in zip(answers, gold, strict=True)
            for one, label in zip(text, ids, strict=True)
        )
        return {"accuracy": right / max(1, sum(map(len, gold)))}
    names = task.labels
    return entity_metrics(
        [[names[label] for label in ids] for ids in gold],
        [["O" if one is None else names[one[0]] for one in text] for text in answers],
    )


def tag_predictions(task: Task, logits: np.ndarray, examples: TokenizedExamples) -> list[dict[str, Any]]:
    """For each text ``entities``, or ``words`` where tags mark none: text, type or tag, score, first character, end.

    The score is the mean probability of the words' tags. Words that were not read, because the text is longer than
    the longest input, are counted in ``words_not_read``.
    """
    assert examples.alignment is not None
    source = examples.alignment.examples
    assert source.word_spans is not None
    rows = []
    for text, words, answers in zip(source.texts, source.word_spans, word_predictions(logits, examples), strict=True):
        tags = ["O" if one is None else task.labels[one[0]] for one in answers]
        if task.primary_metric == "accuracy":
            spans = [Entity(tag, at, at + 1) for at, tag in enumerate(tags) if answers[at] is not None]
        else:
            spans = extract_entities(tags)
        name, what = ("words", "tag") if task.primary_metric == "accuracy" else ("entities", "type")
        found = []
        for span in spans:
            start, end = words[span.start][0], words[span.end - 1][1]
            shares = [one[1] for one in answers[span.start : span.end] if one is not None]
            score = sum(shares) / len(shares)
            found.append({"text": text[start:end], what: span.type, "score": score, "start": start, "end": end})
        row: dict[str, Any] = {name: found}
        missing = sum(one is None for one in answers)
        rows.append(row | {"words_not_read": missing} if missing else row)
    return rows


def _column_index(table: Table, requested: str | None, names: Sequence[str]) -> int:
    wanted = (requested,) if requested else tuple(names)
    for name in wanted:
        if name in table.columns:
            return table.columns.index(name)
    has = ", ".join(repr(name) for name in table.columns)
    raise DataError(f"{table.name}: no column {' or '.join(map(repr, wanted))}; it has {has}")


def _words_and_tags(row: TableRow, column_indices: tuple[int, int]) -> tuple[list[str], list[str | int]]:
    if row.problem is not None:
        raise ValueError(row.problem)
    words, tags = row.cells[column_indices[0]], row.cells[column_indices[1]]
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError("a word is missing, expected a list of words")
    if not isinstance(tags, list) or len(tags) != len(words):
        found = len(tags) if isinstance(tags, list) else "no"
        raise ValueError(f"{found} tags for {len(words)} words, expected one a word")
    for word, tag in zip(words, tags, strict=True):
        if not isinstance(tag, (str, int)) or tag == "":
            raise ValueError(f"the word {word!r} has no tag, expected one")
    return words, tags


def _infer_tag_names(tag_rows: Sequence[Sequence[str | int]], table: Table) -> tuple[str, ...]:
    """All tags, ``O`` first; each type of entity has a tag for every place in an entity, whether seen or not.

    Tags that mark no entity among those that do are left out, so that the rows that have them are bad ones.
    """
    tags = {tag for row in tag_rows for tag in row}
    if any(isinstance(tag, int) for tag in tags):
        raise DataError(
            f"{table.name}: tags are numbers; say what they mean, in the order of their ids, as label names"
        )
    names = {str(tag) for tag in tags}
    marking = entity_tags(names)
    if marking:
        prefixes = {name[0] for name in marking} - {"O"}
        if prefixes & {"B", "I"}:
            prefixes |= {"B"} if "M" in prefixes else {"B", "I"}
        names = {f"{prefix}-{name[2:]}" for name in marking - {"O"} for prefix in prefixes} | (marking & {"O"})
    return tuple(sorted(names, key=lambda name: (name != "O", natural_sort_key(name[2:]), name)))


def _tag_id(tag: str | int, name_to_id: dict[str, int], config: DataConfig) -> int:
    if (
        isinstance(tag, int)
        and not isinstance(tag, bool)
        and 0 <= tag < len(name_to_id)
        and config.label_names is not None
    ):
        return name_to_id[config.label_names[tag]]
    if str(tag) not in name_to_id:
        raise ValueError(f"tag {tag!r} is unknown, expected one of {', '.join(name_to_id)}")
    return name_to_id[str(tag)]


def _skip_or_raise(table: Table, line_number: int, reason: object, config: DataConfig) -> int:
    """One bad row more, or the error that it is."""
    if not config.skip_bad_rows:
        raise DataError(f"{table.name}:{line_number}: {reason}")
    return 1
