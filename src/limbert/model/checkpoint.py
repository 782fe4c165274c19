"""Read and write checkpoint folders: a stock Hugging Face folder, plus ``limbert.json`` if it is elastic."""

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from limbert.core.subnet import Subnet
from limbert.core.task_types import head_for_record
from limbert.errors import CheckpointError, ConfigError, LimbertError, first_line
from limbert.files import atomic_file
from limbert.model.families import FAMILIES, unsupported_family_error

RECORD_FILENAME = "limbert.json"

TASK_HEADS = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "masked-lm": "AutoModelForMaskedLM",
    "none": "AutoModel",
}


class LoadedNetwork(NamedTuple):
    """A stock network read from a checkpoint.

    Attributes:
        network: with its weights.
        record: content of ``limbert.json``; empty for a stock checkpoint.
        new_parameters: names of the head's parameters that were initialised at random.
    """

    network: PreTrainedModel
    record: dict[str, Any]
    new_parameters: tuple[str, ...]


def load_network(
    path_or_hub_id: str | Path, *, head: str | None, new_head: bool = False, **model_kwargs: Any
) -> LoadedNetwork:
    """Load the stock network of a checkpoint.

    Weights are read from safetensors files only, as fp32 unless ``dtype`` says otherwise.

    Args:
        path_or_hub_id: a local folder, or a model name on the Hugging Face Hub.
        head: key of `TASK_HEADS`, or ``"as-saved"``; default: the head for the task in ``limbert.json``, else sequence
            classification.
        new_head: whether the task head (and the pooler before it) may be initialised at random where the checkpoint
            has no weights of that name and shape. All other weights must be there.
        model_kwargs: passed on to Transformers.

    Raises:
        CheckpointError: if there is no such checkpoint, or it is broken, or weights are missing or have another shape.
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
        defaults = {"dtype": torch.float32, "use_safetensors": True, "ignore_mismatched_sizes": True}
        network, loading_info = network_class.from_pretrained(name, **defaults | model_kwargs, output_loading_info=True)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, LimbertError):
            raise
        raise CheckpointError(f"cannot load {name}: {_load_error_reason(name, error)}") from error
    new_parameters = _check_weights(name, network, loading_info, new_head=new_head)
    return LoadedNetwork(network, record, new_parameters)


def _check_weights(
    name: str, network: PreTrainedModel, loading_info: Mapping[str, Any], *, new_head: bool
) -> tuple[str, ...]:
    """Refuse a network with weights that the checkpoint does not have; return the names of a new head's parameters."""
    missing = {str(key): "missing" for key in sorted(loading_info["missing_keys"])}
    for key, saved, expected in sorted(loading_info["mismatched_keys"]):
        missing[key] = f"{tuple(saved)} instead of {tuple(expected)}"
    base = network.base_model
    if network is base and missing and all(key.startswith("pooler.") for key in missing):
        network.register_module(
            "pooler", None
        )  # an encoder without a head does not need the pooler: better none than a random one
        return ()
    encoder = {id(parameter) for key, parameter in base.named_parameters() if not key.startswith("pooler.")}
    parameters = dict(network.named_parameters(remove_duplicate=False))
    in_head = [key for key in missing if key in parameters and id(parameters[key]) not in encoder]
    in_encoder = [key for key in missing if key not in in_head]
    if in_encoder or (in_head and not new_head):
        keys = in_encoder or in_head
        shown = ", ".join(f"{key} ({missing[key]})" for key in keys[:3]) + (", ..." if len(keys) > 3 else "")
        raise CheckpointError(
            f"cannot load {name}: {len(keys)} weights of {type(network).__name__} are missing or have another shape: "
            f"{shown}; {_missing_weights_hint(network, loading_info, is_head=not in_encoder)}"
        )
    return tuple(in_head)


def _missing_weights_hint(network: PreTrainedModel, loading_info: Mapping[str, Any], *, is_head: bool) -> str:
    if is_head:
        return "give num_labels= or new_head=True to train a new head, or head='none' to load the encoder alone"
    if getattr(network.config, "limbert", None):
        return "it is an exported sub-network; use the checkpoint it was exported from"
    unexpected = sorted(map(str, loading_info["unexpected_keys"]))
    if unexpected:
        return f"the checkpoint has other names, such as {unexpected[0]}; rename them, or check config.json"
    return "check that config.json belongs to these weights"


def _load_error_reason(name: str, error: Exception) -> str:
    for path in Path(name).glob("*") if Path(name).is_dir() else ():
        try:
            path.open("rb").close()
        except PermissionError:
            return f"no permission to read {path}"
        except OSError:
            continue
    return first_line(error)[:300]


