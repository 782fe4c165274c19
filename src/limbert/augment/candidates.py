"""What a masked language model would write in the place of each word of a text, many words at a time.

Every word is masked alone, in its own copy of the text, and the model's head runs at the masked place only. Words of
several pieces, which one mask cannot stand for, get their neighbours among word vectors instead.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from limbert.augment.sampling import ReplaceableWord
from limbert.augment.words import find_replaceable_words, is_word
from limbert.core.config import Precision
from limbert.data.tokenize import evaluation_batches
from limbert.errors import CheckpointError, DataError
from limbert.model.checkpoint import check_checkpoint_path, load_tokenizer
from limbert.model.families import FAMILIES, max_input_length
from limbert.model.sparse_prediction import enable_sparse_prediction


@dataclass(frozen=True)
class WholeWordVocabulary:
    """Words of one piece by their entry; the same words in both tables where the tokenizer tells spaces apart."""

    after_space: dict[int, str]
    without_space: dict[int, str]  # at the start of a text, or after a bracket

    def compatible_words(self, token_id: int) -> dict[int, str]:
        """The table with the entries that can stand in the place of this one."""
        return (
            self.after_space
            if token_id in self.after_space or token_id not in self.without_space
            else self.without_space
        )

    @cached_property
    def words(self) -> dict[str, int]:
        """Every word once, with its entry after a space."""
        return {word: entry for entry, word in self.after_space.items()}


def find_whole_words(tokenizer: PreTrainedTokenizerBase) -> WholeWordVocabulary:
    """Ask a fast tokenizer for the words that are one piece."""
    special = {*tokenizer.all_special_ids}
    entries = [entry for entry in range(len(tokenizer)) if entry not in special]
    words = [text.strip() for text in tokenizer.backend_tokenizer.decode_batch([[entry] for entry in entries])]
    kept = [(entry, word) for entry, word in zip(entries, words, strict=True) if is_word(word)]
    texts = [word for _, word in kept]
    spaced = _encode(tokenizer, [f" {text}" for text in texts])
    alone = _encode(tokenizer, texts)
    after_space = {entry: word for (entry, word), found in zip(kept, spaced, strict=True) if found == [entry]}
    known = {*after_space.values()}  # an ending such as "ness" is one piece alone, but no word after a space
    bare = {entry: word for (entry, word), found in zip(kept, alone, strict=True) if found == [entry] and word in known}
    return WholeWordVocabulary(after_space, bare)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return encoded


MAX_WORDS = 100_000  # read from a file: the frequent ones stand first


class WordVectors:
    """Words with their vectors, asked for those nearest by cosine.

    Args:
        words: as they are written.
        vectors: ``(words, size)``, of any length; a vector of zeros is near to nothing.
    """

    def __init__(self, words: Sequence[str], vectors: np.ndarray) -> None:
        self._words = tuple(words)
        self._vectors = _normalize(vectors.astype(np.float32))
        self._index_of = {word: place for place, word in reversed(list(enumerate(self._words)))}

    def nearest_to_word(self, word: str, count: int) -> tuple[str, ...]:
        """The nearest other words, nearest first; none where the word, as it is or in small letters, has no vector."""
        place = self._index_of.get(word, self._index_of.get(word.lower()))
        return () if place is None else self.nearest_to_vector(self._vectors[place], count, exclude=word)

    def nearest_to_vector(self, vector: np.ndarray, count: int, *, exclude: str) -> tuple[str, ...]:
        """The words nearest to a vector ``(size,)``, nearest first, each in one case only and without ``besides``."""
        nearness = self._vectors @ _normalize(vector.astype(np.float32))  # (words,)
        many = min(len(nearness), 4 * (count + 1))  # among so many, enough differ in more than their case
        found: dict[str, str] = {}
        for place in np.argsort(-nearness, kind="stable")[:many].tolist():
            found.setdefault(self._words[place].lower(), self._words[place])
        found.pop(exclude.lower(), None)
        return tuple(found.values())[:count]


def read_word_vectors(path: str | Path, *, max_words: int = MAX_WORDS) -> WordVectors:
    """The first words of a text file ``WORD NUMBER NUMBER ...``, with or without word2vec's first line of two counts.

    Words that are not letters only are read over, since they replace nothing.

    Raises:
        DataError: if it cannot be read (``FILE:LINE: what, expected``), or holds no word.
    """
    words: list[str] = []
    vectors: list[np.ndarray] = []
    size = 0
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                parts = line.rstrip().split(" ")
                if number == 1 and len(parts) == 2 and all(part.isdecimal() for part in parts):
                    continue
                size = size or len(parts) - 1
                if len(parts) < 2 or len(parts) <= size:
                    raise DataError(f"{path}:{number}: {len(parts) - 1} numbers, expected a word and {size or 'some'}")
                word = " ".join(parts[:-size])  # a few words of large files hold spaces
                if is_word(word):
                    words.append(word)
                    vectors.append(_parse_vector(parts[-size:], f"{path}:{number}"))
                if len(words) == max_words:
                    break
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; expected GloVe's or word2vec's text format, not binary") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if not words:
        raise DataError(f"{path}: no words with vectors; expected lines such as 'house 0.12 -0.5 ...'")
    return WordVectors(words, np.stack(vectors))


def _parse_vector(parts: list[str], location: str) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # what is too large is refused below
            numbers = np.array(parts, dtype=np.float32)
    except ValueError:
        raise DataError(f"{location}: {parts[0]!r} or another is no number, expected a word and its vector") from None
    if not np.isfinite(numbers).all():
        bad = parts[int(np.flatnonzero(~np.isfinite(numbers))[0])]
        raise DataError(f"{location}: {bad!r} is no finite number, expected a word and its vector")
    return numbers


def _normalize(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: np.ndarray = vectors / np.where(lengths > 0, lengths, 1.0)
    return unit


_BATCH_SIZE, _MAX_BATCH_TOKENS = 64, 2048  # part of the result: other batches may round otherwise


@dataclass(frozen=True)
class MaskedText:
    """A text with one word masked.

    Attributes:
        ids: the tokens that the model sees, special ones included.
        position: of the mask among them.
        entry: the vocabulary entry that stood there.
        word: as the text has it.
    """

    input_ids: tuple[int, ...]
    mask_index: int
    token_id: int
    word: str


def load_masked_lm(path_or_hub_id: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A masked language model that can answer at ``positions``, of any family of Transformers, and its tokenizer.

    Raises:
        CheckpointError: if there is none, it has no trained head for masks, or no fast tokenizer with a mask.
    """
    check_checkpoint_path(path_or_hub_id)
    try:
        network, info = AutoModelForMaskedLM.from_pretrained(
            path_or_hub_id, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"cannot load the masked language model {path_or_hub_id}: {reason}") from error
    tokenizer = load_tokenizer(path_or_hub_id)
    if info["missing_keys"]:
        lacking = ", ".join(sorted(info["missing_keys"])[:3])
        raise CheckpointError(f"{path_or_hub_id} is no masked language model: it lacks the weights {lacking}")
    if not tokenizer.is_fast or tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
        raise CheckpointError(f"the tokenizer of {path_or_hub_id} must be a fast one with a mask and a padding token")
    enable_sparse_prediction(network)
    network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return network, tokenizer


