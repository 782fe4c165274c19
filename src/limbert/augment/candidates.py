"""Candidate words for each word of a text: a masked language model's predictions, or neighbours among word vectors.

Each word is masked alone, in its own copy of the text, and the model's head runs at the mask only. A word of several
tokens cannot be predicted at one mask; its candidates are its nearest neighbours among word vectors.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from limbert.augment.words import ReplaceableWord, find_replaceable_words, is_word
from limbert.core.config import Precision
from limbert.data.table import lines_table
from limbert.data.tokenize import evaluation_batches
from limbert.errors import CheckpointError, DataError, first_line
from limbert.model.checkpoint import check_checkpoint_path, load_tokenizer
from limbert.model.families import FAMILIES, max_input_length
from limbert.model.inference_mode import autocast
from limbert.model.sparse_prediction import enable_sparse_prediction

MAX_WORDS = 100_000  # read from a file of word vectors; these files begin with the frequent words
_BATCH_SIZE, _MAX_BATCH_TOKENS = 64, 2048  # part of the result: other batches may round differently


def find_whole_words(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[int, str], dict[int, str]]:
    """The words that a fast tokenizer encodes as one token, by token id: after a space, and without one before.

    The second form stands at the start of a text or after a bracket; both are the same unless tokens mark spaces.
    """
    token_ids = sorted({*range(len(tokenizer))} - {*tokenizer.all_special_ids})
    decoded = tokenizer.backend_tokenizer.decode_batch([[token_id] for token_id in token_ids])
    words = {token_id: word for token_id, text in zip(token_ids, decoded, strict=True) if is_word(word := text.strip())}

    def single_tokens(prefix: str) -> dict[int, str]:
        texts = [prefix + word for word in words.values()]
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return {token_id: words[token_id] for token_id, ids in zip(words, encoded, strict=True) if ids == [token_id]}

    after_space = single_tokens(" ")
    known = {*after_space.values()}  # an ending such as "ness" is one token alone, but not a word after a space
    return after_space, {token_id: word for token_id, word in single_tokens("").items() if word in known}


class WordVectors:
    """Nearest words by cosine similarity; vectors ``(words, dimensions)``, a zero vector is similar to nothing."""

    def __init__(self, words: Sequence[str], vectors: np.ndarray) -> None:
        self._words = tuple(words)
        self._vectors = _normalize(vectors.astype(np.float32))
        self._index_of = {word: index for index, word in reversed(list(enumerate(self._words)))}

    def nearest(self, word: str, count: int, *, vector: np.ndarray | None = None) -> tuple[str, ...]:
        """The words nearest to a word, each in one case, nearest first.

        Its ``vector`` ``(dimensions,)`` is by default that of the word, or of its lower case; without any, () is
        returned.
        """
        index = self._index_of.get(word, self._index_of.get(word.lower()))
        if vector is None and index is None:
            return ()
        similarity = self._vectors @ (self._vectors[index] if vector is None else _normalize(vector))  # (words,)
        searched = min(len(similarity), 4 * (count + 1))  # enough of them differ in more than their case
        nearest: dict[str, str] = {}
        for other in np.argsort(-similarity, kind="stable")[:searched].tolist():
            nearest.setdefault(self._words[other].lower(), self._words[other])
        nearest.pop(word.lower(), None)
        return tuple(nearest.values())[:count]


def read_word_vectors(path: str | Path, *, max_words: int = MAX_WORDS) -> WordVectors:
    """The first words of a text file ``WORD NUMBER NUMBER ...`` (GloVe; word2vec with its first line of counts).

    Entries that do not consist of letters are skipped. DataError: ``FILE:LINE: what, expected``.
    """
    words, vectors, dimensions = list[str](), list[np.ndarray](), 0
    for number, cells, problem in lines_table(Path(path)).rows():
        parts = cells["text"].rstrip().split(" ")
        if number == 1 and len(parts) == 2 and all(part.isdecimal() for part in parts):
            continue
        dimensions = dimensions or len(parts) - 1
        if problem is not None or len(parts) < 2 or len(parts) <= dimensions:
            expected = f"{len(parts) - 1} numbers, expected a word and {dimensions or 'some'}"
            raise DataError(f"{path}:{number}: {problem or expected}")
        if is_word(word := " ".join(parts[:-dimensions])):  # a few entries of large files contain spaces
            words.append(word)
            vectors.append(_parse_vector(parts[-dimensions:], f"{path}:{number}"))
        if len(words) == max_words:
            break
    if not words:
        raise DataError(f"{path}: no words with vectors; expected lines such as 'house 0.12 -0.5 ...'")
    return WordVectors(words, np.stack(vectors))


def _parse_vector(parts: list[str], location: str) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # overflow is refused below
            numbers = np.array(parts, dtype=np.float32)
    except ValueError as error:
        raise DataError(f"{location}: {first_line(error)}; expected a word and its vector") from None
    for index in np.flatnonzero(~np.isfinite(numbers)).tolist():
        raise DataError(f"{location}: {parts[index]!r} is not a finite number; expected a word and its vector")
    return numbers


def _normalize(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: np.ndarray = vectors / np.where(norms > 0, norms, 1.0)
    return unit


@dataclass(frozen=True)
class MaskedText:
    """A text with one word masked."""

    input_ids: tuple[int, ...]  # special tokens included
    mask_index: int  # of the mask in ``input_ids``
    token_id: int  # the token that was masked
    word: str  # as written in the text


def load_masked_lm(path_or_hub_id: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a masked language model of any family, with sparse prediction enabled, and its tokenizer.

    Raises:
        CheckpointError: it cannot be loaded, has no pretrained head, or no fast tokenizer with a mask token.
    """
    check_checkpoint_path(path_or_hub_id)
    try:
        network, info = AutoModelForMaskedLM.from_pretrained(
            path_or_hub_id, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"cannot load masked language model {path_or_hub_id}: {first_line(error)}") from error
    tokenizer = load_tokenizer(path_or_hub_id)
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise CheckpointError(f"{path_or_hub_id} is not a masked language model: missing weights {missing}")
    if not tokenizer.is_fast or tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
        raise CheckpointError(f"tokenizer of {path_or_hub_id} must be a fast one with a mask and a padding token")
    enable_sparse_prediction(network)
    network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return network, tokenizer


