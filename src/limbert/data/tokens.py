"""A ragged array of token ids and its cache on disk, found again by the content of the texts and the tokenizer.

The cache is only ever a shortcut: a folder that cannot be written or a broken file costs time, not the run.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

logger = logging.getLogger(__name__)

_FORMAT = "1"  # raise it when the meaning of the cached arrays changes


@dataclass(frozen=True)
class Tokens:
    """Token ids of all examples end to end; example i is ``ids[offsets[i] : offsets[i + 1]]``."""

    ids: np.ndarray  # (all tokens,) int32
    types: np.ndarray | None  # (all tokens,) int32, which text of a pair; None where the tokenizer has no such thing
    offsets: np.ndarray  # (examples + 1,) int64

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per example, ``(examples,)``."""
        return np.diff(self.offsets)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, as they are stored."""
        stored = {"ids": self.ids, "offsets": self.offsets}
        return stored if self.types is None else stored | {"types": self.types}


def cache_folder() -> Path:
    """``$LIMBERT_CACHE``, or ``~/.cache/limbert``.

    Raises:
        RuntimeError: there is no home folder either.
    """
    return Path(os.environ.get("LIMBERT_CACHE") or Path.home() / ".cache" / "limbert")


def content_key(tokenizer: Any, texts: Iterable[str], pairs: Iterable[str] | None, *, max_length: int) -> str:
    """A hash over everything that decides the token ids: the tokenizer's whole state, the cut, and the texts.

    The backend's own truncation and padding are left out: the tokenizer sets them anew on every call.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("truncation", None)
    state.pop("padding", None)
    identity = [
        _FORMAT,
        type(tokenizer).__name__,
        state,
        list(tokenizer.model_input_names),
        tokenizer.truncation_side,
        max_length,
        pairs is not None,
    ]
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=20)
    for part in (texts, pairs or ()):
        for text in part:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little"))  # a letter moved to the next text is another content
            digest.update(encoded)
    return digest.hexdigest()


def read_tokens(path: Path, *, examples: int) -> Tokens | None:
    """The cached tokens, or None where there are none or the file is broken."""
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            digest = (file.metadata() or {}).get("digest")
        if digest != _digest(arrays):
            raise ValueError("its content does not fit its digest")
        tokens = Tokens(arrays["ids"], arrays.get("types"), arrays["offsets"])
        if len(tokens.offsets) != examples + 1 or tokens.offsets[-1] != len(tokens.ids):
            raise ValueError("it holds other examples")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        logger.warning("token cache %s is broken and built anew: %s", path, error)
        return None
    return tokens


def write_tokens(path: Path, tokens: Tokens) -> None:
    """Cache the tokens: into a temporary file that is renamed, so that no reader ever sees half of it."""
    arrays = tokens.arrays()
    content = safetensors.numpy.save(arrays, metadata={"digest": _digest(arrays)})
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tokens-")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError as error:
        logger.warning("token cache %s cannot be written, going on without it: %s", path, error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
