"""From examples to batches: tokenised once, grouped by length, each padded to its own longest example only."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from limbert.core.task_types import IGNORE_INDEX
from limbert.data.readers import Examples
from limbert.errors import ConfigError, DataError, first_line

logger = logging.getLogger(__name__)

_CACHE_VERSION = "1"  # raise it when the meaning of the cached arrays changes
_CHUNK = 2048  # examples given to the tokenizer at a time
_POOL_BATCHES = 50  # batches of similar length are cut from a pool of this many


@dataclass(frozen=True)
class RaggedTokens:
    """Token ids of all examples end to end; example i is ``ids[offsets[i] : offsets[i + 1]]``."""

    ids: np.ndarray  # (all tokens,) int32
    type_ids: np.ndarray | None  # (all tokens,) int32, which text of a pair; None if the tokenizer has none
    offsets: np.ndarray  # (examples + 1,) int64

    @classmethod
    def from_rows(cls, ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]]) -> "RaggedTokens":
        """Tokens of one row per example; no type ids at all if the tokenizer has none."""
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        return cls(concatenate_rows(ids), concatenate_rows(type_ids) if type_ids else None, offsets)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per example, ``(examples,)``."""
        return np.diff(self.offsets)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        arrays = {"ids": self.ids, "offsets": self.offsets}
        return arrays if self.type_ids is None else arrays | {"types": self.type_ids}


def concatenate_rows(rows: Sequence[Any], dtype: type = np.int32) -> np.ndarray:
    """Rows of any lengths as one array ``(all values,)``."""
    return np.concatenate([np.asarray(row, dtype=dtype) for row in rows]) if len(rows) else np.empty(0, dtype=dtype)


@dataclass(frozen=True)
class TokenAlignment:
    """Where the tokens of token-level tasks come from; predictions are evaluated on the texts."""

    examples: Examples
    example_index: np.ndarray  # (rows,), the example of each row: a long one may have several
    char_starts: np.ndarray  # (all tokens,) int32, first character that a token's prediction is for; -1: none
    char_ends: np.ndarray  # (all tokens,) int32, the character after its last


