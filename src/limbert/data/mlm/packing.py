"""A corpus as token ids on disk, read through the page cache, and cut into sequences that are full to the last token.

It does not know what is hidden in a sequence: see masking.py.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import BinaryIO

import numpy as np
from transformers import PreTrainedTokenizerBase

from limbert.core.config import CorpusConfig
from limbert.data.mlm.corpus import corpus_files, stream_text
from limbert.data.tokenize import default_cache_dir, tokenization_fingerprint
from limbert.errors import ConfigError, DataError, StorageError
from limbert.files import atomic_folder

_MAX_CHUNK_TEXTS, _MAX_CHUNK_CHARS = (
    1000,
    1 << 20,
)  # pieces of text given to the tokenizer at a time: at most so many, about so long
_IDS_FILE, _WORD_STARTS_FILE, _METADATA_FILE = "ids.bin", "starts.bin", "corpus.json"
_STALE_SECONDS = 3600.0  # seconds without a change after which a half-written cache belongs to a killed process


@dataclass(frozen=True)
class TokenStream:
    """All documents of a corpus end to end, a separator between them. Memory-mapped: only what is read is loaded.

    Attributes:
        ids: ``(tokens,)`` int32.
        starts: ``(tokens,)`` bool, whether a token begins a word.
    """

    ids: np.ndarray
    word_starts: np.ndarray


@dataclass(frozen=True)
class PackedSequences:
    """A token stream cut into sequences ``[CLS] tokens [SEP]``. The last one may be shorter; no token is left out.

    Attributes:
        stream: the tokens.
        length: tokens of a sequence, special ones included.
        cls_id, sep_id, pad_id: what stands at its ends, and behind the last one's.
    """

    stream: TokenStream
    sequence_length: int
    cls_token_id: int
    sep_token_id: int
    pad_token_id: int

    def __len__(self) -> int:
        return -(-len(self.stream.ids) // (self.sequence_length - 2))

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Some sequences, padded on the right where the last one is among them.

        Args:
            rows: their numbers ``(rows,)``.

        Returns:
            Token ids int64, word starts, and what is no padding, each ``(rows, length)``.
        """
        content = self.sequence_length - 2
        stream_ids, stream_starts = np.asarray(self.stream.ids), np.asarray(self.stream.word_starts)  # slices cost less
        ids = np.full((len(indices), self.sequence_length), self.pad_token_id, dtype=np.int64)
        starts, real = np.ones(ids.shape, dtype=bool), np.zeros(ids.shape, dtype=bool)
        for place, row in enumerate(indices.tolist()):
            part = slice(row * content, (row + 1) * content)
            tokens = stream_ids[part]
            end = len(tokens) + 1
            ids[place, 1:end] = tokens
            ids[place, end] = self.sep_token_id
            starts[place, 1:end] = stream_starts[part]
            real[place, : end + 1] = True
        ids[:, 0] = self.cls_token_id
        starts[:, 1] = True  # what is left of a word that the cut went through counts as one
        return ids, starts, real


