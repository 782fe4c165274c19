"""Where rows are looked for, and what is refused before anything is read."""

import pytest

from limbert.core.config import DataConfig
from limbert.data.readers import find_sources
from limbert.data.tasks import glue_task
from limbert.errors import ConfigError, DataError

ROW = "text\tlabel\nsome words\ta\n"


def names(sources):
    return {part: opener(True).name.rsplit("/", 1)[-1] for part, opener in sources.dev.items()}


@pytest.mark.parametrize(
    ("files", "dev"),
    [
        (["dev.tsv", "test.tsv"], "dev.tsv"),
        (["validation.tsv", "test.tsv"], "validation.tsv"),
        (["valid.TSV"], "valid.TSV"),
        (["test.tsv"], "test.tsv"),
    ],
)
def test_test_is_reported_on_only_where_there_is_no_dev(write, tmp_path, files, dev):
    for name in ["train.tsv", *files]:
        write(name, ROW)
    sources = find_sources(DataConfig(data=str(tmp_path)), None)
    assert sources.train is not None
    assert names(sources) == {"dev": dev}


def test_one_part_of_mnli_is_enough(write, tmp_path):
    write("train.tsv", ROW)
    write("dev_matched.tsv", ROW)
    assert names(find_sources(DataConfig(data=str(tmp_path)), glue_task("mnli"))) == {"matched": "dev_matched.tsv"}
    write("dev_mismatched.tsv", ROW)
    assert names(find_sources(DataConfig(data=str(tmp_path)), glue_task("mnli"))) == {
        "matched": "dev_matched.tsv",
        "mismatched": "dev_mismatched.tsv",
    }


def test_a_dev_file_alone_has_no_training_rows(write, tmp_path):
    assert find_sources(DataConfig(dev=str(write("dev.tsv", ROW))), None).train is None
    assert find_sources(DataConfig(data=str(tmp_path)), None).train is None


def test_contradictions_are_settings_errors(tmp_path):
    with pytest.raises(ConfigError, match="data is 'a' beside train or dev"):
        find_sources(DataConfig(data="a", train="b"), None)
    with pytest.raises(ConfigError, match="no data given"):
        find_sources(DataConfig(), None)


def test_places_without_data_are_named(write, tmp_path):
    write("notes.md", "x")
    with pytest.raises(DataError, match=r"no train\.\* or dev\.\* ending in .csv.*; it holds notes.md"):
        find_sources(DataConfig(data=str(tmp_path)), None)
    with pytest.raises(DataError, match="no such folder"):
        find_sources(DataConfig(data=str(tmp_path / "absent")), None)
    with pytest.raises(DataError, match="a file; data must be a folder"):
        find_sources(DataConfig(data=str(tmp_path / "notes.md")), None)
    write("train.tsv", ROW)
    write("train.csv", ROW)
    with pytest.raises(DataError, match=r"train.csv and train.tsv are both there; expected one"):
        find_sources(DataConfig(data=str(tmp_path)), None)


def test_a_mistyped_folder_beside_others_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="data/mrcp: no such folder"):
        find_sources(DataConfig(data="data/mrcp"), None)
