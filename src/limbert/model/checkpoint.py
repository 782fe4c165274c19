"""Read and write checkpoint folders: a stock Hugging Face folder, plus ``limbert.json`` where it is elastic."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from limbert.core.subnet import Subnet
from limbert.core.task_types import head_for_record
from limbert.errors import CheckpointError, ConfigError, LimbertError
from limbert.files import atomic_file, atomic_folder
from limbert.model.families import FAMILIES, unsupported_family_error

RECORD_FILENAME = "limbert.json"

TASK_HEADS = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "masked-lm": "AutoModelForMaskedLM",
    "multiple-choice": "AutoModelForMultipleChoice",
    "none": "AutoModel",
}


def load_network(
    path_or_hub_id: str | Path, *, head: str | None, **model_kwargs: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The stock network of a checkpoint, and what its ``limbert.json`` says (empty for a stock checkpoint).

    Without a ``head``, the one for the task in ``limbert.json``; a stock checkpoint then gets sequence classification.
    Weights are read as fp32 unless ``dtype`` says otherwise, and only from safetensors files.

    Raises:
        CheckpointError: if there is no such checkpoint, or it is incomplete or broken.
        ConfigError: for an unknown head.
        UnsupportedModelError: for a family that is not supported, before any weight is read.
    """
    name = str(path_or_hub_id)
    check_checkpoint_path(name)
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type not in FAMILIES:
            raise unsupported_family_error(config.model_type)
        record = read_record(name)
        network_class = _network_class(head or head_for_record(record), config)
        network = network_class.from_pretrained(
            name, **{"dtype": torch.float32, "use_safetensors": True} | model_kwargs
        )
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"cannot load {name}: {_first_line(error)}") from error
    except ValueError as error:
        if isinstance(error, LimbertError):
            raise
        raise CheckpointError(f"cannot load {name}: {_first_line(error)}") from error
    return network, record


def load_config_and_tokenizer(path_or_hub_id: str) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """What a checkpoint says of itself, without its weights.

    Raises:
        CheckpointError: if the config or the tokenizer cannot be read.
        UnsupportedModelError: for a family that is not supported.
    """
    check_checkpoint_path(path_or_hub_id)
    try:
        config = AutoConfig.from_pretrained(path_or_hub_id)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot load the config of {path_or_hub_id}: {_first_line(error)}") from error
    tokenizer = load_tokenizer(path_or_hub_id)
    if config.model_type not in FAMILIES:
        raise unsupported_family_error(config.model_type)
    return config, tokenizer


def load_tokenizer(path_or_hub_id: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Raises:
        CheckpointError: if there is none; Transformers makes up one that knows no words where its files are missing.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path_or_hub_id)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path_or_hub_id} has no tokenizer that can be read: {_first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise CheckpointError(
            f"{path_or_hub_id} has no tokenizer; copy its files (tokenizer.json, ...) into the folder"
        )
    return tokenizer


@contextmanager
def save_checkpoint(
    directory: str | Path, *, network: PreTrainedModel, tokenizer: Any, record: dict[str, Any]
) -> Iterator[Path]:
    """Write the network, its tokenizer and the record as one folder, whole or not at all.

    Yields:
        The folder before it takes its place, for more files.

    Raises:
        StorageError: if the disk is full or the folder cannot be written.
    """
    with atomic_folder(directory) as folder:
        network.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        write_json(folder / RECORD_FILENAME, record | {"versions": library_versions()})
        yield folder


def read_record(path_or_hub_id: str | Path) -> dict[str, Any]:
    """What ``limbert.json`` says; empty where there is none. Hub models are looked up through Transformers' cache.

    Raises:
        CheckpointError: if the file is not valid JSON.
    """
    path = find_file(path_or_hub_id, RECORD_FILENAME)
    if path is None:
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {_first_line(error)}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} holds {type(record).__name__}, not an object")
    return record


def update_record(directory: str | Path, update: Callable[[dict[str, Any]], None]) -> None:
    """Change ``limbert.json`` of a checkpoint in a local folder; the old one or the new one is there at any moment.

    Args:
        run: the folder.
        change: changes the record in place.

    Raises:
        CheckpointError: if the folder is no elastic checkpoint, or the file is not valid JSON.
        StorageError: if the file cannot be written; the old one stays.
    """
    record = read_record(directory) if Path(directory).is_dir() else {}
    if not record:
        raise CheckpointError(f"{directory} is no folder with a limbert.json that could be changed")
    update(record)
    with atomic_file(Path(directory) / RECORD_FILENAME) as file:
        file.write(to_json(record))


def find_file(path_or_hub_id: str | Path, name: str) -> Path | None:
    """A file of a checkpoint that need not be there: in the folder, or through Transformers' cache of the hub."""
    if Path(path_or_hub_id).is_dir():
        path = Path(path_or_hub_id) / name
        return path if path.exists() else None
    found = cached_file(
        str(path_or_hub_id),
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def to_json(values: Any) -> str:
    """Readable JSON, with a newline at the end."""
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def write_json(path: Path, values: Any) -> None:
    """Write readable JSON."""
    path.write_text(to_json(values), encoding="utf-8")


def library_versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {name: version(name) for name in ("limbert", "torch", "transformers")}


def check_checkpoint_path(path_or_hub_id: str | Path) -> None:
    """Raise CheckpointError where a local path holds no model; names that can only be the hub's pass."""
    name = str(path_or_hub_id)
    path = Path(name)
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists()
    if not looks_local:
        return
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint folder at {name}")
    if not (path / "config.json").exists():
        raise CheckpointError(f"{name} is not a model checkpoint: it has no config.json")


def _network_class(head: str, config: Any) -> Any:
    if head == "as-saved":
        names = getattr(config, "architectures", None) or []
        if len(names) != 1 or not hasattr(transformers, names[0]):
            raise CheckpointError(f"the checkpoint's config names no model class that Transformers has: {names}")
        return getattr(transformers, names[0])
    if head not in TASK_HEADS:
        raise ConfigError(f"unknown head {head!r}; allowed: {', '.join(TASK_HEADS)}, as-saved")
    return getattr(transformers, TASK_HEADS[head])


def _first_line(error: BaseException) -> str:
    """The first sentence of another library's message, which may run over many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


SEARCHED_SUBNETS_KEY = "subnets"  # in limbert.json
_NAME_PREFIX = "found-"


def searched_subnet_name(subnet: Subnet) -> str:
    """``found-3fa2c``: made of the sub-network itself, so that a name never changes its meaning."""
    text = json.dumps(subnet.to_dict(), sort_keys=True)
    return _NAME_PREFIX + hashlib.sha256(text.encode()).hexdigest()[:5]


def searched_subnets(record: Mapping[str, Any]) -> dict[str, Subnet]:
    """The found sub-networks of a checkpoint by name, in the order they were saved.

    Args:
        record: what ``limbert.json`` says.

    Raises:
        SubnetError: if an entry cannot be read.
    """
    return {name: Subnet.from_dict(values) for name, values in record.get(SEARCHED_SUBNETS_KEY, {}).items()}
