"""Windows hold every answer, the best span is found, metrics are SQuAD's."""

import json
from dataclasses import replace

import numpy as np
import pytest

from limbert.core.config import DataConfig
from limbert.data.load import load_evaluation_data, load_task_data
from limbert.data.question_answering import (
    MAX_ANSWER_TOKENS,
    answer_predictions,
    best_spans,
    normalize_answer,
    question_examples,
    token_f1,
)
from limbert.data.readers import Examples, ReferenceAnswers
from limbert.data.split import split_by_group, split_validation
from limbert.data.task_registry import compute_task_metrics, decode_predictions, tokenize_for_task
from limbert.data.tasks import custom_task
from limbert.errors import ConfigError, DataError

TASK = custom_task("question-answering", ())
CONTEXT = " ".join(f"In {1900 + year} the river rose by {year} metres." for year in range(40))


def question(answer: str) -> Examples:
    return Examples(("When?",), (CONTEXT,), (ReferenceAnswers((answer,), (CONTEXT.index(answer),)),))


def right_logits(tokens) -> np.ndarray:
    """Zero but at the labels of the windows that hold the answer."""
    logits = np.zeros((len(tokens.tokens.ids), 2), dtype=np.float32)
    for begin, (first, last) in zip(tokens.tokens.offsets[:-1], tokens.labels.tolist(), strict=True):
        if first:
            logits[begin + first, 0] = logits[begin + last, 1] = 9
    return logits


@pytest.mark.parametrize("answer", ["1900", "1939 the river rose", "1917", "39 metres"])
def test_windows_hold_every_short_answer(tokenizer, answer):
    tokens = tokenize_for_task(question(answer), TASK, tokenizer, max_length=48, stride=12)
    assert len(tokens) > 5
    assert tokens.lengths.max() <= 48
    read = {start for start in tokens.alignment.char_starts.tolist() if start >= 0}
    alone = tokenize_for_task(question(answer), TASK, tokenizer, max_length=512)
    assert read == {start for start in alone.alignment.char_starts.tolist() if start >= 0}
    assert compute_task_metrics(TASK, right_logits(tokens), tokens) == {"f1": 1.0, "exact_match": 1.0}
    (row,) = decode_predictions(TASK, right_logits(tokens), tokens)
    assert row["answer"] == answer == CONTEXT[row["start"] : row["end"]]
    assert row["score"] > 0.9


def test_best_spans_equal_exhaustive_search(tokenizer):
    tokens = tokenize_for_task(question("1900"), TASK, tokenizer, max_length=64)
    random = np.random.default_rng(3)
    for _ in range(5):
        logits = random.normal(size=(len(tokens.tokens.ids), 2)).astype(np.float32)
        expected = []
        for begin, end in zip(tokens.tokens.offsets[:-1], tokens.tokens.offsets[1:], strict=True):
            inside = [place for place in range(begin, end) if tokens.alignment.char_starts[place] >= 0]
            for at, first in enumerate(inside):
                for last in inside[at : at + MAX_ANSWER_TOKENS]:
                    span = int(tokens.alignment.char_starts[first]), int(tokens.alignment.char_ends[last])
                    expected.append((float(logits[first, 0] + logits[last, 1]), span))
        ranked = dict.fromkeys(span for _, span in sorted(expected, reverse=True))
        found = best_spans(logits, tokens, n_best_size=5)[0]
        assert [(one.start, one.end) for one in found] == list(ranked)[:5]


def test_context_without_tokens_has_no_answer(tokenizer):
    """A character without width is no white space, and nothing to the tokenizer."""
    tokens = tokenize_for_task(Examples(("Who?",), ("\u200b",), None), TASK, tokenizer, max_length=64)
    logits = np.zeros((len(tokens.tokens.ids), 2), dtype=np.float32)
    assert answer_predictions(TASK, logits, tokens) == [{"answer": "", "score": 0.0, "start": 0, "end": 0}]


def test_answers_are_normalised_as_in_squad():
    assert normalize_answer("The  Eiffel-Tower, an icon!") == "eiffeltower icon"
    assert token_f1("the Denver Broncos", "Denver Broncos") == 1
    assert token_f1("Denver", "the Denver Broncos") == pytest.approx(2 / 3)
    assert token_f1("Carolina", "Denver") == 0
    assert token_f1("a", "the") == 1  # nothing is left of either


