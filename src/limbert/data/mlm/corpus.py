"""A text corpus as a `datasets.Dataset` of full token sequences, cached on disk and memory-mapped.

Documents are streamed from plain text or a column of tables, without holding a file in memory.
"""

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedTokenizerBase

from limbert.core.config import CorpusConfig, DataConfig
from limbert.data.columns import choose_columns
from limbert.data.table import FORMATS, file_format, lines_table, open_table
from limbert.data.tokenize import check_tokenizer, default_cache_dir, hidden_progress_bars, tokenization_fingerprint
from limbert.errors import ConfigError, DataError, LimbertError, StorageError, first_line

_MAX_PIECE_CHARS = 1 << 16  # a tokenizer takes about 170 bytes of memory per character
_MAX_BATCH_TEXTS, _MAX_BATCH_CHARS = 1000, 1 << 20  # of one call of the tokenizer

Progress = Callable[[int, int], None]


def corpus_files(patterns: Iterable[str], *, exclude: Iterable[Path] = ()) -> tuple[Path, ...]:
    """The files that patterns match, in order, each once, even if reached by several paths.

    A pattern is a file, a folder (all its files that are not hidden) or a glob. Folders and globs leave out files to
    ``exclude``, on which models are only evaluated.
    """
    excluded = {path.resolve() for path in exclude}
    files: dict[Path, Path] = {}
    for pattern in patterns:
        if not pattern.strip():
            raise DataError(f"corpus is {pattern!r}; it must be a file, a folder or a glob")
        path = Path(pattern).expanduser()
        if path.is_dir():
            inside = ((file, file.relative_to(path).parts) for file in path.rglob("*") if file.is_file())
            paths = sorted(file for file, parts in inside if not any(part.startswith(".") for part in parts))
        elif path.exists():
            if path.resolve() in excluded:
                raise ConfigError(f"corpus {pattern} is development text too; it must be one or the other")
            paths = [path]
        else:
            paths = sorted(Path(file) for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
        if not paths:
            raise DataError(f"corpus {pattern}: no such file, and no folder or glob with files in it")
        for file in paths:
            if (resolved := file.resolve()) not in excluded:
                files.setdefault(resolved, file)
    return tuple(files.values())


def stream_text(path: Path, config: CorpusConfig) -> Iterator[str | None]:
    """The text of a file in pieces; None marks the end of a document.

    A document is a table row, or in plain text a line or a paragraph (``config.documents``); a paragraph is yielded
    line by line. Texts of more than 65,536 characters are split before white space or, without any, anywhere. An
    empty file has no documents.
    """
    if path.exists() and not path.stat().st_size:
        return
    is_table = file_format(path) in FORMATS
    table, column = (open_table if is_table else lines_table)(path), "text"
    if is_table:
        table, columns = choose_columns(table, DataConfig(text_column=config.text_column), labelled=False)
        column = str(columns.text)
    for row in table.rows():
        cell = row.cells.get(column)
        text, problem = cell.strip() if isinstance(cell, str) else "", row.problem
        if is_table and not text:
            problem = problem or f"no text in column {column!r}, expected some"
        if problem is not None:
            if not config.skip_bad_rows:
                raise DataError(f"{table.name}:{row.line_number}: {problem}")
            continue
        if text:
            yield from _split_pieces(text)
        if is_table or not text or config.documents == "line":
            yield None
    yield None


def _split_pieces(text: str) -> list[str]:
    """Pieces of limited length, each but the first beginning with the white space before it."""
    pieces, start = [], 0
    while len(text) - start > _MAX_PIECE_CHARS:
        parts = text[start : start + _MAX_PIECE_CHARS].rsplit(None, 1)
        end = start + (len(parts[0]) if len(parts) == 2 else _MAX_PIECE_CHARS)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def pack_corpus(
    patterns: Sequence[str],
    config: CorpusConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    exclude: Sequence[Path] = (),
    progress: Progress = lambda done, total: None,
) -> Dataset:
    """The sequences ``[CLS] tokens [SEP]`` of a corpus, of ``max_length`` tokens; only the last may be shorter.

    Documents follow one another with ``[SEP]`` between them, and no token is dropped. The dataset is built once in
    ``$LIMBERT_CACHE`` (``~/.cache/limbert``), about five bytes per token, and found again by the tokenizer and the
    files' names, sizes and modification times.

    ``progress`` is called with megabytes read and in total. For ``patterns`` and ``exclude`` see `corpus_files`.

    Returns:
        Columns ``input_ids`` and ``word_starts`` (whether a token begins a word), both of ``max_length`` with padding
        at the end; ``length`` without padding; and ``row``, the sequence's number.

    Raises:
        StorageError: the cache cannot be written.
    """
    check_tokenizer(tokenizer)
    for token in ("mask", "cls", "sep"):
        if getattr(tokenizer, f"{token}_token_id") is None:
            name = type(tokenizer).__name__
            raise ConfigError(f"{token} token of {name} is not set; masked language modelling needs it")
    files = corpus_files(patterns, exclude=exclude)
    if not files:
        raise DataError(f"corpus {', '.join(patterns)}: all its files are development text; expected others too")
    identity = [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    identity += [config.documents, str(config.text_column), str(config.skip_bad_rows)]
    try:
        folder = default_cache_dir() / "corpora"
    except RuntimeError:
        raise StorageError("no folder for the tokens of a corpus; set LIMBERT_CACHE to one") from None
    features = Features(
        input_ids=List(Value("int32"), length=max_length),
        word_starts=List(Value("bool"), length=max_length),
        length=Value("int32"),
        row=Value("int64"),
    )

    def sequences() -> Iterator[dict[str, Any]]:
        parts = _tokenize_stream(files, config, tokenizer, progress=progress)
        return _pack_sequences(parts, tokenizer, max_length=max_length)

    try:
        with hidden_progress_bars():
            dataset = Dataset.from_generator(
                sequences,
                features=features,
                cache_dir=str(folder),
                fingerprint=tokenization_fingerprint(tokenizer, identity, None, max_length=max_length),
            )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, LimbertError):
            raise error.__cause__ from None
        raise StorageError(f"cannot write {folder}: {first_line(error.__cause__ or error)}") from error
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    return dataset.with_format("numpy")


def _pack_sequences(
    parts: Iterable[tuple[list[int], list[bool], bool]], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> Iterator[dict[str, Any]]:
    ids, starts, row, content = np.empty(0, np.int32), np.empty(0, bool), 0, max_length - 2
    for new_ids, new_starts, is_last in parts:
        ids, starts = np.append(ids, np.asarray(new_ids, np.int32)), np.append(starts, np.asarray(new_starts, bool))
        end = len(ids) if is_last else len(ids) // content * content
        for start in range(0, end, content):
            tokens = ids[start : min(start + content, end)]
            sequence = np.full(max_length, tokenizer.pad_token_id, dtype=np.int32)
            sequence[: len(tokens) + 2] = [tokenizer.cls_token_id, *tokens, tokenizer.sep_token_id]
            word_starts = np.ones(max_length, dtype=bool)  # the rest of a word that was cut counts as a word
            word_starts[2 : len(tokens) + 1] = starts[start + 1 : start + len(tokens)]
            yield {"input_ids": sequence, "word_starts": word_starts, "length": len(tokens) + 2, "row": row}
            row += 1
        ids, starts = ids[end:], starts[end:]


def _tokenize_stream(
    files: Sequence[Path], config: CorpusConfig, tokenizer: PreTrainedTokenizerBase, *, progress: Progress
) -> Iterator[tuple[list[int], list[bool], bool]]:
    """Token ids and word starts of all files, part by part, with a separator between documents; the last is empty."""
    total, done, document_ended, is_first = sum(path.stat().st_size for path in files), 0, False, True
    for path in files:
        file_start = done
        for pieces in _batches(stream_text(path, config)):
            texts = [piece for piece in pieces if piece is not None]
            options = {"add_special_tokens": False, "truncation": False, "padding": False, "verbose": False}
            encodings = iter(tokenizer(texts, **options).encodings or () if texts else ())
            ids, starts = list[int](), list[bool]()
            for piece in pieces:
                if piece is None:
                    document_ended = True
                elif (encoding := next(encodings)).ids:
                    if document_ended and not is_first:
                        ids.append(int(tokenizer.sep_token_id))
                        starts.append(True)
                    document_ended = is_first = False
                    words = encoding.word_ids
                    ids += encoding.ids
                    starts += [word is None or word != last for word, last in zip(words, [None, *words], strict=False)]
            yield ids, starts, False
            done += sum(len(text.encode()) + 1 for text in texts)
            progress(min(done, total) >> 20, total >> 20)
        done = file_start + path.stat().st_size
    if is_first:
        raise DataError(f"{', '.join(map(str, files[:3]))}: no text in the corpus; expected some")
    yield [], [], True


def _batches(pieces: Iterator[str | None]) -> Iterator[list[str | None]]:
    """Lists of pieces small enough to tokenise at once."""
    batch: list[str | None] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece or "")
        if len(batch) >= _MAX_BATCH_TEXTS or size >= _MAX_BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
