"""Options of ``limbert predict``: the texts, what is written about them, and where the predictions are made."""

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


@dataclass(frozen=True)
class RayOptions:
    """The engine, and the options that need ``--engine ray``."""

    engine: str | None = config_field(
        None, "plain (this process, the default) or ray (workers on this machine, or on $RAY_ADDRESS)"
    )
    workers: int | None = config_field(None, "workers (default: one for each --threads cores)", minimum=1)
    shard_rows: int | None = config_field(None, "most rows in an output file (default: 5000)", minimum=1)

    @property
    def is_used(self) -> bool:
        """Whether the predictions are made on Ray."""
        return self.engine == "ray"

    def check(self, options: PredictOptions, *, device: str, long_texts: str) -> None:
        """Refuse an unknown engine, and options of the other engine, before a model is loaded.

        Raises:
            ConfigError: naming the option.
        """
        require(self.engine in (None, "plain", "ray"), "engine", self.engine, "plain or ray")
        given: dict[str, Any] = {name: getattr(self, name) for name in ("workers", "shard_rows")}
        if self.is_used:
            if not options.input or not options.output:
                raise ConfigError("--engine ray reads files and writes a folder: provide --input and --output")
            given = {name: getattr(options, name) or None for name in ("scores", "top_k", "abstain_below")}
            given |= {"long_texts": None if long_texts == "truncate" else long_texts}
            given |= {f"device {device}": None if device in ("auto", "cpu") else device}
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"--{name.replace('_', '-')} is for --engine {'plain' if self.is_used else 'ray'}")


@dataclass(frozen=True)
class ServerOptions:
    """Options that name a server instead of a model on this machine."""

    server: str | None = config_field(None, "URL of a running limbert serve, instead of RUN")
    api_key: str | None = config_field(None, "API key of the server", envvar="LIMBERT_API_KEY")
