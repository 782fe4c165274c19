"""Corpora are streamed as documents in bounded pieces."""

from collections.abc import Callable
from pathlib import Path

import pytest

from limbert.core.config import CorpusConfig
from limbert.data.mlm.corpus import corpus_files, stream_text
from limbert.errors import ConfigError, DataError

CONFIG = CorpusConfig(corpus=("-",))


def test_documents_are_lines_or_paragraphs(write: Callable) -> None:
    path = write("text.raw", " \n = Title = \n one .\r\n two .\n\n \nthree\n")
    assert [piece for piece in stream_text(path, CONFIG) if piece] == ["= Title =", "one .", "two .", "three"]
    paragraphs = list(stream_text(path, CorpusConfig(corpus=("-",), documents="paragraph")))
    assert paragraphs == [None, "= Title =", "one .", "two .", None, None, "three", None]


def test_text_column_of_a_table(write: Callable) -> None:
    path = write("x.csv", "id,body\n1,one text\n2,two\n")
    pieces = [*stream_text(path, CorpusConfig(corpus=("-",), text_column="body"))]
    assert pieces == ["one text", None, "two", None, None]
    with pytest.raises(DataError, match=r"'text' not found .*; columns: id, body"):
        [*stream_text(path, CorpusConfig(corpus=("-",), text_column="text"))]
    assert [*stream_text(write("empty.csv", ""), CONFIG)] == []


def test_invalid_utf8_in_a_long_line(write: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbert.data.mlm.corpus._MAX_PIECE_CHARS", 10)
    path = write("text.txt", b"fine\n" + b"one two " * 4 + b"\xff three\nfine again")
    with pytest.raises(DataError, match=r"text.txt:2"):
        list(stream_text(path, CONFIG))
    pieces = list(stream_text(path, CorpusConfig(corpus=("-",), skip_bad_rows=True)))
    assert [piece for piece in pieces if piece] == ["fine", "fine again"]


def test_files_folders_and_globs(write: Callable, tmp_path: Path) -> None:
    paths = [write(name, "x") for name in ("a.txt", "b.txt", "deep/c.raw")]
    assert corpus_files([str(tmp_path / "b.txt"), str(tmp_path / "*.txt")]) == (paths[1], paths[0])
    assert corpus_files([str(tmp_path / "deep")]) == (paths[2],)
    assert corpus_files([str(tmp_path / "**" / "*.raw")]) == (paths[2],)
    write("deep/.git/config", "x")
    assert corpus_files([str(tmp_path / "deep")]) == (paths[2],)
    for pattern in (str(tmp_path / "none-*.txt"), ""):
        with pytest.raises(DataError, match="corpus"):
            corpus_files([pattern])


def test_files_count_once_and_exclude_development_text(write: Callable, tmp_path: Path) -> None:
    one, two = write("texts/a.txt", "x"), write("texts/b.txt", "y")
    (tmp_path / "linked").symlink_to(tmp_path / "texts")
    patterns = [str(tmp_path / name) for name in ("texts", "texts/../texts/a.txt", "linked/*.txt", "linked")]
    assert corpus_files(patterns) == (one, two)
    exclude = [tmp_path / "linked" / "b.txt"]
    assert corpus_files([patterns[0], patterns[2]], exclude=exclude) == (one,)
    with pytest.raises(ConfigError, match=r"b.txt"):
        corpus_files([patterns[0], str(two)], exclude=exclude)
