"""The settings of a corpus: which text a model is pre-trained on, and how words of it are hidden."""

from dataclasses import dataclass
from typing import Literal

from limbert.core.config import require, setting

DocumentRule = Literal["line", "paragraph"]


@dataclass(frozen=True)
class CorpusConfig:
    """Plain text, how it is cut into documents and sequences, and what is hidden in it."""

    corpus: tuple[str, ...] = setting(
        (),
        "text to learn from: a file (.txt, .raw: plain text; .jsonl, .csv, .tsv, .parquet: a column of it), a folder, "
        "or a glob in quotes; may be repeated",
    )
    dev: tuple[str, ...] = setting(
        (), "text that is only ever reported on, in the same forms (default: sequences kept back from the corpus)"
    )
    text_column: str | None = setting(
        None, "column with the text in files of columns (default: 'text', or the first column of text)"
    )
    documents: DocumentRule = setting(
        "line",
        "in plain text a document is a line, or (paragraph) ends at a blank line; [SEP] stands between them",
    )
    skip_bad_rows: bool = setting(False, "skip malformed lines and rows, instead of stopping at the first")
    max_length: int = setting(128, "tokens of a sequence, special ones included; all are filled to this length")
    mask_share: float = setting(0.15, "share of the tokens that are hidden and asked for")
    whole_word: bool = setting(False, "hide whole words: all tokens of a word, or none")

    def __post_init__(self) -> None:
        require(bool(self.corpus), "corpus", list(self.corpus), "at least one file, folder or glob")
        require(self.documents in ("line", "paragraph"), "documents", self.documents, "line or paragraph")
        require(self.max_length >= 8, "maximum length", self.max_length, "at least 8 tokens")
        require(0 < self.mask_share <= 0.5, "mask share", self.mask_share, "above 0 and at most 0.5")