class WordCandidateGenerator:
    """Finds candidates for every replaceable word of a text, with a network and tokenizer from ``load_masked_lm``.

    Args:
        neighbours: vectors for words of several tokens; None uses the network's own input embeddings.
        stop_words: words in lower case that are never replaced.
        num_candidates: candidates per word.
        max_tokens: longest input of the model, special tokens included.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        neighbours: WordVectors | None,
        stop_words: Collection[str],
        num_candidates: int,
        max_tokens: int,
        precision: Precision = "fp32",
    ) -> None:
        self._network, self._tokenizer, self._stop_words = network, tokenizer, stop_words
        self._num_candidates, self._precision = num_candidates, precision
        longest = (getattr(network.config, "max_position_embeddings", None) or 512) - 2  # two may be for padding
        if network.config.model_type in FAMILIES:
            longest = max_input_length(network.config)
        self._max_tokens = min(max_tokens, longest)
        self._after_space, self._without_space = find_whole_words(tokenizer)
        weights: Tensor = network.get_input_embeddings().weight  # type: ignore[assignment,union-attr]
        embeddings = weights.detach().float().cpu().numpy()  # (vocabulary, hidden)
        self._embeddings: np.ndarray | None = None if neighbours else embeddings
        ids = {word: token_id for token_id, word in self._after_space.items()}
        self._neighbours = neighbours or WordVectors([*ids], embeddings[[*ids.values()]])
        self._allowed = {
            id(table): torch.from_numpy(np.isin(np.arange(len(embeddings)), [*table])).to(network.device)
            for table in (self._after_space, self._without_space)
        }

    def generate(self, texts: Sequence[str]) -> tuple[list[list[ReplaceableWord]], list[int]]:
        """The replaceable words of each text, from left to right, and the number of masked ones in each text."""
        words: list[list[ReplaceableWord]] = []
        masks: dict[tuple[int, int], MaskedText] = {}  # by text and word
        for index, text in enumerate(texts):
            words.append([])
            spans = find_replaceable_words(text, stop_words=self._stop_words)
            encoded, tokens = self._encode(text) if spans else ({}, [])
            starts, ends = [token[1] for token in tokens], [token[2] for token in tokens]
            for start, end in spans:
                inside = tokens[bisect_right(ends, start) : bisect_left(starts, end)]
                candidates: tuple[str, ...] = ()
                if len(inside) == 1 and inside[0][1:] == (start, end):
                    masks[index, len(words[-1])] = self._mask_token(encoded, inside[0][0], text[start:end])
                elif self._embeddings is None:
                    candidates = self._neighbours.nearest(text[start:end], self._num_candidates)
                elif inside:
                    mean = self._embeddings[[encoded["input_ids"][token[0]] for token in inside]].mean(axis=0)
                    candidates = self._neighbours.nearest(text[start:end], self._num_candidates, vector=mean)
                words[-1].append(ReplaceableWord(start, end, candidates))
        for (index, word), candidates in zip(masks, self._predict([*masks.values()]), strict=True):
            words[index][word] = replace(words[index][word], candidates=candidates)
        return words, np.bincount([index for index, _ in masks], minlength=len(texts)).tolist()

    def _encode(self, text: str) -> tuple[Any, list[tuple[int, int, int]]]:
        """The encoded text, and the tokens of its characters, ``(index, start, end)`` without white space around."""
        encoded = self._tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
        tokens = []
        for index, (start, end) in enumerate(encoded["offset_mapping"]):
            if not encoded["special_tokens_mask"][index] and start < end:
                tokens.append((index, end - len(text[start:end].lstrip()), end))  # some tokenizers include a space
        return encoded, tokens

    def _mask_token(self, encoded: Any, index: int, word: str) -> MaskedText:
        """Replace a token by the mask; a long text is cut on both sides of it."""
        ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
        before, after = special.index(0), special[::-1].index(0)
        window = self._max_tokens - before - after
        body = ids[before : len(ids) - after]
        start = max(0, min(index - before - window // 2, len(body) - window))
        shown = [*ids[:before], *body[start : start + window], *ids[len(ids) - after :]]
        shown[index - start] = int(self._tokenizer.mask_token_id)
        return MaskedText(tuple(shown), index - start, ids[index], word)

    @torch.inference_mode()
    def _predict(self, masks: list[MaskedText]) -> list[tuple[str, ...]]:
        """The most probable whole words at each mask, without the masked word itself."""
        candidates: list[tuple[str, ...]] = [()] * len(masks)
        lengths = np.array([len(mask.input_ids) for mask in masks], dtype=np.int64)
        for batch in evaluation_batches(lengths, batch_size=_BATCH_SIZE, max_tokens=_MAX_BATCH_TOKENS):
            with autocast(self._network.device, self._precision):
                logits = mask_logits(
                    self._network, [masks[index] for index in batch], pad_id=int(self._tokenizer.pad_token_id)
                )
            tables = [self._compatible_words(masks[index].token_id) for index in batch]
            allowed = torch.stack([self._allowed[id(table)] for table in tables])  # (batch, vocabulary)
            most = min(self._num_candidates + 1, logits.shape[-1])
            best = logits.float().masked_fill(~allowed, -torch.inf).topk(most, dim=-1).indices.tolist()
            for index, table, token_ids in zip(batch, tables, best, strict=True):
                words = [table[token_id] for token_id in token_ids if token_id in table]  # small tables have fewer
                others = [word for word in words if word.lower() != masks[index].word.lower()]
                candidates[index] = tuple(others[: self._num_candidates])
        return candidates

    def _compatible_words(self, token_id: int) -> dict[int, str]:
        only_without_space = token_id in self._without_space and token_id not in self._after_space
        return self._without_space if only_without_space else self._after_space


def mask_logits(network: PreTrainedModel, masks: Sequence[MaskedText], *, pad_id: int) -> Tensor:
    """The logits at each mask, ``(batch, vocabulary)``, in one padded batch; the network is from ``load_masked_lm``."""
    longest = max(len(mask.input_ids) for mask in masks)
    ids = torch.tensor([[*mask.input_ids, *[pad_id] * (longest - len(mask.input_ids))] for mask in masks])
    lengths = torch.tensor([[len(mask.input_ids)] for mask in masks])
    attention_mask = (torch.arange(longest) < lengths).long()
    positions = torch.tensor([row * longest + mask.mask_index for row, mask in enumerate(masks)])
    inputs = {"input_ids": ids, "attention_mask": attention_mask, "positions": positions}
    logits: Tensor = network(**{name: tensor.to(network.device) for name, tensor in inputs.items()}).logits
    return logits
