"""From examples to batches: tokenised once, grouped by length, each padded to its own longest example only."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from limbert.core.task_types import IGNORE_INDEX
from limbert.data.readers import Examples
from limbert.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_CACHE_VERSION = "1"  # raise it when the meaning of the cached arrays changes


@dataclass(frozen=True)
class RaggedTokens:
    """Token ids of all examples end to end; example i is ``ids[offsets[i] : offsets[i + 1]]``."""

    ids: np.ndarray  # (all tokens,) int32
    type_ids: np.ndarray | None  # (all tokens,) int32, which text of a pair; None where the tokenizer has no such thing
    offsets: np.ndarray  # (examples + 1,) int64

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per example, ``(examples,)``."""
        return np.diff(self.offsets)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, as they are stored."""
        stored = {"ids": self.ids, "offsets": self.offsets}
        return stored if self.type_ids is None else stored | {"types": self.type_ids}


def default_cache_dir() -> Path:
    """``$LIMBERT_CACHE``, or ``~/.cache/limbert``.

    Raises:
        RuntimeError: there is no home folder either.
    """
    return Path(os.environ.get("LIMBERT_CACHE") or Path.home() / ".cache" / "limbert")


def tokenization_fingerprint(
    tokenizer: Any, texts: Iterable[str], pairs: Iterable[str] | None, *, max_length: int
) -> str:
    """A hash over everything that decides the token ids: the tokenizer's whole state, the cut, and the texts.

    The backend's own truncation and padding are left out: the tokenizer sets them anew on every call.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("truncation", None)
    state.pop("padding", None)
    identity = [
        _CACHE_VERSION,
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


def read_tokens(path: Path, *, num_examples: int) -> RaggedTokens | None:
    """The cached tokens, or None where there are none or the file is broken."""
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            digest = (file.metadata() or {}).get("digest")
        if digest != _digest(arrays):
            raise ValueError("its content does not fit its digest")
        tokens = RaggedTokens(arrays["ids"], arrays.get("types"), arrays["offsets"])
        if len(tokens.offsets) != num_examples + 1 or tokens.offsets[-1] != len(tokens.ids):
            raise ValueError("it holds other examples")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        logger.warning("token cache %s is broken and built anew: %s", path, error)
        return None
    return tokens


def write_tokens(path: Path, tokens: RaggedTokens) -> None:
    """Cache the tokens: into a temporary file that is renamed, so that no reader ever sees half of it."""
    arrays = tokens.to_arrays()
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


_CHUNK = 2048  # examples given to the tokenizer at a time
_POOL_BATCHES = 50  # batches of similar length are cut from a pool of this many


@dataclass(frozen=True)
class TokenAlignment:
    """What rows of tokens are taken from, for tasks whose answers stand at tokens: answers are judged by the texts."""

    examples: Examples
    example_index: np.ndarray  # (rows,), the example of each row: a long one may have several
    char_starts: np.ndarray  # (all tokens,) int32, first character of what a token answers for; -1: for nothing
    char_ends: np.ndarray  # (all tokens,) int32, the character after its last


@dataclass(frozen=True)
class TokenizedExamples:
    """Tokenised examples of any lengths, with their labels if they are known.

    Labels are ``(examples,)``, long class ids or float32 scores; multi-label ``(examples, classes)``, float32 0 or 1,
    or a teacher's probabilities, which a classification may have too; question answering ``(examples, 2)``, long, the
    answer's first and last token; with ``labels_at_tokens`` ``(all tokens,)``, long class ids.
    """

    tokens: RaggedTokens
    labels: Tensor | None
    pad_token_id: int
    pad_token_type_id: int
    has_token_labels: bool = False
    alignment: TokenAlignment | None = None  # where answers stand at tokens

    def __len__(self) -> int:
        return len(self.tokens.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per example, ``(examples,)``."""
        return self.tokens.lengths

    def select(self, indices: Sequence[int] | np.ndarray) -> "TokenizedExamples":
        """Some of the examples, in the order given; not for answers at tokens, which belong to whole texts."""
        assert self.alignment is None
        chosen = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        places = np.repeat(self.tokens.offsets[chosen] - offsets[:-1], lengths) + np.arange(offsets[-1])
        types = None if self.tokens.type_ids is None else self.tokens.type_ids[places]
        labels = None if self.labels is None else self.labels[torch.from_numpy(chosen)]
        return TokenizedExamples(
            RaggedTokens(self.tokens.ids[places], types, offsets),
            labels,
            pad_token_id=self.pad_token_id,
            pad_token_type_id=self.pad_token_type_id,
        )

    def concatenate(self, other: "TokenizedExamples") -> "TokenizedExamples":
        """These examples, then others of the same tokenizer with labels of the same form."""
        assert self.alignment is None
        mine, theirs = self.tokens, other.tokens
        types = None
        if mine.type_ids is not None and theirs.type_ids is not None:
            types = np.concatenate([mine.type_ids, theirs.type_ids])
        offsets = np.concatenate([mine.offsets, theirs.offsets[1:] + mine.offsets[-1]])
        labels = None
        if self.labels is not None and other.labels is not None:
            labels = torch.cat([self.labels, other.labels])
        tokens = RaggedTokens(np.concatenate([mine.ids, theirs.ids]), types, offsets)
        return replace(self, tokens=tokens, labels=labels)

    def with_labels(self, labels: Tensor) -> "TokenizedExamples":
        """The same examples with other labels."""
        return replace(self, labels=labels)

    def batches(self, *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
        """One epoch of batches for `collate`; see `training_batches`."""
        return training_batches(self.lengths, batch_size=batch_size, seed=seed, epoch=epoch)

    def prepare_inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch as it is: what `collate` gives is what a network takes."""
        return batch

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of these examples, padded on the right to its longest.

        Returns:
            ``input_ids``, ``attention_mask`` and, where the tokenizer gives them, ``token_type_ids``, each long
            ``(batch, tokens)``; ``labels`` ``(batch,)`` or as they are otherwise, where they are known.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        places, mask = self._token_indices_and_mask(chosen)
        batch = {
            "input_ids": _pad(self.tokens.ids, places, mask, fill=self.pad_token_id),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }
        if self.tokens.type_ids is not None:
            batch["token_type_ids"] = _pad(self.tokens.type_ids, places, mask, fill=self.pad_token_type_id)
        if self.labels is not None and self.has_token_labels:
            batch["labels"] = _pad(self.labels.numpy(), places, mask, fill=IGNORE_INDEX)
        elif self.labels is not None:
            batch["labels"] = self.labels[torch.from_numpy(chosen)]
        return batch

    def token_indices(self, indices: Sequence[int]) -> np.ndarray:
        """Where the tokens of these examples stand among all: those of a batch that are no padding, row by row."""
        return self._token_indices_and_mask(np.asarray(indices, dtype=np.int64))[0]

    def _token_indices_and_mask(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of a batch by their places among all, and the mask ``(batch, tokens)`` of where they stand."""
        starts = self.tokens.offsets[indices]
        lengths = self.tokens.offsets[indices + 1] - starts
        columns = np.arange(lengths.max())
        mask = columns < lengths[:, None]
        return (starts[:, None] + columns)[mask], mask


def tokenize_texts(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    cache_dir: Path | None = None,
    use_cache: bool = True,
) -> TokenizedExamples:
    """Tokenise the examples, or find what an earlier run made of the same texts with the same tokenizer.

    Args:
        examples: texts, or pairs of texts; of a pair that is too long the longer text is cut.
        tokenizer: a fast tokenizer with a padding token.
        max_length: longest input in tokens, special ones included.
        cache_dir: where to keep the tokens; None is ``$LIMBERT_CACHE`` or ``~/.cache/limbert``.
        cache: whether to look for earlier tokens and keep these at all.

    Raises:
        ConfigError: the tokenizer is not a fast one or cannot pad.
    """
    check_tokenizer(tokenizer)
    path = _cache_path(examples, tokenizer, max_length=max_length, cache_dir=cache_dir) if use_cache else None
    tokens = None if path is None else read_tokens(path, num_examples=len(examples))
    if tokens is None:
        tokens = _tokenize(examples, tokenizer, max_length=max_length)
        if path is not None:
            write_tokens(path, tokens)
    return TokenizedExamples(
        tokens,
        _label_tensor(examples),
        pad_token_id=int(tokenizer.pad_token_id),
        pad_token_type_id=int(tokenizer.pad_token_type_id),
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError where the tokenizer is not a fast one or cannot pad."""
    if not tokenizer.is_fast:
        raise ConfigError(f"tokenizer is {type(tokenizer).__name__}; it must be a fast one (with a tokenizer.json)")
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"padding token of {type(tokenizer).__name__} is not set; it must be, to form batches")


def training_batches(lengths: Sequence[int] | np.ndarray, *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch of batches, every example once, with similar lengths together so that little is padding.

    The examples are shuffled, cut into pools of fifty batches, sorted by length within each pool and cut into
    batches, and the batches are shuffled. The last partial batch is kept. The same seed and epoch give the same order.

    Args:
        lengths: tokens per example, ``(examples,)``.
        batch_size: examples per batch.
        seed: of the run.
        epoch: number of the epoch, so that each has its own order.
    """
    sizes = np.asarray(lengths)
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(sizes))
    batches = []
    for pool in _chunks(order, batch_size * _POOL_BATCHES):
        batches += _chunks(pool[np.argsort(sizes[pool], kind="stable")], batch_size)
    return [batches[place].tolist() for place in generator.permutation(len(batches))]


def evaluation_batches(
    lengths: Sequence[int] | np.ndarray, *, batch_size: int, max_tokens: int | None = None
) -> list[list[int]]:
    """Batches of similar length, the longest first, so that a lack of memory shows at once; the caller restores order.

    Args:
        lengths: tokens per example, ``(examples,)``.
        batch_size: most examples per batch.
        max_tokens: most tokens per batch, padding included (a single longer example is a batch); None is no limit.
    """
    sizes = np.asarray(lengths)
    batches: list[list[int]] = []
    room = 0  # examples that the last batch can still take
    for index in np.argsort(-sizes, kind="stable").tolist():
        if not room:
            batches.append([])
            room = batch_size if max_tokens is None else max(1, min(batch_size, max_tokens // int(sizes[index])))
        batches[-1].append(index)
        room -= 1
    return batches


def _chunks(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _pad(flat: np.ndarray, indices: np.ndarray, mask: np.ndarray, *, fill: int) -> Tensor:
    """The values at ``places`` laid where the mask ``(batch, tokens)`` is true, ``fill`` elsewhere."""
    values = np.full(mask.shape, fill, dtype=np.int64)
    values[mask] = flat[indices]
    return torch.from_numpy(values)


def _cache_path(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int, cache_dir: Path | None
) -> Path | None:
    try:
        folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    except RuntimeError:  # a system user without a home
        return None
    key = tokenization_fingerprint(tokenizer, examples.texts, examples.pairs, max_length=max_length)
    return folder / "tokens" / f"{key}.safetensors"


def _tokenize(examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> RaggedTokens:
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths = [0]
    for start in range(0, len(examples), _CHUNK):
        part = slice(start, start + _CHUNK)
        pairs = None if examples.pairs is None else list(examples.pairs[part])
        encoded = tokenizer(
            list(examples.texts[part]),
            pairs,
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
        )
        lengths += [len(row) for row in encoded["input_ids"]]
        ids.append(np.fromiter(chain.from_iterable(encoded["input_ids"]), dtype=np.int32))
        if "token_type_ids" in encoded:
            types.append(np.fromiter(chain.from_iterable(encoded["token_type_ids"]), dtype=np.int32))
    if not ids:
        raise DataError("no examples to tokenise; expected at least one")
    return RaggedTokens(
        np.concatenate(ids), np.concatenate(types) if types else None, np.cumsum(lengths, dtype=np.int64)
    )


def _label_tensor(examples: Examples) -> Tensor | None:
    """Class ids as long, scores as float32."""
    if examples.labels is None:
        return None
    scores = any(isinstance(label, float) for label in examples.labels)
    return torch.tensor(examples.labels, dtype=torch.float32 if scores else torch.long)
