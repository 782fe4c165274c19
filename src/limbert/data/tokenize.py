"""From examples to batches: tokenised once, grouped by length, each padded to its own longest example only."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from limbert.core.task_types import IGNORE_INDEX
from limbert.data.readers import Examples
from limbert.data.token_cache import map_with_cache, tokenization_fingerprint
from limbert.errors import ConfigError, DataError

_CHUNK, _ALIGNED_CHUNK = 2048, 256  # examples given to the tokenizer at a time; with the characters of their tokens
_POOL_BATCHES = 50  # batches of similar length are cut from a pool of this many


@dataclass(frozen=True)
class RaggedTokens:
    """Token ids of all examples end to end; example i is ``ids[offsets[i] : offsets[i + 1]]``."""

    ids: np.ndarray  # (all tokens,) int32
    type_ids: np.ndarray | None  # (all tokens,) int32, which text of a pair; None if the tokenizer has none
    offsets: np.ndarray  # (examples + 1,) int64

    @classmethod
    def from_encodings(cls, encodings: Sequence[Any]) -> "RaggedTokens":
        """The tokens of all rows of encodings by a tokenizer."""
        ids, types = (
            [row for encoded in encodings for row in encoded.get(name, ())] for name in ("input_ids", "token_type_ids")
        )
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        return cls(_concatenate(ids), _concatenate(types) if types else None, offsets)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        arrays = {"ids": self.ids, "offsets": self.offsets}
        return arrays if self.type_ids is None else arrays | {"types": self.type_ids}


def _concatenate(rows: Sequence[Any], dtype: type = np.int32) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *(np.asarray(row, dtype) for row in rows)])


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
        return np.diff(self.tokens.offsets)

    def select(self, indices: Sequence[int] | np.ndarray) -> "TokenizedExamples":
        """Some of the examples, in the given order; not for token-level tasks, whose metrics need whole texts."""
        assert self.alignment is None
        chosen = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        token_index = np.repeat(self.tokens.offsets[chosen] - offsets[:-1], lengths) + np.arange(offsets[-1])
        types = None if self.tokens.type_ids is None else self.tokens.type_ids[token_index]
        labels = None if self.labels is None else self.labels[torch.from_numpy(chosen)]
        return replace(self, tokens=RaggedTokens(self.tokens.ids[token_index], types, offsets), labels=labels)

    def concatenate(self, other: "TokenizedExamples") -> "TokenizedExamples":
        """These examples, then others of the same tokenizer with labels of the same form."""
        assert self.alignment is None
        parts = (self.tokens, other.tokens)
        types = [part.type_ids for part in parts if part.type_ids is not None]
        tokens = RaggedTokens(
            np.concatenate([part.ids for part in parts]),
            np.concatenate(types) if len(types) == 2 else None,
            np.concatenate([parts[0].offsets, parts[1].offsets[1:] + parts[0].offsets[-1]]),
        )
        labels = [part.labels for part in (self, other) if part.labels is not None]
        return replace(self, tokens=tokens, labels=torch.cat(labels) if len(labels) == 2 else None)

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
        tokenizer: a fast one with a padding token.
        max_length: longest input in tokens, special tokens included.
        cache_dir: folder of the cache; None is `default_cache_dir`.
        use_cache: read and write the cache.
    """
    check_tokenizer(tokenizer)
    if not len(examples):
        raise DataError("no examples to tokenise; expected at least one")

    tokens = None
    if use_cache:
        names = [name for name in tokenizer.model_input_names if name in ("input_ids", "token_type_ids")]
        rows = map_with_cache(
            lambda texts, pairs: _encode(tokenizer, texts, pairs, max_length=max_length),
            examples.texts,
            examples.pairs,
            names=names,
            batch_size=_CHUNK,
            key=tokenization_fingerprint(tokenizer, examples.texts, examples.pairs, max_length=max_length),
            cache_dir=cache_dir,
        )
        if rows is not None:
            ids, *types = (rows[name].flatten().to_numpy() for name in names)
            offsets = np.cumsum([0, *rows["input_ids"].value_lengths().to_numpy()], dtype=np.int64)
            tokens = RaggedTokens(ids, types[0] if types else None, offsets)
    if tokens is None:
        tokens = RaggedTokens.from_encodings(
            [encoded for _, encoded in _encode_chunks(examples, tokenizer, _CHUNK, max_length=max_length)]
        )
    labels = None
    if examples.labels is not None:
        scores = any(isinstance(label, float) for label in examples.labels)
        labels = torch.tensor(examples.labels, dtype=torch.float32 if scores else torch.long)
    return TokenizedExamples(
        tokens, labels, pad_token_id=int(tokenizer.pad_token_id), pad_token_type_id=int(tokenizer.pad_token_type_id)
    )


