"""``limbert predict --server``: predictions from a server instead of a model on this machine."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from limbert.core.task_types import MULTI_LABEL_THRESHOLD
from limbert.errors import ConfigError

if TYPE_CHECKING:
    from limbert.client import Client, ServerPrediction
    from limbert.data.readers import Examples

_LOCAL_ONLY_OPTIONS = (
    *("widths", "exit_threshold", "exit_rule", "batch_size", "precision", "threads", "device"),
    *("engine", "workers", "keep", "shard_rows", "skip_bad_rows"),
)


def check_server_options(context: typer.Context) -> None:
    """Require either RUN or ``--server``, and refuse options of the other.

    Raises:
        ConfigError: naming the option.
    """

    def given(name: str) -> bool:
        source = context.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    if given("run") == given("server"):
        both = "not both" if given("run") else "none is given"
        raise ConfigError(f"provide either RUN, a model on this machine, or --server URL; {both}")
    if given("run") and given("api_key"):
        raise ConfigError("--api-key is for --server; a model on this machine needs none")
    for name in _LOCAL_ONLY_OPTIONS if given("server") else ():
        if given(name):
            raise ConfigError(f"--{name.replace('_', '-')} is for a model on this machine; the server has its own")


@dataclass(frozen=True)
class RemotePredictor:
    """A server and the variant to request; without subnet and policy the server's policy decides.

    Raises:
        ConfigError: for an invalid URL.
    """

    url: str
    api_key: str | None
    subnet: str | None
    policy: str | None

    def __post_init__(self) -> None:
        assert self.client  # an invalid URL is refused before any file is read

    @cached_property
    def client(self) -> "Client":
        """The client, which keeps connections open."""
        from limbert.client import Client

        return Client(self.url, api_key=self.api_key)

    def load_inputs(
        self,
        text: list[str] | None,
        pair: list[str] | None,
        path: str | None,
        *,
        text_column: str | None,
        pair_column: str | None,
    ) -> "Examples":
        """Texts of the command line or of a file (by default of its first column of text).

        Raises:
            DataError: for a file that cannot be read.
        """
        from limbert.core.config import DataConfig
        from limbert.data.readers import Examples, read_texts

        if path is None:
            return Examples(tuple(text or ()), tuple(pair) if pair else None, None)
        return read_texts(Path(path).expanduser(), DataConfig(text_column=text_column, pair_column=pair_column))

    def predict(self, examples: "Examples") -> list[dict[str, Any]]:
        """Predictions as ``limbert predict`` writes them, with the variant as ``size`` where it is known.

        Raises:
            RemoteError: if the server cannot be reached or refuses.
        """
        from limbert.cli import show

        chunk_size = 16 * self.client.max_batch_size
        rows: list[dict[str, Any]] = []
        with show.progress_bar("predicting") as advance, self.client as client:
            for start in range(0, len(examples), chunk_size):
                pairs = None if examples.pairs is None else examples.pairs[start : start + chunk_size]
                texts = examples.texts[start : start + chunk_size]
                for prediction in client.predict(texts, pairs=pairs, subnet=self.subnet, policy=self.policy):
                    row = _prediction_json(prediction, client.task_type)
                    rows.append(row | {"size": prediction.subnet} if prediction.subnet else row)
                advance(len(rows), len(examples))
        return rows


def _prediction_json(prediction: "ServerPrediction", task_type: str) -> dict[str, Any]:
    if task_type == "multi-label":
        applying = [
            {"label": label, "score": score}
            for label, score in prediction.scores.items()
            if score > MULTI_LABEL_THRESHOLD
        ]
        return {"labels": applying}
    score = {"score": prediction.score}
    return score if prediction.label is None else {"label": prediction.label, **score}
