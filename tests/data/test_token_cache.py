"""The token cache is found by content, built again when broken, and optional."""

import json
import logging
from pathlib import Path

import pytest
import torch
from datasets.arrow_writer import ArrowWriter

from limbert.data import tokenize as tokens
from limbert.data.readers import Examples
from limbert.data.tokenize import default_cache_dir, tokenization_fingerprint, tokenize_texts

EXAMPLES = Examples(("one two three", "four") * 150, ("a pair", "another pair") * 150, (0, 1) * 150)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBERT_CACHE", str(tmp_path / "cache"))


def cached_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def key(tokenizer, texts=EXAMPLES.texts, pairs=EXAMPLES.pairs, max_length=32):
    return tokenization_fingerprint(tokenizer, texts, pairs, max_length=max_length)


def same(first, second):
    batch, other = first.collate([0, 1]), second.collate([0, 1])
    return batch.keys() == other.keys() and all(torch.equal(batch[name], other[name]) for name in batch)


def test_second_run_reads_the_cache(tokenizer, tmp_path, monkeypatch):
    first = tokenize_texts(EXAMPLES, tokenizer, max_length=32)
    [file] = cached_files(tmp_path)
    assert file.suffix == ".arrow"
    tokenizer("some text", truncation=True, max_length=5, padding="max_length")  # changes the tokenizer's state
    monkeypatch.setattr(tokens, "_encode", lambda *args, **settings: pytest.fail("tokenised again"))
    assert same(first, tokenize_texts(EXAMPLES, tokenizer, max_length=32))
    other = tokenize_texts(Examples(EXAMPLES.texts, EXAMPLES.pairs, (1, 0) * 150), tokenizer, max_length=32)
    assert other.collate([0, 1])["labels"].tolist() == [1, 0]  # labels are not cached


def test_fingerprint_covers_texts_pairs_and_length(tokenizer):
    keys = [
        key(tokenizer),
        key(tokenizer, max_length=31),
        key(tokenizer, texts=("one two thre", "efour")),
        key(tokenizer, pairs=None),
        key(tokenizer, texts=(*EXAMPLES.texts, *EXAMPLES.pairs), pairs=None),
        key(tokenizer, texts=EXAMPLES.texts[::-1]),
    ]
    assert len(set(keys)) == len(keys)


def test_other_tokenizer_has_other_fingerprint(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    assert key(AutoTokenizer.from_pretrained(tmp_path)) == key(tokenizer)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    words = state["model"]["vocab"]
    words["three"], words["four"] = words["four"], words["three"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    assert key(AutoTokenizer.from_pretrained(tmp_path)) != key(tokenizer)


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[: len(content) // 2], lambda content: b"x" * len(content)]
)
def test_broken_cache_is_built_again(tokenizer, tmp_path, damage, caplog):
    first = tokenize_texts(EXAMPLES, tokenizer, max_length=32)
    [file] = cached_files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING, logger="limbert"):
        assert same(first, tokenize_texts(EXAMPLES, tokenizer, max_length=32))
    assert "broken" in caplog.text
    assert len(file.read_bytes()) == len(whole)


def test_unusable_cache_is_not_used(tokenizer, tmp_path, monkeypatch):
    plain = tokenize_texts(EXAMPLES, tokenizer, max_length=32, use_cache=False)
    assert cached_files(tmp_path) == []
    (tmp_path / "cache").write_text("in the way")
    assert same(tokenize_texts(EXAMPLES, tokenizer, max_length=32), plain)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LIMBERT_CACHE")
    monkeypatch.setattr(Path, "home", homeless)
    assert same(tokenize_texts(EXAMPLES, tokenizer, max_length=32), plain)


def test_full_disk_leaves_nothing_behind(tokenizer, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ArrowWriter, "write_batch", full)
    assert len(tokenize_texts(EXAMPLES, tokenizer, max_length=32)) == len(EXAMPLES)
    assert cached_files(tmp_path) == []


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path, tokenizer):
    monkeypatch.setenv("LIMBERT_CACHE", str(tmp_path / "mine"))
    tokenize_texts(EXAMPLES, tokenizer, max_length=32)
    assert len(cached_files(tmp_path / "mine")) == 1
    monkeypatch.delenv("LIMBERT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "limbert"