def tokenize_aligned(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    align: Callable[[int, Any, int], tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    has_token_labels: bool,
    max_length: int,
    **options: Any,
) -> TokenizedExamples:
    """Tokenise the examples of a token-level task.

    Args:
        examples: texts, or pairs of texts.
        tokenizer: a fast one with a padding token.
        align: called with the index of an example, the tokenizer's encodings, and the index of a row in them; returns
            the row's ``char_starts`` and ``char_ends`` (see `TokenAlignment`), and its labels if the examples have any.
        has_token_labels: whether a row has a label per token, or the first and the last token of an answer.
        options: of the tokenizer.
    """
    check_tokenizer(tokenizer)
    options |= {"max_length": max_length, "return_offsets_mapping": True}
    example_index, aligned, chunks = list[int](), [], []
    for begin, encoded in _encode_chunks(examples, tokenizer, _ALIGNED_CHUNK, **options):
        for row, number in enumerate(encoded.get("overflow_to_sample_mapping", range(len(encoded["input_ids"])))):
            example_index.append(begin + number)
            aligned.append(align(begin + number, encoded, row))
        chunks.append({name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded})
    labels = None
    if examples.labels is not None:
        labels = torch.from_numpy(_concatenate([row[2] for row in aligned], np.int64))
    starts, ends = (_concatenate([row[index] for row in aligned]) for index in (0, 1))
    return TokenizedExamples(
        RaggedTokens.from_encodings(chunks),
        labels if labels is None or has_token_labels else labels.reshape(-1, 2),
        pad_token_id=int(tokenizer.pad_token_id),  # type: ignore[arg-type]  # checked above
        pad_token_type_id=int(tokenizer.pad_token_type_id),
        has_token_labels=has_token_labels,
        alignment=TokenAlignment(examples, np.asarray(example_index), starts, ends),
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError if the tokenizer is not a fast one or cannot pad."""
    if not tokenizer.is_fast:
        raise ConfigError(f"tokenizer is {type(tokenizer).__name__}; it must be a fast one (with a tokenizer.json)")
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"padding token of {type(tokenizer).__name__} is not set; it must be, to form batches")


def _encode_chunks(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, size: int, **options: Any
) -> Iterator[tuple[int, Any]]:
    """The index of the first example of each chunk, and the tokenizer's encodings."""
    for begin in range(0, len(examples), size):
        part = slice(begin, begin + size)
        pairs = None if examples.pairs is None else list(examples.pairs[part])
        yield begin, _encode(tokenizer, list(examples.texts[part]), pairs, **options)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None, **options: Any) -> Any:
    return tokenizer(texts, pairs, **({"truncation": True} | options), padding=False, return_attention_mask=False)


def training_batches(lengths: Sequence[int] | np.ndarray, *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch of batches, every example once, with similar lengths together so that little is padding.

    The examples, of these ``lengths`` in tokens, are shuffled, cut into pools of fifty batches, sorted by length within
    each pool and cut into batches, and the batches are shuffled. The last partial batch is kept. The same seed and
    epoch give the same order.
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

    With ``max_tokens``, a batch has at most that many tokens, padding included; a single longer example is a batch.
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
