"""Options of ``limbert predict``: the texts, and what is written about them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbert.core.config import DataConfig, config_field, require
from limbert.errors import ConfigError

if TYPE_CHECKING:
    from limbert.inference.prediction_files import InputRows


@dataclass(frozen=True)
class PredictOptions:
    """The texts, and what is written about them."""

    text: tuple[str, ...] = config_field((), "text (or question); may be repeated", repeats=True)
    pair: tuple[str, ...] = config_field((), "second text, or context of a question; one for each --text", repeats=True)
    input: str | None = config_field(
        None, "file or pipe: CSV, TSV, JSONL, Parquet, plain lines, CoNLL or SQuAD; - is standard input"
    )
    output: str | None = config_field(
        None, "file for the predictions: .csv, .parquet, or else JSONL; - is standard output"
    )
    keep: tuple[str, ...] | None = config_field(None, "input columns to repeat in the output, A,B (default: all)")
    skip_bad_rows: bool = config_field(False, "rows without a text get an empty prediction instead of an error")
    top_k: int | None = config_field(None, "also the scores of the K best labels", minimum=1)
    scores: bool = config_field(False, "also the scores of all labels")
    abstain_below: float | None = config_field(None, "no label where its score is below this, such as 0.7")

    def __post_init__(self) -> None:
        if bool(self.text) == bool(self.input):
            raise ConfigError("Provide --text or --input")
        if self.pair and len(self.pair) != len(self.text):
            raise ConfigError(f"{len(self.pair)} --pair for {len(self.text)} --text; each text needs one")
        abstain = self.abstain_below
        require(abstain is None or 0 <= abstain <= 1, "abstain below", abstain, "a probability, from 0 to 1")
        if self.keep == ():
            raise ConfigError("--keep is ''; name columns of the input, or leave it out to keep all")

    def read_input(self, config: DataConfig, **reading: Any) -> "InputRows":
        """The rows of ``--input``."""
        from limbert.inference.prediction_files import read_rows

        return read_rows(str(self.input), config, keep=self.keep, skip_bad_rows=self.skip_bad_rows, **reading)
