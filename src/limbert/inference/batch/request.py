"""What a batch prediction was asked, kept beside its answers, so that nothing else is ever mixed into them."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from limbert.core.config import Precision, require
from limbert.errors import ConfigError
from limbert.inference.batch.paths import SETTINGS
from limbert.inference.batch.shards import Input
from limbert.inference.batch.store import Store
from limbert.inference.policy import Policy

FORMAT = 1


@dataclass(frozen=True)
class Request:
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


def identity(request: Request, found: Input, *, checkpoint: str, max_length: int) -> dict[str, Any]:
    """All that decides the answers and how they are cut, as JSON values.

    Args:
        request: what was asked.
        found: of which texts.
        checkpoint: digest of the model's files.
        max_length: longest input in tokens.
    """
    values = {
        "format": FORMAT,
        "checkpoint": checkpoint,
        "policy": request.policy.to_dict(),
        "precision": request.precision,
        "max_length": max_length,
        "skip_bad_rows": request.skip_bad_rows,
        "text_column": found.columns.text,
        "pair_column": found.columns.pair,
        "kept": list(found.kept),
        "rows": found.rows,
        "shards": len(found.shards),
        "shard_rows": max((shard.rows for shard in found.shards), default=0),
        "cut": hashlib.blake2b(repr(found.shards).encode(), digest_size=8).hexdigest(),
        "sources": {source.path: [source.rows, source.bytes, source.modified] for source in found.sources},
    }
    parsed: dict[str, Any] = json.loads(json.dumps(values))
    return parsed


def begin(output: Store, asked: dict[str, Any]) -> set[str]:
    """Make the output folder for this request, or find that it was begun.

    Returns:
        The names of the files that are there.

    Raises:
        ConfigError: the folder holds something else, or answers to another request.
        StorageError: it cannot be read or written.
    """
    there = output.names()
    if SETTINGS not in there:
        if there:
            raise ConfigError(
                f"output {output.path} is not empty and was not begun by this command; choose another folder"
            )
        output.make()
        if output.create(SETTINGS, _text(asked)):
            return {SETTINGS}
        there = output.names()  # another driver was faster
    found = _begun(output)
    if asked["skip_bad_rows"] and found == asked | {"skip_bad_rows": False}:
        output.write(SETTINGS, _text(asked))  # what is finished has no bad rows
    elif found != asked:
        raise _other_settings(output, found, asked)
    return there


def confirm(output: Store, asked: dict[str, Any]) -> None:
    """See that the output folder is still this request's, a while after `begin` and before the first answer.

    In an object store drivers that begin in the same moment all do; the last one's settings stay, and it goes on alone.

    Raises:
        ConfigError: it is another's.
        StorageError: it cannot be read.
    """
    found = _begun(output)
    if found != asked:
        raise _other_settings(output, found, asked)


def _begun(output: Store) -> Any:
    try:
        return json.loads(output.read(SETTINGS))
    except ValueError as error:
        raise ConfigError(f"{output.path}/{SETTINGS} is broken ({error}); choose another folder") from None


def _other_settings(output: Store, found: Any, asked: dict[str, Any]) -> ConfigError:
    return ConfigError(
        f"output {output.path} was begun with other settings ({_changed(found, asked)}); "
        "finish it with its own command, or choose another folder"
    )


def _text(asked: dict[str, Any]) -> bytes:
    return json.dumps(asked, indent=1, ensure_ascii=False).encode()


def _changed(old: Any, new: dict[str, Any]) -> str:
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
