"""Whether two runs are the same one: their settings compared, and what the names in these stand for."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from limbert.core.config import CorpusConfig, DataConfig, TrainConfig
from limbert.data.augmented import AugmentedExamples
from limbert.data.load import TaskData
from limbert.data.mlm.corpus import corpus_files
from limbert.data.readers import Examples
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError, DataError
from limbert.files import files_fingerprint, json_fingerprint
from limbert.model.checkpoint import RECORD_FILENAME
from limbert.train.distributed import DistributedContext

# Names of data and models in the settings, and what in "content" each stands for: equal content may lie elsewhere.
_FINGERPRINTS_OF_SETTING = {
    ("train", "model"): {"model_files"},
    ("data", "data"): {"training_rows", "development_rows"},
    ("data", "train"): {"training_rows"},
    ("data", "dev"): {"development_rows"},
    ("data", "augmented"): {"augmented_rows"},
    ("corpus", "corpus"): {"corpus_text"},
    ("corpus", "dev"): {"development_text"},
}


def describe_differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs in the settings of two runs, for people; empty where they are the same run.

    Settings differ as ``name old -> new``, content as ``other training rows``. Where the content is known and equal its
    name does not count; where either is not known (a run of an older version, a model on the hub) only the name does.

    Args:
        old, new: as `workspace.settings_of` gives them.
    """
    before, after = old.get("content") or {}, new.get("content") or {}
    known = [name for name in after if before.get(name) is not None and after[name] is not None]
    equal = {name for name in known if before[name] == after[name]}
    skipped = {name for name, content in _FINGERPRINTS_OF_SETTING.items() if content <= equal}
    if old.get("recipe") == new.get("recipe"):
        skipped.add(("train", "recipe"))  # the name of the same values
    named = _describe_changes(_without(old, skipped), _without(new, skipped))
    if _describe_changes(
        _without(old, {*_FINGERPRINTS_OF_SETTING} | skipped), _without(new, {*_FINGERPRINTS_OF_SETTING} | skipped)
    ):
        return named  # such as a seed, by which rows are chosen: then other content says nothing more
    return ", ".join([named] * bool(named) + [f"other {name.replace('_', ' ')}" for name in known if name not in equal])


def check_same_settings(
    distributed: DistributedContext, settings: dict[str, Any], dataset_fingerprints: dict[str, str]
) -> None:
    """Make sure that all processes train the same run, together: else they wait for each other, or learn nonsense.

    Args:
        processes: those of the run.
        settings: of this one, as `workspace.settings_of` gives them.
        tokens: digests of what it made of the data.

    Raises:
        ConfigError: if one has other settings or data, naming them; in all processes.
    """
    mine = settings | {"content": (settings.get("content") or {}) | dataset_fingerprints}
    first, *others = distributed.all_gather_object(mine)
    for rank, other in enumerate(others, start=1):
        changed = describe_differences(first, other)
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


def _describe_changes(old: Any, new: Any, path: str = "") -> str:
    """The settings that differ, as ``name old -> new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [
            _describe_changes(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
            for key in [*old, *(key for key in new if key not in old)]
            if old.get(key) != new.get(key)
        ]
        return ", ".join(part for part in parts if part)
    return f"{path} {json.dumps(old)} -> {json.dumps(new)}"


_IGNORED_SETTINGS = ("output", "checkpoint_every", "tensorboard")  # settings that do not change the result


def run_settings(
    config: TrainConfig,
    recipe: Mapping[str, Any],
    data_config: DataConfig | CorpusConfig,
    fingerprints: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Everything that decides a run's result, as JSON values: see `same_run.differences`.

    Args:
        config, recipe, data_config: as the run has them.
        content: digests of what they name; None where nobody looked.
    """
    train = {name: value for name, value in asdict(config).items() if name not in _IGNORED_SETTINGS}
    source = "data" if isinstance(data_config, DataConfig) else "corpus"
    values = {"train": train, "recipe": dict(recipe), source: asdict(data_config)}
    if fingerprints is not None:
        values["content"] = dict(fingerprints)
    parsed: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists, as when read back
    return parsed


