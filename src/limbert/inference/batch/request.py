"""What a batch prediction was asked, kept beside its answers, so that nothing else is ever mixed into them."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from limbert.core.config import Precision, require
from limbert.errors import ConfigError
from limbert.inference.batch.paths import SETTINGS_NAME
from limbert.inference.batch.shards import ShardedInput
from limbert.inference.batch.store import StoragePath
from limbert.inference.policy import Policy

FORMAT_VERSION = 1


@dataclass(frozen=True)
class BatchPredictionConfig:
    """How texts are answered.

    Attributes:
        policy: the sub-network that answers, or how it is chosen for each text.
        precision: ``"bf16"`` runs under autocast.
        batch_size: texts a batch; the answers do not depend on it.
        skip_bad_rows: give rows without a text an empty answer instead of stopping at the first.
    """

    policy: Policy
    precision: Precision = "fp32"
    batch_size: int = 64
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        require(self.precision in ("fp32", "bf16"), "precision", self.precision, "fp32 or bf16")


def job_settings(
    config: BatchPredictionConfig, inputs: ShardedInput, *, checkpoint_fingerprint: str, max_length: int
) -> dict[str, Any]:
    """All that decides the answers and how they are cut, as JSON values.

    Args:
        request: what was asked.
        found: of which texts.
        checkpoint: digest of the model's files.
        max_length: longest input in tokens.
    """
    values = {
        "format": FORMAT_VERSION,
        "checkpoint": checkpoint_fingerprint,
        "policy": config.policy.to_dict(),
        "precision": config.precision,
        "max_length": max_length,
        "skip_bad_rows": config.skip_bad_rows,
        "text_column": inputs.columns.text,
        "pair_column": inputs.columns.pair,
        "kept": list(inputs.kept_columns),
        "rows": inputs.rows,
        "shards": len(inputs.shards),
        "shard_rows": max((shard.rows for shard in inputs.shards), default=0),
        "cut": hashlib.blake2b(repr(inputs.shards).encode(), digest_size=8).hexdigest(),
        "sources": {source.path: [source.rows, source.bytes, source.modified] for source in inputs.files},
    }
    parsed: dict[str, Any] = json.loads(json.dumps(values))
    return parsed


def open_output(output: StoragePath, settings: dict[str, Any]) -> set[str]:
    """Make the output folder for this request, or find that it was begun.

    Returns:
        The names of the files that are there.

    Raises:
        ConfigError: the folder holds something else, or answers to another request.
        StorageError: it cannot be read or written.
    """
    there = output.file_names()
    if SETTINGS_NAME not in there:
        if there:
            raise ConfigError(
                f"output {output.path} is not empty and was not begun by this command; choose another folder"
            )
        output.mkdir()
        if output.write_new(SETTINGS_NAME, _to_json(settings)):
            return {SETTINGS_NAME}
        there = output.file_names()  # another driver was faster
    found = _read_settings(output)
    if settings["skip_bad_rows"] and found == settings | {"skip_bad_rows": False}:
        output.write(SETTINGS_NAME, _to_json(settings))  # what is finished has no bad rows
    elif found != settings:
        raise _settings_mismatch(output, found, settings)
    return there


def verify_output(output: StoragePath, settings: dict[str, Any]) -> None:
    """See that the output folder is still this request's, a while after `begin` and before the first answer.

    In an object store drivers that begin in the same moment all do; the last one's settings stay, and it goes on alone.

    Raises:
        ConfigError: it is another's.
        StorageError: it cannot be read.
    """
    found = _read_settings(output)
    if found != settings:
        raise _settings_mismatch(output, found, settings)


def _read_settings(output: StoragePath) -> Any:
    try:
        return json.loads(output.read(SETTINGS_NAME))
    except ValueError as error:
        raise ConfigError(f"{output.path}/{SETTINGS_NAME} is broken ({error}); choose another folder") from None


def _settings_mismatch(output: StoragePath, found: Any, settings: dict[str, Any]) -> ConfigError:
    return ConfigError(
        f"output {output.path} was begun with other settings ({_describe_changes(found, settings)}); "
        "finish it with its own command, or choose another folder"
    )


def _to_json(settings: dict[str, Any]) -> bytes:
    return json.dumps(settings, indent=1, ensure_ascii=False).encode()


def _describe_changes(old: Any, new: dict[str, Any]) -> str:
    """The settings that differ, as ``name old -> new``; of the input's files only their names."""
    if not isinstance(old, dict):
        return f"{type(old).__name__} instead of an object"
    parts = []
    for key in dict.fromkeys([*old, *new]):
        before, now = old.get(key), new.get(key)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
            if key == "sources":
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                parts.append(f"input {names[0]}{more}")
                continue
            before, now = ({name: value.get(name) for name in names} for value in (before, now))
        parts.append(f"{key} {json.dumps(before)} -> {json.dumps(now)}")
    return ", ".join(parts)
