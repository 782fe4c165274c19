"""Options of ``limbert predict``: the texts, what is written about them, and where the predictions are made."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

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


@dataclass(frozen=True)
class ServerOptions:
    """Options that name a server instead of a model on this machine."""

    server: str | None = config_field(None, "URL of a running limbert serve, instead of RUN")
    api_key: str | None = config_field(None, "API key of the server", envvar="LIMBERT_API_KEY")


_ON_SERVER = {
    *("server", "api_key", "subnet", "policy", "as_json", "abstain_below", "text", "pair", "input", "output"),
    *("text_column", "pair_column", "keep", "skip_bad_rows", "top_k", "scores"),
}
_ON_RAY_ALONE, _NOT_ON_RAY = {"workers", "shard_rows"}, {"scores", "top_k", "abstain_below", "long_texts"}


def check_engine(context: typer.Context) -> None:
    """Require either RUN or ``--server``, and refuse options that the engine does not have, before a model is loaded.

    Raises:
        ConfigError: naming the option.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    if ("run" in given) == ("server" in given):
        both = "not both" if "run" in given else "none is given"
        raise ConfigError(f"provide either RUN, a model on this machine, or --server URL; {both}")
    engine, device = context.params["engine"] or "plain", context.params["device"]
    require(engine in ("plain", "ray"), "engine", engine, "plain or ray")
    where, refused = f"--engine {'plain' if engine == 'ray' else 'ray'}", _ON_RAY_ALONE
    if "server" in given:
        where, refused = "a model on this machine; the server has its own", given - _ON_SERVER
    elif "api_key" in given:
        where, refused = "--server; a model on this machine needs none", {"api_key"}
    elif engine == "ray":
        refused = _NOT_ON_RAY
        if not context.params["input"] or not context.params["output"]:
            raise ConfigError("--engine ray reads files and writes a folder: provide --input and --output")
        if device not in ("auto", "cpu"):
            raise ConfigError(f"--device {device} is for {where}")
    for name in sorted(given & refused):
        raise ConfigError(f"--{name.replace('_', '-')} is for {where}")