_BLOCK_SIZE, _MAX_BLOCKS = 1 << 16, 1024  # what is read of a corpus: 64 MB at most, unless it has more files than that

Fingerprints = dict[str, str | None]  # digests by what they are of; None where it is not known


def task_fingerprints(data: TaskData, model: str) -> Fingerprints:
    """The start model's files and the rows of a task; texts, labels and their order count, files and columns do not.

    Raises:
        DataError: if a file of the model cannot be read.
    """
    return {
        "model_files": _model_fingerprint(model),
        "training_rows": json_fingerprint([data.task.task_type, data.task.labels, _example_columns(data.train)]),
        "development_rows": json_fingerprint([[name, _example_columns(part)] for name, part in data.dev.items()]),
        "augmented_rows": None if data.augmented is None else _augmented_fingerprint(data.augmented),
    }


def corpus_fingerprints(corpus: CorpusConfig, model: str) -> Fingerprints:
    """The start model's files and the text of a corpus: all of it up to 64 MB, else its size and samples of it.

    Raises:
        DataError: if a file cannot be read, or there is none.
    """
    return {
        "model_files": _model_fingerprint(model),
        "corpus_text": _corpus_fingerprint(corpus.corpus),
        "development_text": _corpus_fingerprint(corpus.dev) if corpus.dev else None,
    }


def tokens_fingerprint(examples: TokenizedExamples) -> str:
    """Of token ids and labels, as the phases see them."""
    digest = hashlib.sha256()
    for name, array in examples.tokens.to_arrays().items():
        digest.update(f"{name} {array.shape} ".encode() + array.tobytes())
    if examples.labels is not None:
        digest.update(f"labels {tuple(examples.labels.shape)} ".encode() + examples.labels.numpy().tobytes())
    return digest.hexdigest()[:32]


def _model_fingerprint(model: str) -> str | None:
    """None for a name on the hub. What other verbs write into a run's record changes nothing of it as a start."""
    return files_fingerprint(model, exclude=(RECORD_FILENAME,), algorithm="sha256") or None


def _example_columns(examples: Examples) -> list[object]:
    return [examples.texts, examples.pairs, examples.labels, examples.word_spans, examples.groups]


def _augmented_fingerprint(augmented: AugmentedExamples) -> str:
    logits = None if augmented.logits is None else augmented.logits.tolist()
    return json_fingerprint([_example_columns(augmented.examples), augmented.source_ids, logits])


def _corpus_fingerprint(paths: tuple[str, ...]) -> str:
    """Of the text in files, in their order; neither their names nor their times of change count."""
    try:
        files = [(path, path.stat().st_size) for path in corpus_files(paths)]
        total = sum(size for _, size in files)
        digest = hashlib.sha256()
        for path, size in files:
            digest.update(f"{path.suffix.lower()} {size} ".encode())
            with path.open("rb") as opened:
                for start in _block_offsets(size, _BLOCK_SIZE, max_blocks=_MAX_BLOCKS * size // max(1, total)):
                    opened.seek(start)
                    digest.update(opened.read(_BLOCK_SIZE))
    except OSError as error:
        raise DataError(f"corpus {', '.join(paths)}: {error.filename}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:32]


def _block_offsets(size: int, block_size: int, *, max_blocks: int) -> Iterator[int]:
    """Where blocks begin: all of them end to end, or so many (at least one) evenly, the last at the end."""
    whole = -(-size // block_size)
    if whole <= max(1, max_blocks):
        yield from range(0, size, block_size)
    elif max_blocks <= 1:
        yield 0
    else:
        yield from (number * (size - block_size) // (max_blocks - 1) for number in range(max_blocks))
