"""A corpus becomes full sequences without losing a token, cached on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from tests.factories.corpora import make_lines
from transformers import PreTrainedTokenizerBase

from limbert.core.config import CorpusConfig
from limbert.data.mlm.corpus import pack_corpus, stream_text
from limbert.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMBERT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pack(path: Path, tokenizer: PreTrainedTokenizerBase, *, max_length: int = 50, **options: Any) -> Dataset:
    return pack_corpus([str(path)], CorpusConfig(corpus=("-",), **options), tokenizer, max_length=max_length)


def tokens_of(packed: Dataset) -> list[int]:
    return [token for row in packed for token in row["input_ids"][1 : row["length"] - 1].tolist()]


def test_packing_loses_no_token(tokenizer: PreTrainedTokenizerBase, write: Callable) -> None:
    lines = make_lines(2500)  # more than one batch of the tokenizer
    packed = pack(write("text.txt", "\n" + "\n".join(lines) + "\n\n"), tokenizer)
    expected: list[int] = []
    for line in lines:
        expected += [*tokenizer(line, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]
    assert tokens_of(packed) == expected[:-1]  # separators only between documents
    columns = packed[:]
    ids, lengths = columns["input_ids"], columns["length"]
    assert ids.shape == (len(packed), 50)
    assert columns["row"].tolist() == [*range(len(packed))]
    assert (lengths[:-1] == 50).all()
    assert (ids[:, 0] == tokenizer.cls_token_id).all()
    assert (ids[np.arange(len(ids)), lengths - 1] == tokenizer.sep_token_id).all()
    assert (ids[-1, lengths[-1] :] == tokenizer.pad_token_id).all()
    tokens = np.asarray(tokenizer.convert_ids_to_tokens(expected[:-1]))
    starts = columns["word_starts"][:, 1:-1].flatten()[: len(tokens)]
    uncut = np.arange(len(tokens)) % 48 != 0  # the rest of a cut word begins a word
    assert [token.startswith("##") for token in tokens[uncut]] == (~starts[uncut]).tolist()
    assert starts[~uncut].all()


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
@pytest.mark.parametrize("max_chars", [97, 1 << 16])
def test_split_texts_have_the_same_tokens(
    max_chars: int, suffix: str, tokenizer: PreTrainedTokenizerBase, write: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbert.data.mlm.corpus._MAX_PIECE_CHARS", max_chars)
    lines = [
        "élan  unquestionably 東京 😀 " * 40,
        " ".join(make_lines(30)),
        "word" + " " * 200 + "word " * 300,
        "東" * 300,
    ]
    rows = [json.dumps({"text": line}) for line in lines]
    path = write(f"text.{suffix}", "\n".join(rows) if suffix == "jsonl" else "\ufeff" + "\r\n".join(lines))
    assert max(len(piece or "") for piece in stream_text(path, CorpusConfig(corpus=("-",)))) <= max_chars
    packed = pack(path, tokenizer)
    text = tokenizer.sep_token.join(line.strip() for line in lines)
    assert tokens_of(packed) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_packed_corpus_is_cached(tokenizer: PreTrainedTokenizerBase, write: Callable, cache: Path) -> None:
    path = write("text.txt", "\n".join(make_lines(20)))
    first = pack(path, tokenizer)
    written = {file: file.stat().st_mtime_ns for file in cache.rglob("*.arrow")}
    again = pack(path, tokenizer)
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.arrow")} == written
    assert tokens_of(again) == tokens_of(first)
    path.write_text("other words\n")
    assert len(tokens_of(pack(path, tokenizer))) == 2


def test_bad_input_is_named(tokenizer: PreTrainedTokenizerBase, write: Callable, cache: Path) -> None:
    broken = write("broken.txt", b"fine\n\xff\xfe\nfine again\n")
    with pytest.raises(DataError, match=r"broken.txt:2"):
        pack(broken, tokenizer)
    assert not [*cache.rglob("*.arrow")]  # nothing half-written
    assert len(tokens_of(pack(broken, tokenizer, skip_bad_rows=True))) == 4
    half = write("half.jsonl", '{"text": "fine"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(DataError, match=r"half.jsonl:2.*'text'"):
        pack(half, tokenizer)
    assert len(tokens_of(pack(half, tokenizer, skip_bad_rows=True))) == 1
    with pytest.raises(DataError, match="no text"):
        pack(write("blank.txt", " \n\n"), tokenizer)
    with pytest.raises(ConfigError, match="mask_share"):
        CorpusConfig(corpus=("-",), mask_share=0.9)
