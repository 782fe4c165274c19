"""Whether two runs are the same one: their settings compared, and what the names in these stand for."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from limbert.core.config import CorpusConfig, DataConfig, TrainConfig
from limbert.data.augmented import Augmented
from limbert.data.load import TaskData
from limbert.data.mlm.corpus import corpus_files
from limbert.data.mlm.masking import MaskedRows
from limbert.data.readers import Examples
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError, DataError
from limbert.files import files_digest, rows_digest
from limbert.model.checkpoint import RECORD_NAME
from limbert.train.distributed import Processes

# Names of data and models in the settings, and what in "content" each stands for: equal content may lie elsewhere.
_STAND_FOR = {
    ("train", "model"): {"model_files"},
    ("data", "data"): {"training_rows", "development_rows"},
    ("data", "train"): {"training_rows"},
    ("data", "dev"): {"development_rows"},
    ("data", "augmented"): {"augmented_rows"},
    ("corpus", "corpus"): {"corpus_text"},
    ("corpus", "dev"): {"development_text"},
}


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs in the settings of two runs, for people; empty where they are the same run.

    Settings differ as ``name old -> new``, content as ``other training rows``. Where the content is known and equal its
    name does not count; where either is not known (a run of an older version, a model on the hub) only the name does.

    Args:
        old, new: as `workspace.settings_of` gives them.
    """
    before, after = old.get("content") or {}, new.get("content") or {}
    known = [name for name in after if before.get(name) is not None and after[name] is not None]
    equal = {name for name in known if before[name] == after[name]}
    skipped = {name for name, content in _STAND_FOR.items() if content <= equal}
    if old.get("recipe") == new.get("recipe"):
        skipped.add(("train", "recipe"))  # the name of the same values
    named = _changed(_without(old, skipped), _without(new, skipped))
    if _changed(_without(old, {*_STAND_FOR} | skipped), _without(new, {*_STAND_FOR} | skipped)):
        return named  # such as a seed, by which rows are chosen: then other content says nothing more
    return ", ".join([named] * bool(named) + [f"other {name.replace('_', ' ')}" for name in known if name not in equal])


def agree(processes: Processes, settings: dict[str, Any], tokens: dict[str, str]) -> None:
    """Make sure that all processes train the same run, together: else they wait for each other, or learn nonsense.

    Args:
        processes: those of the run.
        settings: of this one, as `workspace.settings_of` gives them.
        tokens: digests of what it made of the data.

    Raises:
        ConfigError: if one has other settings or data, naming them; in all processes.
    """
    mine = settings | {"content": (settings.get("content") or {}) | tokens}
    first, *others = processes.gather(mine)
    for rank, other in enumerate(others, start=1):
        changed = differences(first, other)
        if changed:
            raise ConfigError(
                f"process {rank} has other settings or data than process 0 ({changed}); "
                "start all processes of a run with the same command and the same data"
            )


def _without(settings: dict[str, Any], names: set[tuple[str, str]]) -> dict[str, Any]:
    return {
        part: {name: value for name, value in values.items() if (part, name) not in names}
        if isinstance(values, dict)
        else values
        for part, values in settings.items()
        if part != "content"
    }


def _changed(old: Any, new: Any, path: str = "") -> str:
    """The settings that differ, as ``name old -> new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [
            _changed(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
            for key in [*old, *(key for key in new if key not in old)]
            if old.get(key) != new.get(key)
        ]
        return ", ".join(part for part in parts if part)
    return f"{path} {json.dumps(old)} -> {json.dumps(new)}"


_WITHOUT_EFFECT = ("output", "checkpoint_every", "tensorboard")  # settings that do not change the result


def settings_of(
    config: TrainConfig,
    recipe: Mapping[str, Any],
    data_config: DataConfig | CorpusConfig,
    content: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Everything that decides a run's result, as JSON values: see `same_run.differences`.

    Args:
        config, recipe, data_config: as the run has them.
        content: digests of what they name; None where nobody looked.
    """
    train = {name: value for name, value in asdict(config).items() if name not in _WITHOUT_EFFECT}
    source = "data" if isinstance(data_config, DataConfig) else "corpus"
    values = {"train": train, "recipe": dict(recipe), source: asdict(data_config)}
    if content is not None:
        values["content"] = dict(content)
    parsed: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists, as when read back
    return parsed


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
