"""Entities are counted as in seqeval, labels are at first tokens, truncated words count as missed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

from limbert.core.config import DataConfig
from limbert.core.task_types import IGNORE_INDEX
from limbert.data.load import load_evaluation_data, load_task_data, load_texts
from limbert.data.readers import Examples
from limbert.data.task_files import conll_table, join_words
from limbert.data.task_registry import compute_task_metrics, decode_predictions, tokenize_for_task
from limbert.data.tasks import custom_task
from limbert.data.token_classification import entity_metrics, extract_entities, word_examples
from limbert.errors import ConfigError, DataError


def read_tagged(path, task=None, **settings):
    """The task and the examples of a file; with a task only those of development data."""
    config = DataConfig(task="ner", train=str(path), dev=str(path), **settings)
    if task is not None:
        return task, load_evaluation_data(replace(config, train=None), task)["dev"]
    data = load_task_data(config, seed=0)
    return replace(data.task, has_pairs=None), data.train


def read_untagged(path):
    return load_texts(path, DataConfig(), task_type="token-classification")


TAGS = ("O", "B-person", "I-person", "B-creative-work", "I-creative-work")
CONLL = "-DOCSTART-\tO\n\nAnn\tB-person\nLee\tI-person\nsings\tO\n.\tO\n\nin\tO\nOslo\tB-place\n"


def logits_for(examples, task, tags):
    """Logits ``(all tokens, classes)`` that predict these class ids, text by text and word by word."""
    logits = np.random.default_rng(1).normal(size=(len(examples.tokens.ids), len(task.labels))).astype(np.float32)
    row_of = np.repeat(np.arange(len(examples)), examples.lengths)
    for token in np.flatnonzero(examples.alignment.char_starts >= 0):
        starts = [start for start, _ in examples.alignment.examples.word_spans[row_of[token]]]
        logits[token, tags[row_of[token]][starts.index(examples.alignment.char_starts[token])]] += 20
    return logits


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_entities_are_those_of_seqeval(prefixes):
    random = np.random.default_rng(0)
    tags = ["O", *(f"{prefix}-{name}" for prefix in prefixes for name in ("person", "creative-work"))]
    texts = [random.choice(tags, size=random.integers(1, 12)).tolist() for _ in range(600)]
    for text in texts:
        assert [(name, first, end - 1) for name, first, end in extract_entities(text)] == get_entities(text)
    gold = texts[:300]
    others = zip(gold, texts[300:], strict=True)
    predicted = [text[: len(ours)] + ["O"] * (len(ours) - len(text)) for ours, text in others]
    found = entity_metrics(gold, predicted)
    assert found["entity_f1"] == pytest.approx(f1_score(gold, predicted))
    assert found["entity_precision"] == pytest.approx(precision_score(gold, predicted))
    assert found["entity_recall"] == pytest.approx(recall_score(gold, predicted))
    assert entity_metrics([["O"]], [["O"]]) == dict.fromkeys(found, 0.0)


def test_conll_and_json_lines_read_alike(write):
    conll = write("train.conll", CONLL)
    rows = [
        {"tokens": ["Ann", "Lee", "sings", "."], "ner_tags": [1, 2, 0, 0]},
        {"tokens": ["in", "Oslo"], "ner_tags": [0, 3]},
    ]
    lines = write("train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    names = ("O", "B-person", "I-person", "B-place", "I-place")
    task, examples = read_tagged(conll)
    assert task == custom_task("token-classification", names)
    assert examples.texts == ("Ann Lee sings .", "in Oslo")
    assert examples.labels == ((1, 2, 0, 0), (0, 3))
    again = read_tagged(lines, label_names=names)
    assert again == (task, examples)
    with pytest.raises(DataError, match="tags are numbers"):
        read_tagged(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [("Ann\tB-person\nLee\n", "train.conll:1: the word 'Lee' has no tag"), ("\n\n", "train.conll: no rows")],
)
def test_bad_sentence_is_named_with_its_line(write, text, message):
    with pytest.raises(DataError, match=message):
        read_tagged(write("train.conll", text))
    good = write("good.conll", CONLL)
    task, _ = read_tagged(good)
    unknown = write("dev.conll", "Oslo\tB-city\n\nAnn\tB-person\n")
    with pytest.raises(DataError, match=r"dev.conll:1: tag 'B-city' is unknown"):
        read_tagged(unknown, task)
    assert read_tagged(unknown, task, skip_bad_rows=True)[1].bad_rows == 1
    with pytest.raises(DataError, match=r"all.conll: no row has a label of the task"):
        read_tagged(write("all.conll", "Oslo\tB-city\n"), task, skip_bad_rows=True)
    half = write("half.jsonl", '{"tokens": ["fine"], "tags": ["O"]}\n{"tokens": ["\\ud83d"], "tags": ["O"]}\n')
    with pytest.raises(DataError, match=r"half.jsonl:2: invalid Unicode"):
        read_tagged(half)


def test_labels_are_at_first_tokens_of_words(tokenizer):
    text = "Unbelievably, O'Neill met @paulwalk in 東京 \U0001f600 !"
    examples = word_examples([text, "Hi"], None)
    words = [text[start:end] for start, end in examples.word_spans[0]]
    assert words[:6] == ["Unbelievably", ",", "O'Neill", "met", "@paulwalk", "in"]
    task = custom_task("token-classification", TAGS)
    labels = (tuple(index % 5 for index in range(len(words))), (3,))
    tokens = tokenize_for_task(
        type(examples)(examples.texts, None, labels, word_spans=examples.word_spans), task, tokenizer, max_length=64
    )
    batch = tokens.collate([1, 0])
    assert batch["labels"].shape == batch["input_ids"].shape
    assert batch["labels"][0, 1:].tolist() == [3] + [IGNORE_INDEX] * (batch["labels"].shape[1] - 2)
    assert [label for label in batch["labels"][1].tolist() if label != IGNORE_INDEX] == list(labels[0])


def test_truncated_words_count_as_missed(tokenizer):
    words = [f"word{number}" for number in range(30)]
    tags = (1,) * 30
    text, spans = join_words(words)
    task = custom_task("token-classification", TAGS)
    source = Examples((text,), None, (tags,), word_spans=(spans,))
    whole, cut = (tokenize_for_task(source, task, tokenizer, max_length=length) for length in (128, 20))
    assert compute_task_metrics(task, logits_for(whole, task, [tags]), whole)["entity_recall"] == 1
    found = compute_task_metrics(task, logits_for(cut, task, [tags]), cut)
    read = sum(cut.alignment.char_starts >= 0)
    assert 0 < read < 30
    expected = {"entity_precision": 1.0, "entity_recall": read / 30, "entity_f1": 2 * read / (30 + read)}
    assert found == pytest.approx(expected)
    (row,) = decode_predictions(task, logits_for(cut, task, [tags]), cut)
    assert row["words_not_read"] == 30 - read
    for one in row["entities"]:
        assert text[one["start"] : one["end"]] == one["text"]
        assert one["type"] == "person"
        assert one["score"] > 0.99


def test_metrics_of_real_sentences_equal_seqeval(real_data, tokenizer):
    folder = real_data("WNUT17")
    data = load_task_data(DataConfig(task="ner", data=str(folder)), seed=0)
    assert data.task.labels[0] == "O"
    assert len(data.task.labels) == 13
    dev = data.dev["dev"]
    assert len(data.train) == 3394
    examples = tokenize_for_task(dev, data.task, tokenizer, max_length=128)
    random = np.random.default_rng(0)
    guessed = [[label if random.random() < 0.9 else int(random.integers(13)) for label in ids] for ids in dev.labels]
    missing = sum(map(len, dev.labels)) - int((examples.alignment.char_starts >= 0).sum())
    assert missing < 5  # a tokenizer makes nothing of some lone signs
    found = compute_task_metrics(data.task, logits_for(examples, data.task, guessed), examples)
    names = [[[data.task.labels[label] for label in ids] for ids in side] for side in (dev.labels, guessed)]
    assert found["entity_f1"] == pytest.approx(f1_score(*names), abs=0.003)
    again = load_evaluation_data(DataConfig(data=str(folder)), data.task)
    assert again["dev"].labels == dev.labels


def test_other_tags_are_measured_by_accuracy(write, tokenizer):
    task, examples = read_tagged(write("t.conll", "Ann NN\nsings VB\n\nhe PR\n"))
    assert task.metrics == ("accuracy",)
    tokens = tokenize_for_task(examples, task, tokenizer, max_length=16)
    right = logits_for(tokens, task, examples.labels)
    assert compute_task_metrics(task, right, tokens) == {"accuracy": 1.0}
    assert [word["tag"] for word in decode_predictions(task, right, tokens)[0]["words"]] == ["NN", "VB"]


@pytest.mark.parametrize("tag", ["B_person", "person", "newdoc"])
def test_odd_tag_is_a_bad_row(write, tag):
    path = write("train.conll", f"{CONLL}\nAnn\tB-person\nLee\t{tag}\n")
    with pytest.raises(DataError, match=rf"train.conll:11: tag '{tag}' is unknown, expected one of O, B-person, I-p"):
        read_tagged(path)
    task, examples = read_tagged(path, skip_bad_rows=True)
    assert (task.primary_metric, len(examples), examples.bad_rows) == ("entity_f1", 2, 1)
    with pytest.raises(DataError, match=f"tag '{tag}' is among entity tags"):
        custom_task("token-classification", ("O", "B-person", tag))


@pytest.mark.parametrize(("scheme", "usual"), [("BILOU", "BIEOS"), ("BMEOS", "BIEOS")])
def test_bilou_and_bmes_mark_the_same_entities(write, scheme, usual):
    random = np.random.default_rng(0)
    for _ in range(200):
        tags = [tag if tag == "O" else f"{tag}-{random.choice(['a', 'b'])}" for tag in random.choice([*scheme], size=9)]
        assert extract_entities(tags) == extract_entities([usual[scheme.index(tag[0])] + tag[1:] for tag in tags])
    sentence = "".join(f"w\t{tag}\n" if tag == "O" else f"w\t{tag}-{'ab'[tag > 'L']}\n" for tag in scheme)
    task, _ = read_tagged(write("train.conll", sentence + "w\tB-c\n"))
    assert task.primary_metric == "entity_f1"
    assert {*task.labels} == {"O", *(f"{prefix}-{kind}" for prefix in scheme if prefix != "O" for kind in "abc")}


@pytest.mark.parametrize("separator", ["\t", " "])
def test_comments_are_no_words(write, separator):
    words = "Ann B-person\n# O\nLee I-person\n\n# O\n#hashtag O\n\n".replace(" ", separator)
    comments = "# newdoc id = 7\n# sent_id = 1\n# text = Ann # Lee\n"
    alone = "# a file of names\n\n"
    path = write("train.conll", f"{alone}{comments}{words}# newpar id = 8\n\n# a third one\nBo{separator}O\n")
    read = [tuple(row.cells.values()) for row in conll_table(path).rows()]
    assert read == [
        (["Ann", "#", "Lee"], ["B-person", "O", "I-person"]),
        (["#", "#hashtag"], ["O", "O"]),
        (["Bo"], ["O"]),
    ]
    assert [row.line_number for row in conll_table(path).rows()] == [6, 10, 16]
    columns = "# NN I-NP O\nNew\u00a0York NN I-NP O\n".replace(" ", separator)  # a space within the word
    four = write("four.conll", f"# sent_id = 1\n{columns}")
    assert [tuple(row.cells.values()) for row in conll_table(four).rows()] == [(["#", "New\u00a0York"], ["O", "O"])]


def test_unlabelled_texts_are_read(write):
    plain = write("texts.txt", "Ann sings.\nOslo\n")
    assert read_untagged(plain).word_spans == (((0, 3), (4, 9), (9, 10)), ((0, 4),))
    split = write("texts.jsonl", '{"tokens": ["Ann", "sings."]}\n')
    assert read_untagged(split).word_spans == (((0, 3), (4, 10)),)
    with pytest.raises(DataError, match=r"blank.txt:2: no text"):
        read_untagged(write("blank.txt", "Ann sings.\n\nOslo\n"))
    for name, empty in (("blank.txt", "\n\n"), ("none.conll", "-DOCSTART-\tO\n")):
        with pytest.raises(DataError, match=f"{name}: no rows"):
            read_untagged(write(name, empty))
    with pytest.raises(ConfigError, match="not a pair"):
        word_examples(["a"], ["b"])
