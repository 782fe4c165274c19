"""Where data is found, and what is refused before it is read."""

import pytest

from limbert.core.config import DataConfig
from limbert.data.sources import find_sources
from limbert.errors import ConfigError, DataError

ROW = "text\tlabel\nsome words\ta\n"


def names(sources):
    return {part: table.name.rsplit("/", 1)[-1] for part, table in sources.dev.items()}


@pytest.mark.parametrize(
    ("files", "dev"),
    [
        (["dev.tsv", "test.tsv"], "dev.tsv"),
        (["validation.tsv", "test.tsv"], "validation.tsv"),
        (["valid.TSV"], "valid.TSV"),
        (["test.tsv"], "test.tsv"),
    ],
)
def test_test_split_replaces_missing_dev(write, tmp_path, files, dev):
    for name in ["train.tsv", *files]:
        write(name, ROW)
    sources = find_sources(DataConfig(data=str(tmp_path)), None, None)
    assert sources.train is not None
    assert names(sources) == {"dev": dev}


def test_one_part_of_mnli_is_enough(write, tmp_path):
    write("train.tsv", ROW)
    write("dev_matched.tsv", ROW)
    assert names(find_sources(DataConfig(data=str(tmp_path)), "mnli", None)) == {"matched": "dev_matched.tsv"}
    write("dev_mismatched.tsv", ROW)
    assert names(find_sources(DataConfig(data=str(tmp_path)), "mnli", None)) == {
        "matched": "dev_matched.tsv",
        "mismatched": "dev_mismatched.tsv",
    }


def test_dev_file_alone_has_no_training_data(write, tmp_path):
    assert find_sources(DataConfig(dev=str(write("dev.tsv", ROW))), None, None).train is None
    assert find_sources(DataConfig(data=str(tmp_path)), None, None).train is None


def test_contradicting_settings_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="data is 'a' beside train or dev"):
        find_sources(DataConfig(data="a", train="b"), None, None)
    with pytest.raises(ConfigError, match="no data given"):
        find_sources(DataConfig(), None, None)


def test_folders_without_data_are_named(write, tmp_path):
    write("notes.md", "x")
    with pytest.raises(DataError, match=r"no train\.\* or dev\.\* ending in .csv.*; it holds notes.md"):
        find_sources(DataConfig(data=str(tmp_path)), None, None)
    with pytest.raises(DataError, match="no such folder"):
        find_sources(DataConfig(data=str(tmp_path / "absent")), None, None)
    with pytest.raises(DataError, match="a file; data must be a folder"):
        find_sources(DataConfig(data=str(tmp_path / "notes.md")), None, None)
    write("train.tsv", ROW)
    write("train.csv", ROW)
    with pytest.raises(DataError, match=r"train.csv and train.tsv are both there; expected one"):
        find_sources(DataConfig(data=str(tmp_path)), None, None)


def test_mistyped_folder_is_no_hub_name(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="data/mrcp: no such folder"):
        find_sources(DataConfig(data="data/mrcp"), None, None)
