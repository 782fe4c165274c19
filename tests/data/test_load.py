"""Loading tasks: own data, GLUE layouts, evaluation data, texts to predict, validation splits."""

from collections import Counter
from dataclasses import replace

import pytest

from limbert.core.config import DataConfig
from limbert.data.load import load_evaluation_data, load_task_data, load_texts
from limbert.data.readers import Examples
from limbert.data.split import split_validation
from limbert.data.tasks import custom_task, glue_task
from limbert.errors import ConfigError, DataError

SPAM = "ham\tGo until jurong\nspam\tFree entry\nham\tOk lar\nspam\tYou won a prize\n"


def test_cola_without_header(write, tmp_path):
    rows = "gj04\t1\t\tOur friends won't buy this.\ngj04\t0\t*\tThey drank the \"pub.\n"
    write("train.tsv", rows)
    write("dev.tsv", rows)
    data = load_task_data(DataConfig(task="CoLA", data=str(tmp_path)), seed=0)
    assert data.train == Examples(("Our friends won't buy this.", 'They drank the "pub.'), None, (1, 0))
    assert load_texts(tmp_path / "dev.tsv", DataConfig(task="cola")).texts == data.train.texts
    unlabelled = write("test.tsv", "index\tsentence\n0\tBill whistled past.\n")
    assert load_texts(unlabelled, DataConfig(task="cola")).texts == ("Bill whistled past.",)


def test_qqp_layout(write, tmp_path):
    rows = (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tHow so?\tWhy so?\t0\n4\t5\t6\tWho?\tWho is?\t1\n"
    )
    write("train.tsv", rows)
    write("dev.tsv", rows)
    data = load_task_data(DataConfig(task="qqp", data=str(tmp_path)), seed=0)
    assert data.train == Examples(("How so?", "Who?"), ("Why so?", "Who is?"), (0, 1))
    assert data.task.metrics == ("accuracy", "f1")


def test_mnli_leaves_out_examples_without_agreement(write, tmp_path):
    rows = "sentence1\tsentence2\tgold_label\none\ttwo\tneutral\nthree\tfour\t-\nfive\tsix\tentailment\n"
    write("train.tsv", rows)
    write("dev_mismatched.tsv", rows)
    data = load_task_data(DataConfig(task="mnli", data=str(tmp_path)), seed=0)
    assert data.train.labels == (1, 0)
    assert data.train.bad_rows == 0
    assert {part: examples.labels for part, examples in data.dev.items()} == {"mismatched": (1, 0)}


def test_column_numbers_mean_no_header(write):
    path = str(write("SMSSpamCollection", SPAM))
    config = DataConfig(train=path, dev=path, text_column="1", label_column="0")
    data = load_task_data(config, seed=0)
    assert data.task.labels == ("ham", "spam")
    assert len(data.train) == 4
    assert load_texts(path, config).texts == data.train.texts


@pytest.mark.parametrize(("rare", "metrics"), [(3, ("accuracy", "macro_f1")), (5, ("accuracy",))])
def test_macro_f1_is_reported_for_rare_classes(write, rare, metrics):
    labels = ["spam"] * rare + ["ham"] * (20 - rare)
    path = str(write("a.csv", "text,label\n" + "".join(f"text {index},{name}\n" for index, name in enumerate(labels))))
    config = DataConfig(train=path, dev=path)
    assert load_task_data(config, seed=0).task.metrics == metrics
    chosen = load_task_data(replace(config, metric="macro_f1"), seed=0).task.metrics
    assert chosen == ("macro_f1", "accuracy")


def test_dev_labels_must_be_known_from_train(write):
    train = write("train.csv", "text,label\n" + "one word,a\ntwo words,b\n" * 2)
    dev = write("dev.csv", "text,label\none word,a\nthree words,0\n")
    with pytest.raises(DataError, match=r"dev.csv:3: label '0' is unknown, expected one of a, b"):
        load_task_data(DataConfig(train=str(train), dev=str(dev)), seed=0)


def test_guessed_column_missing_in_dev_is_explained(write):
    train = write("train.csv", "text,label\n" + "one word,a\ntwo words,b\n" * 2)
    dev = write("dev.csv", "body,label\none word,a\n")
    with pytest.raises(
        DataError, match=rf"column 'text' not found in .*dev.csv \(guessed from {train}; .* columns: body, label"
    ):
        load_task_data(DataConfig(train=str(train), dev=str(dev)), seed=0)


def test_regression_names_labels_that_are_no_numbers(write):
    train = write("train.csv", "text,score\nsome words,1.5\nmore words,2\nother words,x\n")
    with pytest.raises(DataError, match=r"train.csv:4: label 'x' is no number"):
        load_task_data(DataConfig(train=str(train), dev=str(train)), seed=0)
    data = load_task_data(DataConfig(train=str(train), dev=str(train), skip_bad_rows=True), seed=0)
    assert data.task == custom_task("regression", (), has_pairs=False)
    same = write("same.csv", "text,score\nsome words,1.5\nmore words,1.50\n")
    with pytest.raises(DataError, match=r"every label is '1\.5'; a regression needs at least two values"):
        load_task_data(DataConfig(train=str(same), dev=str(same)), seed=0)
    assert data.train == Examples(("some words", "more words"), None, (1.5, 2.0), bad_rows=1)