def pack_sequences(stream: TokenStream, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> PackedSequences:
    """Sequences of ``max_length`` tokens."""
    check_mlm_tokenizer(tokenizer)
    return PackedSequences(
        stream, max_length, int(tokenizer.cls_token_id), int(tokenizer.sep_token_id), int(tokenizer.pad_token_id)
    )


def check_mlm_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that sequences with hidden words cannot be made with.

    Raises:
        ConfigError: it is not a fast one, or lacks a special token.
    """
    kind = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ConfigError(f"tokenizer is {kind}; it must be a fast one (with a tokenizer.json)")
    for name in ("mask", "cls", "sep", "pad"):
        if getattr(tokenizer, f"{name}_token_id") is None:
            raise ConfigError(f"{name} token of {kind} is not set; it must be, to learn from text with hidden words")


def load_token_stream(
    patterns: Sequence[str],
    config: CorpusConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    exclude: Sequence[Path] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TokenStream:
    """The token ids of a corpus: tokenised now, or found again in the cache (``$LIMBERT_CACHE``, ``~/.cache/limbert``).

    Neither the text nor its tokens are held in memory; the cache takes about five bytes a token. It is found again by
    the tokenizer and the names, sizes and times of change of the files.

    Args:
        names: files, folders and globs.
        config: how to read them.
        tokenizer: a fast one.
        apart_from: files that folders and globs are taken without.
        progress: called with megabytes read and in all.

    Raises:
        ConfigError: a tokenizer without a special token that is needed, or a file named that must stay apart.
        DataError: a file that is missing or cannot be read as told, or no text at all.
        StorageError: the cache cannot be written.
    """
    check_mlm_tokenizer(tokenizer)
    files = corpus_files(patterns, exclude=exclude)
    if not files:
        raise DataError(f"corpus {', '.join(patterns)}: all its files are development text; expected others too")
    identity = [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    identity += [config.documents, str(config.text_column), str(config.skip_bad_rows)]
    try:
        folder = default_cache_dir() / "corpora" / tokenization_fingerprint(tokenizer, identity, None, max_length=0)
    except RuntimeError:
        raise StorageError("no folder for the tokens of a corpus; set LIMBERT_CACHE to one") from None
    found = _open_stream(folder)
    if found is None:
        _remove_stale_caches(folder)
        broken = folder.exists()
        with atomic_folder(folder, keep_existing=not broken) as fresh:  # two machines may share the cache
            _write_stream(fresh, files, config, tokenizer, progress=progress)
        found = _open_stream(folder)
    if found is None:
        raise StorageError(f"the tokens just written to {folder} cannot be read")
    return found


def _open_stream(folder: Path) -> TokenStream | None:
    """The cached stream; None where there is none or its files do not fit together."""
    try:
        tokens = json.loads((folder / _METADATA_FILE).read_text(encoding="utf-8"))["tokens"]
        ids = np.memmap(folder / _IDS_FILE, dtype=np.int32, mode="r")
        starts = np.memmap(folder / _WORD_STARTS_FILE, dtype=np.bool_, mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return TokenStream(ids, starts) if len(ids) == len(starts) == tokens else None


def _remove_stale_caches(folder: Path) -> None:
    for path in folder.parent.glob(f".{folder.name}.new-*"):
        newest = max((part.stat().st_mtime for part in [path, *path.glob("*")]), default=0.0)
        if time.time() - newest > _STALE_SECONDS:
            rmtree(path, ignore_errors=True)


def _write_stream(
    folder: Path,
    files: Sequence[Path],
    config: CorpusConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    progress: Callable[[int, int], None],
) -> None:
    total, done = sum(path.stat().st_size for path in files), 0
    with (folder / _IDS_FILE).open("wb") as ids_file, (folder / _WORD_STARTS_FILE).open("wb") as starts_file:
        writer = _StreamWriter(tokenizer, ids_file, starts_file)
        for path in files:
            before = done
            for texts in _chunks(stream_text(path, config)):
                writer.append(texts)
                done += sum(len(text.encode()) + 1 for text in texts if text is not None)
                progress(min(done, total) >> 20, total >> 20)
            done = before + path.stat().st_size
    if not writer.token_count:
        raise DataError(f"{', '.join(map(str, files[:3]))}: no text in the corpus; expected some")
    (folder / _METADATA_FILE).write_text(
        json.dumps({"tokens": writer.token_count, "files": [str(path) for path in files]}) + "\n"
    )


def _chunks(pieces: Iterator[str | None]) -> Iterator[list[str | None]]:
    """Lists of pieces small enough to tokenise at once."""
    chunk: list[str | None] = []
    size = 0
    for piece in pieces:
        chunk.append(piece)
        size += len(piece or "")
        if len(chunk) >= _MAX_CHUNK_TEXTS or size >= _MAX_CHUNK_CHARS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class _StreamWriter:
    """Appends the tokens of pieces of text to the files of a stream, with a separator between documents."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ids_file: BinaryIO, starts_file: BinaryIO) -> None:
        self._tokenizer, self._ids_file, self._starts_file = tokenizer, ids_file, starts_file
        self._document_ended = False  # a document has ended behind the last token
        self.token_count = 0

    def append(self, pieces: list[str | None]) -> None:
        texts = [piece for piece in pieces if piece is not None]
        settings = {"add_special_tokens": False, "truncation": False, "padding": False, "verbose": False}
        encoded = iter(self._tokenizer(texts, **settings).encodings or () if texts else ())
        ids: list[int] = []
        starts: list[bool] = []
        for piece in pieces:
            if piece is None:
                self._document_ended = True
                continue
            encoding = next(encoded)
            if not encoding.ids:
                continue
            if self._document_ended and self.token_count + len(ids):
                ids.append(int(self._tokenizer.sep_token_id))
                starts.append(True)
            self._document_ended = False
            words = encoding.word_ids
            ids += encoding.ids
            starts += [word is None or word != before for word, before in zip(words, [None, *words], strict=False)]
        np.asarray(ids, dtype=np.int32).tofile(self._ids_file)
        np.asarray(starts, dtype=np.bool_).tofile(self._starts_file)
        self.token_count += len(ids)