def test_long_question_is_truncated(tokenizer):
    examples = question_examples(["why " * 300], [CONTEXT])
    tokens = tokenize_for_task(examples, TASK, tokenizer, max_length=64)
    assert tokens.lengths.max() <= 64
    assert (tokens.alignment.char_starts >= 0).any()
    with pytest.raises(ConfigError, match="at least 16"):
        tokenize_for_task(examples, TASK, tokenizer, max_length=12)
    with pytest.raises(ConfigError, match="a third of the maximum length"):
        DataConfig(max_length=90, stride=31)
    with pytest.raises(ConfigError, match="--pair CONTEXT"):
        question_examples(["why"], None)


def read_questions(path, task=None):
    """The examples of a file, as training or, with a task, as development data."""
    if task is not None:
        return load_evaluation_data(DataConfig(dev=str(path)), task)["dev"]
    data = load_task_data(DataConfig(task="squad", train=str(path), dev=str(path)), seed=0)
    assert replace(data.task, has_pairs=None) == TASK
    return data.train


def squad(articles: int = 4, **changes: object) -> str:
    asked = {"id": "1", "question": "Where?", "answers": [{"text": "Oslo", "answer_start": 3}]} | changes
    paragraphs = [[{"context": f"In Oslo, {n}.", "qas": [asked] * (n + 1)}] for n in range(articles)]
    return json.dumps({"data": [{"title": f"T{n}", "paragraphs": part} for n, part in enumerate(paragraphs)]})


def test_squad_file_and_columns_read_alike(write):
    examples = read_questions(write("train.json", squad()))
    assert len(examples) == 10
    assert examples.labels[0] == ReferenceAnswers(("Oslo",), (3,))
    rows = [
        {"title": group, "question": text, "context": pair, "answers": {"text": ["Oslo"], "answer_start": [3]}}
        for text, pair, group in zip(examples.texts, examples.pairs, examples.groups, strict=True)
    ]
    lines = write("train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert read_questions(lines) == read_questions(lines, TASK) == examples
    marked = write("marked.json", "\ufeff" + squad())
    assert read_questions(marked, TASK) == examples


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_impossible": True, "answers": []}, "train.json:1: a question without an answer"),
        ({"answers": [{"text": "Oslo", "answer_start": 4}]}, "is not at character 4"),
        ({"answers": [{"text": "Oslo"}]}, "answers that cannot be read"),
        ({"answers": [{"text": "n", "answer_start": True}]}, "answers that cannot be read"),
        ({"question": " "}, "no text in column 'question'"),
        ({"question": "\ud83d?"}, "train.json:1: invalid Unicode"),
    ],
)
def test_bad_question_is_named_with_its_number(write, changes, message):
    with pytest.raises(DataError, match=message):
        read_questions(write("train.json", squad(**changes)))


def test_articles_are_held_out_whole(write):
    path = str(write("one.json", squad(12)))
    config = DataConfig(task="squad", train=path, held_out=0.3)
    data = load_task_data(config, seed=0)
    dev = data.dev["dev"]
    assert len(data.train) + len(dev) == 78
    assert 15 <= len(dev) <= 31
    assert not {*data.train.groups} & {*dev.groups}
    assert not {*data.train.pairs} & {*dev.pairs}
    assert load_evaluation_data(config, data.task)["dev"] == dev
    assert load_task_data(config, seed=7).dev["dev"] == dev
    train, validation = split_validation(data.train, data.task, fraction=0.2, seed=1)
    assert not {*train.groups} & {*validation.groups}
    with pytest.raises(DataError, match="held-out"):
        load_task_data(DataConfig(task="squad", train=path), seed=0)
    with pytest.raises(ConfigError, match="one of them"):
        load_task_data(DataConfig(task="squad", train=path, dev=path, held_out=0.3), seed=0)
    with pytest.raises(DataError, match="at least two"):
        split_by_group(dev.select([0]), fraction=0.5, seed=0)


def test_real_questions_find_their_answers(real_data, tokenizer):
    path = real_data("SQuAD") / "dev-v1.1.reconstructed.json"
    data = load_task_data(DataConfig(task="squad", train=str(path), held_out=0.15, train_limit=150), seed=0)
    assert 1300 < len(data.dev["dev"]) < 1700
    tokens = tokenize_for_task(data.train, data.task, tokenizer, max_length=160)
    found = compute_task_metrics(data.task, right_logits(tokens), tokens)
    assert found["exact_match"] > 0.97  # the rest: answers of over 30 tokens, or that begin within a token
    assert found["f1"] >= found["exact_match"]
