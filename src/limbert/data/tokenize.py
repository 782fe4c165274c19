"""From examples to batches: tokenised once and cached, grouped by length, each padded to its own longest example."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from limbert.files import json_fingerprint

logger = logging.getLogger(__name__)

_CHUNK, _ALIGNED_CHUNK = 2048, 256  # examples given to the tokenizer at a time; with the characters of their tokens
_POOL_BATCHES = 50  # batches of similar length are cut from a pool of this many
_TOKEN_COLUMNS = ("input_ids", "token_type_ids")  # of the tokenizer's outputs
_CACHE_VERSION = "2"  # raise it when the meaning of the cached arrays changes


@dataclass(frozen=True)
class RaggedTokens:
    """Token ids of all examples end to end; example i is ``ids[offsets[i] : offsets[i + 1]]``."""

    ids: np.ndarray  # (all tokens,) int32
    type_ids: np.ndarray | None  # (all tokens,) int32, which text of a pair; None if the tokenizer has none
    offsets: np.ndarray  # (examples + 1,) int64

    @classmethod
    def from_chunks(cls, chunks: Sequence[Any]) -> "RaggedTokens":
        """The tokens in the tokenizer's encodings of several chunks of examples."""
        ids, types = ([row for encoded in chunks for row in encoded.get(name, ())] for name in _TOKEN_COLUMNS)
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        return cls(_concatenate(ids), _concatenate(types) if types else None, offsets)


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
    def aligned(self) -> TokenAlignment:
        """The alignment, of a token-level task."""
        assert self.alignment is not None
        return self.alignment

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
        """These labelled examples, then others of the same tokenizer with labels of the same form."""
        assert self.alignment is None
        assert self.labels is not None
        assert other.labels is not None
        first, second = self.tokens, other.tokens
        types = [part.type_ids for part in (first, second) if part.type_ids is not None]
        tokens = RaggedTokens(
            np.concatenate([first.ids, second.ids]),
            np.concatenate(types) if types else None,
            np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        )
        return replace(self, tokens=tokens, labels=torch.cat([self.labels, other.labels]))

    def with_labels(self, labels: Tensor | None) -> "TokenizedExamples":
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
        if self.has_token_labels and self.labels is not None:
            batch["labels"] = pad(self.labels.numpy(), IGNORE_INDEX)
        elif self.labels is not None:
            batch["labels"] = self.labels[torch.from_numpy(chosen)]
        return batch


def tokenize_texts(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int, use_cache: bool = True
) -> TokenizedExamples:
    """Tokenise texts or pairs, or read the tokens that an earlier run cached for the same texts and tokenizer.

    Inputs have at most ``max_length`` tokens, special ones included: of a pair the longer text is truncated. The cache
    is in `default_cache_dir`.
    """
    check_tokenizer(tokenizer)
    if not len(examples):
        raise DataError("no examples to tokenise; expected at least one")
    tokens = _cached_tokens(examples, tokenizer, max_length=max_length) if use_cache else None
    if tokens is None:
        chunks = [encoded for _, encoded in _encode_chunks(examples, tokenizer, _CHUNK, max_length=max_length)]
        tokens = RaggedTokens.from_chunks(chunks)
    labels = None if examples.labels is None else torch.tensor(examples.labels)
    return TokenizedExamples(tokens, labels, *_padding_ids(tokenizer))


