"""Text of any size as a stream of documents: from plain text or files with a column of it, never held as a whole."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from limbert.core.config import DataConfig
from limbert.core.corpus_config import CorpusConfig, DocumentRule
from limbert.data.columns import choose_columns
from limbert.data.files import FORMATS, open_table
from limbert.data.table import Table, lines_table, readable
from limbert.errors import ConfigError, DataError


def corpus_files(names: Iterable[str], *, apart_from: Iterable[Path] = ()) -> tuple[Path, ...]:
    """The files that names point to, each once however named: a file, a folder (its files but hidden ones), or
    a glob; in order.

    Args:
        names: of files, folders and globs.
        apart_from: files that folders and globs are taken without: those that a model is only reported on.

    Raises:
        ConfigError: a name is one of the files that must stay apart.
        DataError: a name that nothing answers to.
    """
    apart = {path.resolve() for path in apart_from}
    found: dict[Path, Path] = {}
    for name in names:
        if not name.strip():
            raise DataError(f"corpus is {name!r}; it must be a file, a folder or a glob")
        path = Path(name).expanduser()
        if path.is_dir():
            paths = sorted(part for part in path.rglob("*") if part.is_file() and not _hidden(part.relative_to(path)))
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


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def stream_text(path: Path, config: CorpusConfig) -> Iterator[str | None]:
    """The text of one file piece by piece; None ends a document.

    A row of a table is a document. In plain text a line is one, or everything up to a blank line, as
    ``config.documents`` says; lines are handed on one by one in either case.

    Raises:
        DataError: a file or row that cannot be read (``FILE:LINE: what``), unless ``config.skip_bad_rows``.
    """
    if path.suffix.lower() in FORMATS:
        table, column = _text_column(path, config)
        rule: DocumentRule = "line"
    else:
        table, column, rule = lines_table(readable(path)), 0, config.documents
    for row in table.rows():
        text = row.cells[column] if row.problem is None else None
        if isinstance(text, str) and text.strip():
            yield text.strip()
            if rule == "line":
                yield None
        elif isinstance(text, str) and path.suffix.lower() not in FORMATS:
            yield None  # a blank line
        elif not config.skip_bad_rows:
            problem = row.problem or f"no text in column {table.columns[column]!r}, expected some"
            raise DataError(f"{table.name}:{row.line}: {problem}")
    yield None


def _text_column(path: Path, config: CorpusConfig) -> tuple[Table, int]:
    reading = DataConfig(text_column=config.text_column)
    table, columns = choose_columns(lambda header: open_table(path, header=header), reading, None, labelled=False)
    assert columns.text is not None
    return table, table.columns.index(columns.text)
