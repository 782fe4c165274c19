"""What the names in a run's settings stand for, as digests: a model's files, a task's rows, a corpus's text.

Equal content is the same run wherever it lies; another content under the same name is another run.
"""

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path

from limbert.core.corpus_config import CorpusConfig
from limbert.data.augmented import Augmented
from limbert.data.tokenize import TokenizedExamples
from limbert.data.mlm.corpus import corpus_files
from limbert.data.readers import Examples
from limbert.data.load import TaskData
from limbert.data.masked_rows import MaskedRows
from limbert.errors import DataError
from limbert.model.checkpoint import RECORD_NAME

_BLOCK, _BLOCKS = 1 << 16, 1024  # what is read of a corpus: 64 MB at most, unless it has more files than that

Content = dict[str, str | None]  # digests by what they are of; None where it is not known


def task_content(data: TaskData, model: str) -> Content:
    """The start model's files and the rows of a task; texts, labels and their order count, files and columns do not.

    Raises:
        DataError: if a file of the model cannot be read.
    """
    return {
        "model_files": _model_files(model),
        "training_rows": rows_digest([data.task.kind, data.task.labels, _rows(data.train)]),
        "development_rows": rows_digest([[name, _rows(part)] for name, part in data.dev.items()]),
        "augmented_rows": None if data.augmented is None else _copies_digest(data.augmented),
    }


def corpus_content(corpus: CorpusConfig, model: str) -> Content:
    """The start model's files and the text of a corpus: all of it up to 64 MB, else its size and samples of it.

    Raises:
        DataError: if a file cannot be read, or there is none.
    """
    return {
        "model_files": _model_files(model),
        "corpus_text": _text_digest(corpus.corpus),
        "development_text": _text_digest(corpus.dev) if corpus.dev else None,
    }


def tokens_digest(examples: TokenizedExamples) -> str:
    """Of token ids and labels, as the phases see them."""
    digest = hashlib.sha256()
    for name, array in examples.tokens.arrays().items():
        digest.update(f"{name} {array.shape} ".encode() + array.tobytes())
    if examples.labels is not None:
        digest.update(f"labels {tuple(examples.labels.shape)} ".encode() + examples.labels.numpy().tobytes())
    return digest.hexdigest()[:32]


def sequences_digest(rows: MaskedRows) -> str:
    """Of which sequences of a corpus these are, and of samples of its tokens."""
    ids = rows.packed.stream.ids
    digest = hashlib.sha256(f"{rows.first} {rows.count} {rows.packed.length} {len(ids)}".encode())
    for start in _starts(len(ids), _BLOCK // 4, blocks=_BLOCKS):
        digest.update(ids[start : start + _BLOCK // 4].tobytes())
    return digest.hexdigest()[:32]


def rows_digest(rows: object) -> str:
    """Of values that JSON can hold; of others, what they are printed as."""
    return hashlib.blake2b(json.dumps(rows, default=str).encode(), digest_size=16).hexdigest()


def files_digest(path: str, *, without: Collection[str] = (), algorithm: str = "blake2b") -> str:
    """Of a file, or of the weights, configs and tokenizer in a folder; empty for what is not on this disk.

    Args:
        path: of the file or the folder.
        without: names of files that do not count.
        algorithm: for the files themselves; sha256 is the quickest where the processor has instructions for it.

    Raises:
        DataError: if a file cannot be read.
    """
    place = Path(path)
    files = [place] if place.is_file() else sorted([*place.glob("*.safetensors"), *place.glob("*.json")])
    counted = [file for file in files if file.name not in without]
    digest = hashlib.blake2b(digest_size=16)
    try:
        for file in counted:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, algorithm).digest())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest() if counted else ""


def _model_files(model: str) -> str | None:
    """None for a name on the hub. What other verbs write into a run's record changes nothing of it as a start."""
    return files_digest(model, without=(RECORD_NAME,), algorithm="sha256") or None


def _rows(examples: Examples) -> list[object]:
    return [examples.texts, examples.pairs, examples.labels, examples.words, examples.groups]


def _copies_digest(copies: Augmented) -> str:
    logits = None if copies.logits is None else copies.logits.tolist()
    return rows_digest([_rows(copies.examples), copies.origins, logits])


def _text_digest(names: tuple[str, ...]) -> str:
    """Of the text in files, in their order; neither their names nor their times of change count."""
    try:
        files = [(path, path.stat().st_size) for path in corpus_files(names)]
        total = sum(size for _, size in files)
        digest = hashlib.sha256()
        for path, size in files:
            digest.update(f"{path.suffix.lower()} {size} ".encode())
            with path.open("rb") as opened:
                for start in _starts(size, _BLOCK, blocks=_BLOCKS * size // max(1, total)):
                    opened.seek(start)
                    digest.update(opened.read(_BLOCK))
    except OSError as error:
        raise DataError(f"corpus {', '.join(names)}: {error.filename}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:32]


def _starts(size: int, block: int, *, blocks: int) -> Iterator[int]:
    """Where blocks begin: all of them end to end, or so many (at least one) evenly, the last at the end."""
    whole = -(-size // block)
    if whole <= max(1, blocks):
        yield from range(0, size, block)
    elif blocks <= 1:
        yield 0
    else:
        yield from (number * (size - block) // (blocks - 1) for number in range(blocks))