def tokenize_aligned(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    align: Callable[[int, Any, int], tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    has_token_labels: bool = False,
    **options: Any,
) -> TokenizedExamples:
    """Tokenise the examples of a token-level task.

    ``align`` is called with the index of an example, the tokenizer's encodings, and the index of a row in them. It
    returns the row's ``char_starts`` and ``char_ends`` (see `TokenAlignment`), and its labels if the examples have any:
    one per token, or without ``has_token_labels`` the first and the last token of an answer. ``options`` are the
    tokenizer's.
    """
    check_tokenizer(tokenizer)
    example_index, aligned, chunks = list[int](), [], []
    options |= {"return_offsets_mapping": True}
    for begin, encoded in _encode_chunks(examples, tokenizer, _ALIGNED_CHUNK, **options):
        for row, number in enumerate(encoded.get("overflow_to_sample_mapping", range(len(encoded["input_ids"])))):
            example_index.append(begin + number)
            aligned.append(align(begin + number, encoded, row))
        chunks.append({name: encoded[name] for name in _TOKEN_COLUMNS if name in encoded})
    starts, ends = (_concatenate([row[index] for row in aligned]) for index in (0, 1))
    labels = None
    if examples.labels is not None:
        labels = torch.from_numpy(_concatenate([row[2] for row in aligned], np.int64))
        labels = labels if has_token_labels else labels.reshape(-1, 2)
    alignment = TokenAlignment(examples, np.asarray(example_index), starts, ends)
    tokens = RaggedTokens.from_chunks(chunks)
    return TokenizedExamples(tokens, labels, *_padding_ids(tokenizer), has_token_labels, alignment)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError if the tokenizer is not a fast one or cannot pad."""
    if not tokenizer.is_fast:
        raise ConfigError(f"tokenizer is {type(tokenizer).__name__}; it must be a fast one (with a tokenizer.json)")
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"padding token of {type(tokenizer).__name__} is not set; it must be, to form batches")


def _padding_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    return int(tokenizer.pad_token_id), int(tokenizer.pad_token_type_id)  # type: ignore[arg-type]  # checked


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


# -- the cache of token ids


def default_cache_dir() -> Path:
    """``$LIMBERT_CACHE``, or ``~/.cache/limbert``; RuntimeError if there is no home folder either."""
    return Path(os.environ.get("LIMBERT_CACHE") or Path.home() / ".cache" / "limbert")


def tokenization_fingerprint(
    tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, *, max_length: int
) -> str:
    """A digest of everything that decides the token ids: the tokenizer's state, the truncation, and the texts.

    Unlike the fingerprint of `datasets`, it does not change when the tokenizer is used: the backend's own truncation
    and padding, which every call sets anew, are left out.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    options = [type(tokenizer).__name__, tokenizer.model_input_names, tokenizer.truncation_side, max_length]
    return json_fingerprint([_CACHE_VERSION, state, options, texts, pairs])


def _cached_tokens(examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> RaggedTokens | None:
    """The tokens in the cache file of ``Dataset.map``, which writes it first; None if the cache cannot be used."""
    import datasets
    import pyarrow

    names = [name for name in tokenizer.model_input_names if name in _TOKEN_COLUMNS]
    columns = {"text": list(examples.texts)} | ({} if examples.pairs is None else {"pair": list(examples.pairs)})
    key = tokenization_fingerprint(tokenizer, examples.texts, examples.pairs, max_length=max_length)

    def read_or_build(path: Path) -> RaggedTokens:
        with hidden_progress_bars():
            mapped = datasets.Dataset.from_dict(columns).map(
                lambda batch: dict(_encode(tokenizer, batch["text"], batch.get("pair"), max_length=max_length)),
                batched=True,
                batch_size=_CHUNK,
                remove_columns=list(columns),
                features=datasets.Features({name: datasets.List(datasets.Value("int32")) for name in names}),
                cache_file_name=str(path),
                new_fingerprint=key,
            )
        if len(mapped) != len(examples) or mapped.column_names != names:
            raise ValueError("it holds other examples")
        rows = [mapped.data.column(name).combine_chunks() for name in names]
        ids, *types = (column.flatten().to_numpy() for column in rows)
        offsets = np.cumsum([0, *rows[0].value_lengths().to_numpy()], dtype=np.int64)
        return RaggedTokens(ids, types[0] if types else None, offsets)

    try:
        path = default_cache_dir() / "tokens" / f"{key}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            try:
                return read_or_build(path)
            except (pyarrow.ArrowException, OSError, ValueError) as error:  # OSError: a truncated file
                logger.warning("token cache %s is broken and built again: %s", path, first_line(error))
                path.unlink()
        return read_or_build(path)
    except (OSError, RuntimeError) as error:  # a full disk; a system user without a home
        logger.warning("token cache cannot be used, continuing without it: %s", first_line(error))
        return None


@contextmanager
def hidden_progress_bars() -> Iterator[None]:
    """Hide the progress bars of `datasets`; the setting before is restored."""
    import datasets

    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()


# -- batches


def training_batches(lengths: Sequence[int] | np.ndarray, *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch of batches, every example once, with similar lengths together so that little is padding.

    The examples, of these ``lengths`` in tokens, are shuffled, cut into pools of fifty batches, sorted by length within
    each pool and cut into batches, and the batches are shuffled. The last partial batch is kept. The same seed and
    epoch give the same order.
    """
    sizes, generator, pool_size = np.asarray(lengths), np.random.default_rng([seed, epoch]), batch_size * _POOL_BATCHES
    batches: list[np.ndarray] = []
    for pool in np.split(generator.permutation(len(sizes)), range(pool_size, len(sizes), pool_size)):
        by_length = pool[np.argsort(sizes[pool], kind="stable")]
        batches += np.split(by_length, range(batch_size, len(pool), batch_size))
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
