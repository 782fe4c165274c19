"""Which entries of a tokenizer's vocabulary are whole words: found by asking the tokenizer, whatever its kind.

An entry is a whole word if the word that it stands for comes back as this one entry. Byte-level and SentencePiece
tokenizers have two entries for one word, after a space and without: both count.
"""

from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from limbert.augment.words import is_word


@dataclass(frozen=True)
class WholeWords:
    """Words of one piece by their entry; the same words in both tables where the tokenizer tells spaces apart."""

    after_space: dict[int, str]
    bare: dict[int, str]  # at the start of a text, or after a bracket

    def table_of(self, entry: int) -> dict[int, str]:
        """The table with the entries that can stand in the place of this one."""
        return self.after_space if entry in self.after_space or entry not in self.bare else self.bare

    @cached_property
    def words(self) -> dict[str, int]:
        """Every word once, with its entry after a space."""
        return {word: entry for entry, word in self.after_space.items()}


def whole_words(tokenizer: PreTrainedTokenizerBase) -> WholeWords:
    """Ask a fast tokenizer for the words that are one piece."""
    special = {*tokenizer.all_special_ids}
    entries = [entry for entry in range(len(tokenizer)) if entry not in special]
    words = [text.strip() for text in tokenizer.backend_tokenizer.decode_batch([[entry] for entry in entries])]
    kept = [(entry, word) for entry, word in zip(entries, words, strict=True) if is_word(word)]
    texts = [word for _, word in kept]
    spaced = _entries(tokenizer, [f" {text}" for text in texts])
    alone = _entries(tokenizer, texts)
    after_space = {entry: word for (entry, word), found in zip(kept, spaced, strict=True) if found == [entry]}
    known = {*after_space.values()}  # an ending such as "ness" is one piece alone, but no word after a space
    bare = {entry: word for (entry, word), found in zip(kept, alone, strict=True) if found == [entry] and word in known}
    return WholeWords(after_space, bare)


def _entries(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return encoded