def test_contradicting_glue_settings_are_refused(write, tmp_path):
    write("train.tsv", "sentence\tlabel\ngood\t1\nbad\t0\n")
    write("dev.tsv", "sentence\tlabel\ngood\t1\n")
    folder = str(tmp_path)
    with pytest.raises(ConfigError, match="must be classification for sst2"):
        load_task_data(DataConfig(task="sst2", data=folder, task_type="regression"), seed=0)
    with pytest.raises(ConfigError, match="must be 2 for sst2"):
        load_task_data(DataConfig(task="sst2", data=folder, label_names=("a", "b", "c")), seed=0)
    data = load_task_data(DataConfig(task="sst2", data=folder, label_names=("bad", "good")), seed=0)
    assert data.task.labels == ("bad", "good")


def test_missing_train_or_dev_is_named(write, tmp_path):
    path = write("train.csv", "text,label\n" + "one word,a\ntwo words,b\n" * 2)
    with pytest.raises(DataError, match="no development data"):
        load_task_data(DataConfig(data=str(tmp_path)), seed=0)
    with pytest.raises(DataError, match="no training data"):
        load_task_data(DataConfig(dev=str(path)), seed=0)


def test_evaluation_follows_the_labels_of_the_checkpoint(write):
    dev = str(write("dev.csv", "text,label\none word,a\ntwo words,c\nthree words,1\n"))
    task = custom_task("classification", ("c", "b", "a"))
    assert load_evaluation_data(DataConfig(dev=dev), task)["dev"].labels == (2, 0, 1)
    with pytest.raises(DataError, match=r"dev.csv:2: label 'a' is unknown, expected one of x, y"):
        load_evaluation_data(DataConfig(dev=dev), custom_task("classification", ("x", "y")))


def test_ids_in_files_keep_their_meaning(write):
    """A model fine-tuned elsewhere may have its labels in another order than the ids in the file."""
    dev = str(write("dev.tsv", "sentence\tlabel\nfine\t1\nbad\t0\n"))
    task = glue_task("sst2").task
    for labels, expected in ((task.labels, (1, 0)), (task.labels[::-1], (0, 1))):
        assert load_evaluation_data(DataConfig(dev=dev), replace(task, labels=labels))["dev"].labels == expected
        own = custom_task("classification", labels)
        assert load_evaluation_data(DataConfig(dev=dev, label_names=task.labels), own)["dev"].labels == expected


def test_evaluation_knows_the_layout_of_glue(write, tmp_path):
    write("dev.tsv", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\t3\tone\ttwo\n")
    dev = load_evaluation_data(DataConfig(data=str(tmp_path)), glue_task("mrpc").task)
    assert dev == {"dev": Examples(("one",), ("two",), (1,))}


def test_train_limit_keeps_all_classes_known(write):
    rows = "".join(f"text number {index},class {index % 4}\n" for index in range(200))
    path = str(write("a.csv", "text,label\n" + rows))
    full = load_task_data(DataConfig(train=path, dev=path), seed=0)
    limited = DataConfig(train=path, dev=path, train_limit=5)
    first, again, other = (load_task_data(limited, seed=seed) for seed in (1, 1, 2))
    assert first.train == again.train != other.train
    assert len(first.train) == 5
    assert set(first.train.texts) <= set(full.train.texts)
    assert first.task == full.task
    assert first.dev == full.dev


def test_texts_are_read_from_every_format(write):
    plain = write("a.txt", "one, two\nthree\n\n")
    assert load_texts(plain, DataConfig()) == Examples(("one, two", "three"), None, None)
    pairs = write("a.csv", "sentence1,sentence2,label\none,two,\n")
    assert load_texts(pairs, DataConfig()) == Examples(("one",), ("two",), None)
    assert load_texts(pairs, DataConfig(text_column="sentence2")) == Examples(("two",), None, None)
    with pytest.raises(DataError, match=r"'second' not found in .*a.txt; columns: text"):
        load_texts(plain, DataConfig(pair_column="second"))
    blank = write("b.txt", "one\n\ntwo\n")
    with pytest.raises(DataError, match=r"b.txt:2: no text"):
        load_texts(blank, DataConfig())
    assert load_texts(blank, DataConfig(skip_bad_rows=True)) == Examples(("one", "two"), None, None, bad_rows=1)


def examples_of(labels):
    return Examples(tuple(f"text {index}" for index in range(len(labels))), None, tuple(labels))


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5])
def test_validation_split_is_stratified(fraction):
    examples = examples_of([0] * 700 + [1] * 200 + [2] * 100 + [3])
    task = custom_task("classification", ("a", "b", "c", "d"))
    first, again, other = (split_validation(examples, task, fraction=fraction, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    train, validation = first
    assert set(train.labels) == {0, 1, 2, 3}  # every class stays in training
    for label, count in Counter(examples.labels).items():
        assert validation.labels.count(label) == pytest.approx(count * fraction, abs=1)
    assert sorted([*train.texts, *validation.texts]) == sorted(examples.texts)


def test_validation_split_covers_the_range_of_scores():
    scores = [float(index) for index in range(100)]
    _, validation = split_validation(examples_of(scores), custom_task("regression", ()), fraction=0.1, seed=0)
    assert len(validation) == 10
    assert min(validation.labels) < 20
    assert max(validation.labels) > 80
    with pytest.raises(ConfigError, match=r"validation fraction is 1\.5"):
        split_validation(examples_of(scores), custom_task("regression", ()), fraction=1.5, seed=0)
    with pytest.raises(DataError, match="2 training examples are too few"):
        split_validation(examples_of([0, 1]), custom_task("classification", ("a", "b")), fraction=0.1, seed=0)