@dataclass(frozen=True)
class TokenizedExamples:
    """Tokenised examples of any lengths, with their labels if they are known.

    Labels are ``(examples,)``, long class ids or float32 scores; multi-label ``(examples, classes)``, float32 0 or 1,
    or a teacher's probabilities (classification too); question answering ``(examples, 2)``, long, the answer's first
    and last token; with ``has_token_labels`` ``(all tokens,)``, long class ids.
    """

    tokens: RaggedTokens
    labels: Tensor | None
    pad_token_id: int
    pad_token_type_id: int
    has_token_labels: bool = False
    alignment: TokenAlignment | None = None  # of token-level tasks

    def __len__(self) -> int:
        return len(self.tokens.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per example, ``(examples,)``."""
        return self.tokens.lengths

    def select(self, indices: Sequence[int] | np.ndarray) -> "TokenizedExamples":
        """Some of the examples, in the given order; not for token-level tasks, whose metrics need whole texts."""
        assert self.alignment is None
        chosen = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        token_index = np.repeat(self.tokens.offsets[chosen] - offsets[:-1], lengths) + np.arange(offsets[-1])
        types = None if self.tokens.type_ids is None else self.tokens.type_ids[token_index]
        labels = None if self.labels is None else self.labels[torch.from_numpy(chosen)]
        return TokenizedExamples(
            RaggedTokens(self.tokens.ids[token_index], types, offsets),
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
        """The batch as it is: a network takes what `collate` returns."""
        return batch

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of these examples, padded on the right to its longest.

        Returns:
            ``input_ids``, ``attention_mask`` and, if the tokenizer has them, ``token_type_ids``, each long
            ``(batch, tokens)``; ``labels`` ``(batch,)`` or of the task's shape, if they are known.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        token_index, mask = self._token_indices_and_mask(chosen)
        batch = {
            "input_ids": _pad(self.tokens.ids, token_index, mask, fill=self.pad_token_id),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }
        if self.tokens.type_ids is not None:
            batch["token_type_ids"] = _pad(self.tokens.type_ids, token_index, mask, fill=self.pad_token_type_id)
        if self.labels is not None and self.has_token_labels:
            batch["labels"] = _pad(self.labels.numpy(), token_index, mask, fill=IGNORE_INDEX)
        elif self.labels is not None:
            batch["labels"] = self.labels[torch.from_numpy(chosen)]
        return batch

    def token_indices(self, indices: Sequence[int]) -> np.ndarray:
        """Indices, among all tokens, of these examples' tokens without padding, example by example."""
        return self._token_indices_and_mask(np.asarray(indices, dtype=np.int64))[0]

    def _token_indices_and_mask(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices of a batch's tokens among all tokens, and the mask ``(batch, tokens)`` of their positions."""
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
    """Tokenise the examples, or read the tokens that an earlier run cached for the same texts and tokenizer.

    Args:
        examples: texts, or pairs of texts; of a pair that is too long the longer text is truncated.
        tokenizer: a fast tokenizer with a padding token.
        max_length: longest input in tokens, special tokens included.
        cache_dir: folder of the cache; None is ``$LIMBERT_CACHE`` or ``~/.cache/limbert``.
        use_cache: read and write the cache.

    Raises:
        ConfigError: the tokenizer is not a fast one or cannot pad.
        DataError: no examples.
    """
    check_tokenizer(tokenizer)
    if not len(examples):
        raise DataError("no examples to tokenise; expected at least one")
    tokens = _cached_tokens(examples, tokenizer, max_length=max_length, cache_dir=cache_dir) if use_cache else None
    return TokenizedExamples(
        _tokenize(examples, tokenizer, max_length=max_length) if tokens is None else tokens,
        _label_tensor(examples),
        pad_token_id=int(tokenizer.pad_token_id),
        pad_token_type_id=int(tokenizer.pad_token_type_id),
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError if the tokenizer is not a fast one or cannot pad."""
    if not tokenizer.is_fast:
        raise ConfigError(f"tokenizer is {type(tokenizer).__name__}; it must be a fast one (with a tokenizer.json)")
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"padding token of {type(tokenizer).__name__} is not set; it must be, to form batches")


def default_cache_dir() -> Path:
    """``$LIMBERT_CACHE``, or ``~/.cache/limbert``.

    Raises:
        RuntimeError: there is no home folder either.
    """
    return Path(os.environ.get("LIMBERT_CACHE") or Path.home() / ".cache" / "limbert")


def tokenization_fingerprint(
    tokenizer: Any, texts: Iterable[str], pairs: Iterable[str] | None, *, max_length: int
) -> str:
    """A digest of everything that decides the token ids: the tokenizer's state, the truncation, and the texts.

    Unlike the fingerprint of `datasets`, it does not change when the tokenizer is used: the backend's own truncation
    and padding, which every call sets anew, are left out.
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
            digest.update(len(encoded).to_bytes(8, "little"))  # a letter moved to the next text changes the digest
            digest.update(encoded)
    return digest.hexdigest()


def _cached_tokens(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int, cache_dir: Path | None
) -> RaggedTokens | None:
    """The tokens by `datasets`' ``map`` with its cache file; None if the cache cannot be read or written."""
    import pyarrow

    try:
        folder = (default_cache_dir() if cache_dir is None else Path(cache_dir)) / "tokens"
        key = tokenization_fingerprint(tokenizer, examples.texts, examples.pairs, max_length=max_length)
        path = folder / f"{key}.arrow"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return _map_tokens(examples, tokenizer, max_length=max_length, cache_file=path)
        except (pyarrow.ArrowException, ValueError) as error:
            logger.warning("token cache %s is broken and built again: %s", path, first_line(error))
            path.unlink(missing_ok=True)
            return _map_tokens(examples, tokenizer, max_length=max_length, cache_file=path)
    except (OSError, RuntimeError) as error:  # a full disk; a system user without a home
        logger.warning("token cache cannot be used, continuing without it: %s", first_line(error))
        return None


def _map_tokens(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int, cache_file: Path
) -> RaggedTokens:
    import datasets

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        return dict(_encode(tokenizer, batch["text"], batch.get("pair"), max_length=max_length))

    columns = {"text": list(examples.texts)} | ({} if examples.pairs is None else {"pair": list(examples.pairs)})
    names = [name for name in tokenizer.model_input_names if name in ("input_ids", "token_type_ids")]
    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        mapped = datasets.Dataset.from_dict(columns).map(
            encode,
            batched=True,
            batch_size=_CHUNK,
            remove_columns=list(columns),
            features=datasets.Features({name: datasets.List(datasets.Value("int32")) for name in names}),
            cache_file_name=str(cache_file),
            new_fingerprint=cache_file.stem,
        )
    finally:
        if not quiet:
            datasets.enable_progress_bars()
    if len(mapped) != len(examples) or mapped.column_names != names:
        raise ValueError("it holds other examples")
    rows = {name: mapped.data.column(name).combine_chunks() for name in names}
    types = rows["token_type_ids"].flatten().to_numpy() if "token_type_ids" in rows else None
    lengths = rows["input_ids"].value_lengths().to_numpy()
    return RaggedTokens(rows["input_ids"].flatten().to_numpy(), types, np.cumsum([0, *lengths], dtype=np.int64))


def _tokenize(examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> RaggedTokens:
    ids: list[list[int]] = []
    types: list[list[int]] = []
    for start in range(0, len(examples), _CHUNK):
        part = slice(start, start + _CHUNK)
        pairs = None if examples.pairs is None else list(examples.pairs[part])
        encoded = _encode(tokenizer, list(examples.texts[part]), pairs, max_length=max_length)
        ids += encoded["input_ids"]
        types += encoded.get("token_type_ids", [])
    return RaggedTokens.from_rows(ids, types)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None, *, max_length: int) -> Any:
    return tokenizer(texts, pairs, truncation=True, max_length=max_length, padding=False, return_attention_mask=False)


def _label_tensor(examples: Examples) -> Tensor | None:
    if examples.labels is None:
        return None
    scores = any(isinstance(label, float) for label in examples.labels)
    return torch.tensor(examples.labels, dtype=torch.float32 if scores else torch.long)


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
    return [batches[index].tolist() for index in generator.permutation(len(batches))]


def evaluation_batches(
    lengths: Sequence[int] | np.ndarray, *, batch_size: int, max_tokens: int | None = None
) -> list[list[int]]:
    """Batches of similar length, the longest first, so that a lack of memory shows at once; the caller reorders.

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
    """The values at ``indices`` where the mask ``(batch, tokens)`` is true, ``fill`` elsewhere."""
    values = np.full(mask.shape, fill, dtype=np.int64)
    values[mask] = flat[indices]
    return torch.from_numpy(values)
