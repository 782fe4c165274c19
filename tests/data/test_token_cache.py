"""The token cache is found by content, rebuilt when broken, and never in the way of a run."""

import json
import logging
from pathlib import Path

import pytest
import torch

from limbert.data import tokenize as tokens
from limbert.data.readers import Examples
from limbert.data.tokenize import default_cache_dir, tokenization_fingerprint, tokenize_texts

EXAMPLES = Examples(("one two three", "four"), ("a pair", "another pair"), (0, 1))


def cached_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def key(tokenizer, texts=EXAMPLES.texts, pairs=EXAMPLES.pairs, max_length=32):
    return tokenization_fingerprint(tokenizer, texts, pairs, max_length=max_length)


def same(first, second):
    batch, other = first.collate([0, 1]), second.collate([0, 1])
    return batch.keys() == other.keys() and all(torch.equal(batch[name], other[name]) for name in batch)


def test_the_second_run_reads_what_the_first_wrote(tokenizer, tmp_path, monkeypatch):
    first = tokenize_texts(EXAMPLES, tokenizer, max_length=32, cache_dir=tmp_path)
    [file] = cached_files(tmp_path)
    assert file.suffix == ".safetensors"
    monkeypatch.setattr(tokens, "_tokenize", lambda *args, **settings: pytest.fail("tokenised again"))
    assert same(first, tokenize_texts(EXAMPLES, tokenizer, max_length=32, cache_dir=tmp_path))


def test_labels_are_no_part_of_the_cache(tokenizer, tmp_path):
    tokenize_texts(EXAMPLES, tokenizer, max_length=32, cache_dir=tmp_path)
    other = tokenize_texts(
        Examples(EXAMPLES.texts, EXAMPLES.pairs, (1, 0)), tokenizer, max_length=32, cache_dir=tmp_path
    )
    assert other.collate([0, 1])["labels"].tolist() == [1, 0]
    assert len(cached_files(tmp_path)) == 1


def test_every_part_of_the_content_counts(tokenizer):
    keys = [
        key(tokenizer),
        key(tokenizer, max_length=31),
        key(tokenizer, texts=("one two thre", "efour")),
        key(tokenizer, pairs=None),
        key(tokenizer, texts=(*EXAMPLES.texts, *EXAMPLES.pairs), pairs=None),
        key(tokenizer, texts=EXAMPLES.texts[::-1]),
    ]
    assert len(set(keys)) == len(keys)


def test_the_key_is_the_same_after_the_tokenizer_was_used(tokenizer):
    before = key(tokenizer)
    tokenizer("some text", truncation=True, max_length=5, padding="max_length")
    assert key(tokenizer) == before


def test_another_tokenizer_is_another_key(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    assert key(AutoTokenizer.from_pretrained(tmp_path)) == key(tokenizer)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["model"]["vocab"]["three"], state["model"]["vocab"]["four"] = (
        state["model"]["vocab"]["four"],
        state["model"]["vocab"]["three"],
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    assert key(AutoTokenizer.from_pretrained(tmp_path)) != key(tokenizer)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-10],
        lambda content: b"x" * len(content),
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    ],
)
def test_a_broken_file_is_built_anew(tokenizer, tmp_path, damage, caplog):
    first = tokenize_texts(EXAMPLES, tokenizer, max_length=32, cache_dir=tmp_path)
    [file] = cached_files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING, logger="limbert"):
        assert same(first, tokenize_texts(EXAMPLES, tokenizer, max_length=32, cache_dir=tmp_path))
    assert "broken" in caplog.text
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_only_time(tokenizer, tmp_path):
    (tmp_path / "file").write_text("in the way")
    data = tokenize_texts(EXAMPLES, tokenizer, max_length=32, cache_dir=tmp_path / "file")
    assert same(data, tokenize_texts(EXAMPLES, tokenizer, max_length=32, cache_dir=tmp_path / "other"))


def test_a_full_disk_leaves_nothing_behind(tokenizer, tmp_path, monkeypatch):
    def full(*places):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokens.os, "replace", full)
    assert len(tokenize_texts(EXAMPLES, tokenizer, max_length=32, cache_dir=tmp_path)) == 2
    assert cached_files(tmp_path) == []


def test_the_folder_follows_the_environment(monkeypatch, tmp_path, tokenizer):
    monkeypatch.setenv("LIMBERT_CACHE", str(tmp_path / "mine"))
    tokenize_texts(EXAMPLES, tokenizer, max_length=32)
    assert len(cached_files(tmp_path / "mine")) == 1
    monkeypatch.delenv("LIMBERT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "limbert"


def test_without_cache_nothing_is_kept(tokenizer, tmp_path):
    data = tokenize_texts(EXAMPLES, tokenizer, max_length=32, cache_dir=tmp_path, use_cache=False)
    assert cached_files(tmp_path) == []
    assert same(data, tokenize_texts(EXAMPLES, tokenizer, max_length=32, cache_dir=tmp_path))


def test_without_a_home_there_is_no_cache(monkeypatch, tokenizer):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LIMBERT_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert len(tokenize_texts(EXAMPLES, tokenizer, max_length=32)) == 2
