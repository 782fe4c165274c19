"""Text of any size as a stream of documents: from plain text or files with a column of it, never held as a whole."""

import codecs
import glob
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from limbert.core.config import CorpusConfig, DataConfig
from limbert.data.columns import choose_columns
from limbert.data.table import FORMATS, INVALID_UNICODE, Table, check_readable, open_table
from limbert.errors import ConfigError, DataError

_MAX_PIECE_CHARS = 1 << 16  # characters of a piece of text: a tokenizer takes about 170 bytes for each


def corpus_files(patterns: Iterable[str], *, exclude: Iterable[Path] = ()) -> tuple[Path, ...]:
    """The files that names point to, each once however named: a file, a folder (its files but hidden ones), or
    a glob; in order.

    Args:
        names: of files, folders and globs.
        apart_from: files that folders and globs are taken without: those that a model is only reported on.

    Raises:
        ConfigError: a name is one of the files that must stay apart.
        DataError: a name that nothing answers to.
    """
    apart = {path.resolve() for path in exclude}
    found: dict[Path, Path] = {}
    for name in patterns:
        if not name.strip():
            raise DataError(f"corpus is {name!r}; it must be a file, a folder or a glob")
        path = Path(name).expanduser()
        if path.is_dir():
            paths = sorted(
                part for part in path.rglob("*") if part.is_file() and not _is_hidden(part.relative_to(path))
            )
        elif path.exists():
            if path.resolve() in apart:
                raise ConfigError(f"corpus {name} is development text too; it must be one or the other")
            paths = [path]
        else:
            paths = sorted(Path(part) for part in glob.glob(str(path), recursive=True) if Path(part).is_file())
        if not paths:
            raise DataError(f"corpus {name}: no such file, and no folder or glob with files in it")
        for part in paths:
            if (whole := part.resolve()) not in apart:
                found.setdefault(whole, part)
    return tuple(found.values())


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def stream_text(path: Path, config: CorpusConfig) -> Iterator[str | None]:
    """The text of one file piece by piece; None ends a document.

    A row of a table is a document. In plain text a line is one, or everything up to a blank line, as
    ``config.documents`` says; lines are handed on one by one in either case. A text of more than 65,536 characters
    comes in pieces that end before white space or, where there is none, anywhere. An empty file holds nothing.

    Raises:
        DataError: a file or row that cannot be read (``FILE:LINE: what``), unless ``config.skip_bad_rows``.
    """
    if path.exists() and not path.stat().st_size:
        return  # one such file among thousands is no mistake
    yield from _stream_rows(path, config) if path.suffix.lower() in FORMATS else _stream_lines(path, config)
    yield None


def _stream_rows(path: Path, config: CorpusConfig) -> Iterator[str | None]:
    table, column = _open_text_column(path, config)
    for row in table.rows():
        text = row.cells[column] if row.problem is None else None
        if isinstance(text, str) and text.strip():
            yield from _split_pieces(text.strip())
            yield None
        elif not config.skip_bad_rows:
            problem = row.problem or f"no text in column {table.columns[column]!r}, expected some"
            raise DataError(f"{table.name}:{row.line_number}: {problem}")


def _stream_lines(path: Path, config: CorpusConfig) -> Iterator[str | None]:
    """Lines without the white space around them; of a long one no more is held than a piece."""
    rest, said, bad = "", False, False  # of this line: what was not handed on, whether some was, or could not be read
    for number, text, ends in _decode_line_chunks(path):
        if text is None and not config.skip_bad_rows:
            raise DataError(f"{path}:{number}: {INVALID_UNICODE}")
        bad = bad or text is None
        rest += text or ""
        *pieces, rest = _split_pieces(rest.rstrip() if ends else rest)
        for piece in [*pieces, rest] if ends else pieces:
            shown = piece if said else piece.lstrip()
            if shown:
                yield shown
                said = True
        if ends:
            if (said and config.documents == "line") or not (said or bad):
                yield None  # a line that is a document, or a blank one
            rest, said, bad = "", False, False


def _decode_line_chunks(path: Path) -> Iterator[tuple[int, str | None, bool]]:
    """Parts of lines with the line's number and whether it ends there; None for bytes that are not UTF-8."""
    with check_readable(path).open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        number, ends = 1, True
        decoder = codecs.getincrementaldecoder("utf-8")()  # keeps half a character for the next part
        for raw in chain(iter(lambda: file.readline(_MAX_PIECE_CHARS), b""), [b""]):
            if not raw and ends:
                break
            ends = raw.endswith(b"\n") or not raw
            try:
                text = decoder.decode(raw, final=ends)
            except UnicodeDecodeError:
                decoder.reset()
                text = None
            yield number, text, ends
            number += ends


def _split_pieces(text: str) -> list[str]:
    """A text in pieces of at most so many characters, each but the first with the white space before it."""
    pieces, start = [], 0
    while len(text) - start > _MAX_PIECE_CHARS:
        parts = text[start : start + _MAX_PIECE_CHARS].rsplit(None, 1)
        end = start + (len(parts[0]) if len(parts) == 2 else _MAX_PIECE_CHARS)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _open_text_column(path: Path, config: CorpusConfig) -> tuple[Table, int]:
    reading = DataConfig(text_column=config.text_column)
    table, columns = choose_columns(lambda header: open_table(path, header=header), reading, None, labelled=False)
    assert columns.text is not None
    return table, table.columns.index(columns.text)