def _network_class(head: str, config: Any) -> Any:
    if head == "as-saved":
        names = getattr(config, "architectures", None) or []
        if len(names) != 1 or not hasattr(transformers, names[0]):
            raise CheckpointError(f"architectures in config.json is {names}; it must name one class of Transformers")
        return getattr(transformers, names[0])
    if head not in TASK_HEADS:
        raise ConfigError(f"unknown head {head!r}; allowed: {', '.join(TASK_HEADS)}, as-saved")
    return getattr(transformers, TASK_HEADS[head])


def load_config_and_tokenizer(path_or_hub_id: str) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Load the config and the tokenizer of a checkpoint without its weights.

    Raises:
        CheckpointError: if the config or the tokenizer cannot be read, or the model has no embedding for some tokens.
        UnsupportedModelError: for a family that is not supported.
    """
    check_checkpoint_path(path_or_hub_id)
    try:
        config = AutoConfig.from_pretrained(path_or_hub_id)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot load the config of {path_or_hub_id}: {first_line(error)}") from error
    tokenizer = load_tokenizer(path_or_hub_id)
    if config.model_type not in FAMILIES:
        raise unsupported_family_error(config.model_type)
    if (highest := max(tokenizer.get_vocab().values())) >= config.vocab_size:
        raise CheckpointError(
            f"the tokenizer of {path_or_hub_id} has ids up to {highest}, its model embeds those below "
            f"{config.vocab_size}; save the model after resize_token_embeddings, or the tokenizer without added tokens"
        )
    return config, tokenizer


def load_tokenizer(path_or_hub_id: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Raises:
        CheckpointError: if there is none. (Transformers returns one with an empty vocabulary if its files are missing.)
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path_or_hub_id)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot load the tokenizer of {path_or_hub_id}: {first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise CheckpointError(
            f"{path_or_hub_id} has no tokenizer; copy its files (tokenizer.json, ...) into the folder"
        )
    return tokenizer


def read_record(path_or_hub_id: str | Path) -> dict[str, Any]:
    """Content of ``limbert.json``; empty if there is none. Models on the Hub are read through Transformers' cache.

    Raises:
        CheckpointError: if the file is not valid JSON.
    """
    path = find_file(path_or_hub_id, RECORD_FILENAME)
    if path is None:
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} is a JSON {type(record).__name__}; it must be an object")
    for name in ("task", "settings", "space", "operating_points", SEARCHED_SUBNETS_KEY):
        if not isinstance(record.get(name), dict | None):
            raise CheckpointError(f"{path}: {name} is {str(record[name])[:100]!r}; it must be an object")
    return record


def update_record(directory: str | Path, update: Callable[[dict[str, Any]], None]) -> None:
    """Change ``limbert.json`` of a local checkpoint atomically.

    Args:
        directory: the checkpoint folder.
        update: changes the record in place.

    Raises:
        CheckpointError: if the folder is not an elastic checkpoint, or the file is not valid JSON.
        StorageError: if the file cannot be written; the old one is unchanged.
    """
    record = read_record(directory) if Path(directory).is_dir() else {}
    if not record:
        raise CheckpointError(f"{directory} is not a local elastic checkpoint: it has no {RECORD_FILENAME}")
    update(record)
    with atomic_file(Path(directory) / RECORD_FILENAME) as file:
        file.write(to_json(record))


def find_file(path_or_hub_id: str | Path, name: str) -> Path | None:
    """An optional file of a checkpoint, in the folder or in Transformers' cache of the Hub; None if there is none."""
    if Path(path_or_hub_id).is_dir():
        path = Path(path_or_hub_id) / name
        return path if path.exists() else None
    cached = cached_file(
        str(path_or_hub_id),
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if cached is None else Path(cached)


def check_checkpoint_path(path_or_hub_id: str | Path) -> None:
    """Raise CheckpointError if a local path is not a model checkpoint; names that can only be on the Hub pass."""
    name = str(path_or_hub_id)
    path = Path(name)
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists()
    looks_local |= path.parent != Path() and path.parent.is_dir()  # runs/nope, where there is a folder runs
    if not looks_local:
        return
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint folder at {name}")
    if not (path / "config.json").exists():
        raise CheckpointError(f"{name} is not a model checkpoint: it has no config.json")


def to_json(values: Any) -> str:
    """Indented JSON with a newline at the end."""
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def write_json(path: Path, values: Any) -> None:
    """Write indented JSON."""
    path.write_text(to_json(values), encoding="utf-8")


def library_versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on."""
    return {name: version(name) for name in ("limbert", "torch", "transformers")}


SEARCHED_SUBNETS_KEY = "subnets"  # in limbert.json


def searched_subnet_name(subnet: Subnet) -> str:
    """Name of a searched sub-network, such as ``found-3fa2c``: a digest, so equal sub-networks have equal names."""
    text = json.dumps(subnet.to_dict(), sort_keys=True)
    return "found-" + hashlib.sha256(text.encode()).hexdigest()[:5]
