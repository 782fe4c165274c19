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
    def from_rows(cls, ids: Sequence[Any], type_ids: Sequence[Any]) -> "RaggedTokens":
        """Tokens from those of each example."""
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        return cls(_concatenate(ids), _concatenate(type_ids) if type_ids else None, offsets)


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

    def token_indices(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Indices, among all tokens, of these examples' tokens, example by example."""
        chosen = np.asarray(indices, dtype=np.int64)
        starts = self.tokens.offsets[chosen]
        lengths = self.tokens.offsets[chosen + 1] - starts
        ends = np.cumsum(lengths)
        return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)

    def select(self, indices: Sequence[int] | np.ndarray) -> "TokenizedExamples":
        """Some of the examples, in the given order; not for token-level tasks, whose metrics need whole texts."""
        assert self.alignment is None
        chosen, token_index = np.asarray(indices, dtype=np.int64), self.token_indices(indices)
        offsets = np.concatenate([[0], np.cumsum(self.lengths[chosen], dtype=np.int64)])
        types = None if self.tokens.type_ids is None else self.tokens.type_ids[token_index]
        labels = None if self.labels is None else self.labels[torch.from_numpy(chosen)]
        return replace(self, tokens=RaggedTokens(self.tokens.ids[token_index], types, offsets), labels=labels)

    def concatenate(self, other: "TokenizedExamples") -> "TokenizedExamples":
        """These examples, then others of the same tokenizer with labels of the same form."""
        assert self.alignment is None
        first, second = self.tokens, other.tokens
        types = [part.type_ids for part in (first, second) if part.type_ids is not None]
        tokens = RaggedTokens(
            np.concatenate([first.ids, second.ids]),
            np.concatenate(types) if types else None,
            np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
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
        chosen, token_index = np.asarray(indices, dtype=np.int64), self.token_indices(indices)
        lengths = self.tokens.offsets[chosen + 1] - self.tokens.offsets[chosen]
        mask = np.arange(lengths.max()) < lengths[:, None]  # (batch, tokens)

        def pad(flat: np.ndarray, fill: int) -> Tensor:
            values = np.full(mask.shape, fill, dtype=np.int64)
            values[mask] = flat[token_index]
            return torch.from_numpy(values)

        mask_tensor = torch.from_numpy(mask.astype(np.int64))
        batch = {"input_ids": pad(self.tokens.ids, self.pad_token_id), "attention_mask": mask_tensor}
        if self.tokens.type_ids is not None:
            batch["token_type_ids"] = pad(self.tokens.type_ids, self.pad_token_type_id)
        if self.labels is not None:
            by_token = self.has_token_labels
            labels = pad(self.labels.numpy(), IGNORE_INDEX) if by_token else self.labels[torch.from_numpy(chosen)]
            batch["labels"] = labels
        return batch


def tokenize_texts(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    cache_dir: Path | None = None,
    use_cache: bool = True,
) -> TokenizedExamples:
    """Tokenise texts or pairs, or read the tokens that an earlier run cached for the same texts and tokenizer.

    Inputs have at most ``max_length`` tokens, special ones included: of a pair the longer text is truncated. The cache
    is in ``cache_dir``; None is `default_cache_dir`.
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
        chunks = [encoded for _, encoded in _encode_chunks(examples, tokenizer, _CHUNK, max_length=max_length)]
        tokens = _tokens_of(chunks)
    labels = None
    if examples.labels is not None:
        scores = any(isinstance(label, float) for label in examples.labels)
        labels = torch.tensor(examples.labels, dtype=torch.float32 if scores else torch.long)
    return TokenizedExamples(tokens, labels, *_padding_ids(tokenizer))


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

    ``align`` is called with the index of an example, the tokenizer's encodings, and the index of a row in them. It
    returns the row's ``char_starts`` and ``char_ends`` (see `TokenAlignment`), and its labels if the examples have any:
    one per token, or without ``has_token_labels`` the first and the last token of an answer.
    """
    check_tokenizer(tokenizer)
    options |= {"max_length": max_length, "return_offsets_mapping": True}
    example_index, aligned, chunks = list[int](), [], []
    for begin, encoded in _encode_chunks(examples, tokenizer, _ALIGNED_CHUNK, **options):
        for row, number in enumerate(encoded.get("overflow_to_sample_mapping", range(len(encoded["input_ids"])))):
            example_index.append(begin + number)
            aligned.append(align(begin + number, encoded, row))
        chunks.append({name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded})
    starts, ends = (_concatenate([row[index] for row in aligned]) for index in (0, 1))
    labels = None
    if examples.labels is not None:
        labels = torch.from_numpy(_concatenate([row[2] for row in aligned], np.int64))
        labels = labels if has_token_labels else labels.reshape(-1, 2)
    alignment = TokenAlignment(examples, np.asarray(example_index), starts, ends)
    return TokenizedExamples(_tokens_of(chunks), labels, *_padding_ids(tokenizer), has_token_labels, alignment)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError if the tokenizer is not a fast one or cannot pad."""
    if not tokenizer.is_fast:
        raise ConfigError(f"tokenizer is {type(tokenizer).__name__}; it must be a fast one (with a tokenizer.json)")
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"padding token of {type(tokenizer).__name__} is not set; it must be, to form batches")


def _padding_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    return int(tokenizer.pad_token_id), int(tokenizer.pad_token_type_id)  # type: ignore[arg-type]  # checked


def _tokens_of(chunks: Sequence[Any]) -> RaggedTokens:
    names = ("input_ids", "token_type_ids")
    return RaggedTokens.from_rows(*([row for encoded in chunks for row in encoded.get(name, ())] for name in names))


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
