"""The settings of data augmentation; the ``help`` of a field is the command's help."""

from dataclasses import dataclass

from limbert.core.config import Precision, require, require_seed, setting

SMALL_TASK = 10_000  # training rows below which an example gets more copies


@dataclass(frozen=True)
class AugmentConfig:
    """How copies of training rows are made by replacing words (TinyBERT, arXiv 1909.10351, algorithm 1)."""

    lm: str = setting("", "masked language model: a local folder or a name on the Hugging Face hub")
    output: str = setting("", "folder for train_aug.*, in the format of the training file")
    neighbours: str = setting(
        "embeddings",
        "where words of several pieces find their neighbours: a GloVe or word2vec text file, or 'embeddings', "
        "the language model's own",
    )
    copies: int | None = setting(None, "copies an example (default: 30 below 10,000 training rows, else 20)")
    candidates: int = setting(15, "words that a word may be replaced by")
    probability: float = setting(0.4, "probability of replacing a word")
    stop_words: str | None = setting(None, "file of words to keep, one a line (default: English function words)")
    context: int = setting(128, "tokens that the language model sees around a word, special ones included")
    with_logits: str | None = setting(None, "fine-tuned model whose logits are added to each copy")
    seed: int = setting(42, "seed of everything that is random")
    precision: Precision = setting("fp32", "fp32, or bf16 autocast")

    def __post_init__(self) -> None:
        require_seed(self.seed)
        require(bool(self.lm), "language model", self.lm, "a folder or a hub name")
        require(bool(self.output), "output", self.output, "a folder")
        require(self.copies is None or self.copies > 0, "copies", self.copies, "at least 1")
        require(self.candidates > 0, "candidates", self.candidates, "at least 1")
        require(0 < self.probability <= 1, "probability", self.probability, "above 0 and at most 1")
        require(self.context >= 8, "context", self.context, "at least 8 tokens")
        require(self.precision in ("fp32", "bf16"), "precision", self.precision, "fp32 or bf16")

    def copies_of(self, rows: int) -> int:
        """Copies an example, for so many training rows."""
        return self.copies or (30 if rows < SMALL_TASK else 20)