class WordCandidateGenerator:
    """Candidates for every word of a text that may be replaced.

    Args:
        network, tokenizer: from ``open_masked_lm``.
        neighbours: for words of several pieces; None takes the network's own input embeddings.
        keep: words in small letters that stay.
        count: candidates a word.
        context: most tokens around a mask, special ones included.
        precision: ``"bf16"`` runs under autocast.
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
        self._network, self._tokenizer, self._stop_words, self._num_candidates = (
            network,
            tokenizer,
            stop_words,
            num_candidates,
        )
        self._max_tokens = min(max_tokens, _max_length(network))
        self._precision = precision
        self._whole_words = find_whole_words(tokenizer)
        weights: Tensor = network.get_input_embeddings().weight  # type: ignore[assignment,union-attr]
        embeddings = weights.detach().float().cpu().numpy()  # (vocabulary, hidden)
        self._embeddings: np.ndarray | None = None if neighbours else embeddings
        words = self._whole_words.words
        self._neighbours = neighbours or WordVectors([*words], embeddings[[*words.values()]])
        self._allowed_ids = {
            id(table): _vocabulary_mask(table, len(embeddings), network.device)
            for table in (self._whole_words.after_space, self._whole_words.without_space)
        }

    def generate(self, texts: Sequence[str]) -> tuple[list[list[ReplaceableWord]], int]:
        """The choices of each text, from left to right, and how many words were masked for them."""
        found: list[list[ReplaceableWord]] = [[] for _ in texts]
        masks: list[MaskedText] = []
        targets: list[tuple[int, int]] = []  # (text, place among its choices) of each mask
        for index, text in enumerate(texts):
            for choice in self._candidates(text):
                if isinstance(choice, tuple):
                    span, mask = choice
                    targets.append((index, len(found[index])))
                    masks.append(mask)
                    found[index].append(ReplaceableWord(*span, ()))
                else:
                    found[index].append(choice)
        for (index, place), words in zip(targets, self._predict(masks), strict=True):
            old = found[index][place]
            found[index][place] = ReplaceableWord(old.start, old.end, words)
        return found, len(masks)

    def _candidates(self, text: str) -> Iterator[ReplaceableWord | tuple[tuple[int, int], MaskedText]]:
        """Each word with its neighbours, or as a mask."""
        spans = find_replaceable_words(text, stop_words=self._stop_words)
        if not spans:
            return
        encoded = self._tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
        ids: list[int] = encoded["input_ids"]
        special: list[int] = encoded["special_tokens_mask"]
        pieces = [
            (place, *_trim_whitespace(text, *offsets))
            for place, offsets in enumerate(encoded["offset_mapping"])
            if not special[place] and offsets[0] < offsets[1]
        ]
        first = 0
        for start, end in spans:
            while first < len(pieces) and pieces[first][2] <= start:
                first += 1
            last = first
            while last < len(pieces) and pieces[last][1] < end:
                last += 1
            mine, word = pieces[first:last], text[start:end]
            if len(mine) == 1 and mine[0][1:] == (start, end):
                yield (start, end), self._mask_word(ids, special, mine[0][0], word)
            else:
                yield ReplaceableWord(start, end, self._neighbour_words(word, [ids[place] for place, _, _ in mine]))

    def _mask_word(self, ids: list[int], special: list[int], position: int, word: str) -> MaskedText:
        """The tokens around a position with the mask there; a long text is cut on both sides."""
        before = next(place for place, flag in enumerate(special) if not flag)
        after = next(place for place, flag in enumerate(reversed(special)) if not flag)
        room = self._max_tokens - before - after
        body = ids[before : len(ids) - after]
        start = max(0, min(position - before - room // 2, len(body) - room))
        seen = [*ids[:before], *body[start : start + room], *ids[len(ids) - after :]]
        seen[position - start] = int(self._tokenizer.mask_token_id)
        return MaskedText(tuple(seen), position - start, ids[position], word)

    def _neighbour_words(self, word: str, token_ids: list[int]) -> tuple[str, ...]:
        if self._embeddings is None:
            return self._neighbours.nearest_to_word(word, self._num_candidates)
        if not token_ids:
            return ()
        return self._neighbours.nearest_to_vector(
            self._embeddings[token_ids].mean(axis=0), self._num_candidates, exclude=word
        )

    @torch.inference_mode()
    def _predict(self, masks: list[MaskedText]) -> list[tuple[str, ...]]:
        """The most probable whole words in the place of each mask, without the word that stood there."""
        answers: list[tuple[str, ...]] = [()] * len(masks)
        device = self._network.device
        autocast = torch.autocast(device.type, torch.bfloat16) if self._precision == "bf16" else nullcontext()
        lengths = np.array([len(mask.input_ids) for mask in masks], dtype=np.int64)
        for batch in evaluation_batches(lengths, batch_size=_BATCH_SIZE, max_tokens=_MAX_BATCH_TOKENS):
            chosen = [masks[index] for index in batch]
            tables = [self._whole_words.compatible_words(mask.token_id) for mask in chosen]
            with autocast:
                logits = mask_logits(self._network, chosen, pad_id=int(self._tokenizer.pad_token_id)).float()
            allowed = torch.stack([self._allowed_ids[id(table)] for table in tables])  # (batch, vocabulary)
            most = min(self._num_candidates + 1, allowed.shape[-1])
            best = logits.masked_fill(~allowed, -torch.inf).topk(most, dim=-1).indices.tolist()
            for index, mask, table, entries in zip(batch, chosen, tables, best, strict=True):
                words = (table[entry] for entry in entries if entry in table)  # a small table has fewer
                answers[index] = tuple(word for word in words if word.lower() != mask.word.lower())[
                    : self._num_candidates
                ]
        return answers


def mask_logits(network: PreTrainedModel, masks: Sequence[MaskedText], *, pad_id: int) -> Tensor:
    """The logits at each mask, ``(batch, vocabulary)``, in one padded batch; the network is from ``open_masked_lm``."""
    longest = max(len(mask.input_ids) for mask in masks)
    ids = torch.tensor([[*mask.input_ids, *[pad_id] * (longest - len(mask.input_ids))] for mask in masks])
    lengths = torch.tensor([[len(mask.input_ids)] for mask in masks])
    seen = (torch.arange(longest) < lengths).long()
    positions = torch.tensor([row * longest + mask.mask_index for row, mask in enumerate(masks)])
    device = network.device
    answer = network(input_ids=ids.to(device), attention_mask=seen.to(device), positions=positions.to(device))
    logits: Tensor = answer.logits
    return logits


def _vocabulary_mask(words: dict[int, str], size: int, device: torch.device) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool, device=device)
    mask[torch.tensor([*words], dtype=torch.long, device=device)] = True
    return mask


def _trim_whitespace(text: str, start: int, end: int) -> tuple[int, int]:
    """A piece without the white space that some tokenizers count to it."""
    while start < end and text[start].isspace():
        start += 1
    return start, end


def _max_length(network: PreTrainedModel) -> int:
    """Tokens that the network has positions for; two fewer in a family where some may go to padding."""
    if network.config.model_type in FAMILIES:
        return max_input_length(network.config)
    return int(getattr(network.config, "max_position_embeddings", None) or 512) - 2
