"""What a masked language model would write in the place of each word of a text, many words at a time.

Every word is masked alone, in its own copy of the text, and the model's head runs at the masked place only. Words of
several pieces, which one mask cannot stand for, get their neighbours among word vectors instead.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from limbert.core.config import Precision
from limbert.augment.sampling import Choice
from limbert.data.tokenize import evaluation_batches
from limbert.data.neighbours import Neighbours
from limbert.data.vocabulary import whole_words
from limbert.augment.words import replaceable
from limbert.errors import CheckpointError
from limbert.model.checkpoint import check_folder, load_tokenizer
from limbert.model.families import FAMILIES, longest_input
from limbert.model.sparse_prediction import accept_positions

_BATCH, _BATCH_TOKENS = 64, 2048  # part of the result: other batches may round otherwise


@dataclass(frozen=True)
class Mask:
    """A text with one word masked.

    Attributes:
        ids: the tokens that the model sees, special ones included.
        position: of the mask among them.
        entry: the vocabulary entry that stood there.
        word: as the text has it.
    """

    ids: tuple[int, ...]
    position: int
    entry: int
    word: str


def open_masked_lm(path_or_hub_id: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A masked language model that can answer at ``positions``, of any family of Transformers, and its tokenizer.

    Raises:
        CheckpointError: if there is none, it has no trained head for masks, or no fast tokenizer with a mask.
    """
    check_folder(path_or_hub_id)
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
    accept_positions(network)
    network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return network, tokenizer


class WordChooser:
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
        neighbours: Neighbours | None,
        keep: Collection[str],
        count: int,
        context: int,
        precision: Precision = "fp32",
    ) -> None:
        self._network, self._tokenizer, self._keep, self._count = network, tokenizer, keep, count
        self._context = min(context, _longest(network))
        self._precision = precision
        self._table = whole_words(tokenizer)
        weights: Tensor = network.get_input_embeddings().weight  # type: ignore[assignment,union-attr]
        embeddings = weights.detach().float().cpu().numpy()  # (vocabulary, hidden)
        self._embeddings: np.ndarray | None = None if neighbours else embeddings
        words = self._table.words
        self._neighbours = neighbours or Neighbours([*words], embeddings[[*words.values()]])
        self._allowed = {
            id(table): _as_mask(table, len(embeddings), network.device)
            for table in (self._table.after_space, self._table.bare)
        }

    def choose(self, texts: Sequence[str]) -> tuple[list[list[Choice]], int]:
        """The choices of each text, from left to right, and how many words were masked for them."""
        found: list[list[Choice]] = [[] for _ in texts]
        masks: list[Mask] = []
        targets: list[tuple[int, int]] = []  # (text, place among its choices) of each mask
        for index, text in enumerate(texts):
            for choice in self._choices(text):
                if isinstance(choice, tuple):
                    span, mask = choice
                    targets.append((index, len(found[index])))
                    masks.append(mask)
                    found[index].append(Choice(*span, ()))
                else:
                    found[index].append(choice)
        for (index, place), words in zip(targets, self._predict(masks), strict=True):
            old = found[index][place]
            found[index][place] = Choice(old.start, old.end, words)
        return found, len(masks)

    def _choices(self, text: str) -> Iterator[Choice | tuple[tuple[int, int], Mask]]:
        """Each word with its neighbours, or as a mask."""
        spans = replaceable(text, keep=self._keep)
        if not spans:
            return
        encoded = self._tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
        ids: list[int] = encoded["input_ids"]
        special: list[int] = encoded["special_tokens_mask"]
        pieces = [
            (place, *_trimmed(text, *offsets))
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
                yield (start, end), self._mask(ids, special, mine[0][0], word)
            else:
                yield Choice(start, end, self._near(word, [ids[place] for place, _, _ in mine]))

    def _mask(self, ids: list[int], special: list[int], position: int, word: str) -> Mask:
        """The tokens around a position with the mask there; a long text is cut on both sides."""
        before = next(place for place, flag in enumerate(special) if not flag)
        after = next(place for place, flag in enumerate(reversed(special)) if not flag)
        room = self._context - before - after
        body = ids[before : len(ids) - after]
        start = max(0, min(position - before - room // 2, len(body) - room))
        seen = [*ids[:before], *body[start : start + room], *ids[len(ids) - after :]]
        seen[position - start] = int(self._tokenizer.mask_token_id)
        return Mask(tuple(seen), position - start, ids[position], word)

    def _near(self, word: str, entries: list[int]) -> tuple[str, ...]:
        if self._embeddings is None:
            return self._neighbours.of_word(word, self._count)
        if not entries:
            return ()
        return self._neighbours.of_vector(self._embeddings[entries].mean(axis=0), self._count, besides=word)

    @torch.inference_mode()
    def _predict(self, masks: list[Mask]) -> list[tuple[str, ...]]:
        """The most probable whole words in the place of each mask, without the word that stood there."""
        answers: list[tuple[str, ...]] = [()] * len(masks)
        device = self._network.device
        autocast = torch.autocast(device.type, torch.bfloat16) if self._precision == "bf16" else nullcontext()
        lengths = np.array([len(mask.ids) for mask in masks], dtype=np.int64)
        for batch in evaluation_batches(lengths, batch_size=_BATCH, max_tokens=_BATCH_TOKENS):
            chosen = [masks[index] for index in batch]
            tables = [self._table.table_of(mask.entry) for mask in chosen]
            with autocast:
                logits = mask_logits(self._network, chosen, pad_id=int(self._tokenizer.pad_token_id)).float()
            allowed = torch.stack([self._allowed[id(table)] for table in tables])  # (batch, vocabulary)
            most = min(self._count + 1, allowed.shape[-1])
            best = logits.masked_fill(~allowed, -torch.inf).topk(most, dim=-1).indices.tolist()
            for index, mask, table, entries in zip(batch, chosen, tables, best, strict=True):
                words = (table[entry] for entry in entries if entry in table)  # a small table has fewer
                answers[index] = tuple(word for word in words if word.lower() != mask.word.lower())[: self._count]
        return answers


def mask_logits(network: PreTrainedModel, masks: Sequence[Mask], *, pad_id: int) -> Tensor:
    """The logits at each mask, ``(batch, vocabulary)``, in one padded batch; the network is from ``open_masked_lm``."""
    longest = max(len(mask.ids) for mask in masks)
    ids = torch.tensor([[*mask.ids, *[pad_id] * (longest - len(mask.ids))] for mask in masks])
    lengths = torch.tensor([[len(mask.ids)] for mask in masks])
    seen = (torch.arange(longest) < lengths).long()
    positions = torch.tensor([row * longest + mask.position for row, mask in enumerate(masks)])
    device = network.device
    answer = network(input_ids=ids.to(device), attention_mask=seen.to(device), positions=positions.to(device))
    logits: Tensor = answer.logits
    return logits


def _as_mask(table: dict[int, str], size: int, device: torch.device) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool, device=device)
    mask[torch.tensor([*table], dtype=torch.long, device=device)] = True
    return mask


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A piece without the white space that some tokenizers count to it."""
    while start < end and text[start].isspace():
        start += 1
    return start, end


def _longest(network: PreTrainedModel) -> int:
    """Tokens that the network has positions for; two fewer in a family where some may go to padding."""
    if network.config.model_type in FAMILIES:
        return longest_input(network.config)
    return int(getattr(network.config, "max_position_embeddings", None) or 512) - 2
