"""Stream the documents of a text corpus from plain text or a column of tables, without holding a file in memory."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from limbert.core.config import CorpusConfig, DataConfig
from limbert.data.columns import choose_columns
from limbert.data.table import FORMATS, check_readable, file_format, open_table
from limbert.data.text_rows import INVALID_UNICODE, decode_lines
from limbert.errors import ConfigError, DataError

_MAX_PIECE_CHARS = 1 << 16  # a tokenizer takes about 170 bytes of memory per character


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
    yield from _stream_rows(path, config) if file_format(path) in FORMATS else _stream_lines(path, config)
    yield None


def _stream_rows(path: Path, config: CorpusConfig) -> Iterator[str | None]:
    table, columns = choose_columns(open_table(path), DataConfig(text_column=config.text_column), labelled=False)
    for row in table.rows():
        text = row.cells.get(str(columns.text))
        if isinstance(text, str) and text.strip():
            yield from _split_pieces(text.strip())
            yield None
        elif not config.skip_bad_rows:
            problem = row.problem or f"no text in column {columns.text!r}, expected some"
            raise DataError(f"{table.name}:{row.line_number}: {problem}")


def _stream_lines(path: Path, config: CorpusConfig) -> Iterator[str | None]:
    """Lines without surrounding white space; of a long line only one piece is in memory."""
    rest, has_text, is_bad = "", False, False  # of the current line
    for number, text, ends in decode_lines(check_readable(path), max_chars=_MAX_PIECE_CHARS):
        if text is None and not config.skip_bad_rows:
            raise DataError(f"{path}:{number}: {INVALID_UNICODE}")
        is_bad = is_bad or text is None
        rest += text or ""
        *pieces, rest = _split_pieces(rest.rstrip() if ends else rest)
        for piece in [*pieces, rest] if ends else pieces:
            stripped = piece if has_text else piece.lstrip()
            if stripped:
                yield stripped
                has_text = True
        if ends:
            is_blank = not (has_text or is_bad)
            if is_blank or (has_text and config.documents == "line"):
                yield None
            rest, has_text, is_bad = "", False, False
    if rest := rest.rstrip() if has_text else rest.strip():
        yield rest


def _split_pieces(text: str) -> list[str]:
    """Pieces of limited length, each but the first beginning with the white space before it."""
    pieces, start = [], 0
    while len(text) - start > _MAX_PIECE_CHARS:
        parts = text[start : start + _MAX_PIECE_CHARS].rsplit(None, 1)
        end = start + (len(parts[0]) if len(parts) == 2 else _MAX_PIECE_CHARS)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]
