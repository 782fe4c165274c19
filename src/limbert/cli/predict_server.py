"""``limbert predict --server``: the same answers, from a server instead of a model on this machine."""

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
    """Refuse options that say both, or neither, of a model on this machine and a server.

    Raises:
        ConfigError: naming the option.
    """

    def given(name: str) -> bool:
        source = context.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    if given("run") == given("server"):
        both = "not both" if given("run") else "none is given"
        raise ConfigError(f"give either RUN, a model on this machine, or --server URL; {both}")
    if given("run") and given("api_key"):
        raise ConfigError("--api-key is for --server; a model on this machine asks for none")
    for name in _LOCAL_ONLY_OPTIONS if given("server") else ():
        if given(name):
            raise ConfigError(f"--{name.replace('_', '-')} is for a model on this machine; the server has its own")


@dataclass(frozen=True)
class RemotePredictor:
    """Who is asked, and for which size; without subnet and policy the server chooses.

    Raises:
        ConfigError: for a URL that is none.
    """

    url: str
    api_key: str | None
    subnet: str | None
    policy: str | None

    def __post_init__(self) -> None:
        assert self.client  # refuses a bad URL before any file is read

    @cached_property
    def client(self) -> "Client":
        """Open connections are its own."""
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
        """The texts of the command line, or of a file; its first column of text where no column is named.

        Raises:
            DataError: for a file that cannot be read.
        """
        from limbert.core.config import DataConfig
        from limbert.data.readers import Examples, read_texts

        if path is None:
            return Examples(tuple(text or ()), tuple(pair) if pair else None, None)
        return read_texts(Path(path).expanduser(), DataConfig(text_column=text_column, pair_column=pair_column))

    def predict(self, examples: "Examples") -> list[dict[str, Any]]:
        """The answer to each, as ``limbert predict`` writes it; with the size where it is known.

        Raises:
            RemoteError: if the server does not answer.
        """
        from limbert.cli import show

        part = 16 * self.client.max_batch_size
        answers: list[dict[str, Any]] = []
        with show.progress_bar("answering") as advance, self.client as client:
            for start in range(0, len(examples), part):
                pairs = None if examples.pairs is None else examples.pairs[start : start + part]
                texts = examples.texts[start : start + part]
                for answer in client.predict(texts, pairs=pairs, subnet=self.subnet, policy=self.policy):
                    row = _prediction_json(answer, client.task_type)
                    answers.append(row | {"size": answer.subnet} if answer.subnet else row)
                advance(len(answers), len(examples))
        return answers


def _prediction_json(prediction: "ServerPrediction", task_type: str) -> dict[str, Any]:
    """As a prediction without a server is written."""
    if task_type == "multi-label":
        held = [
            {"label": label, "score": score}
            for label, score in prediction.scores.items()
            if score > MULTI_LABEL_THRESHOLD
        ]
        return {"labels": held}
    return (
        {"score": prediction.score}
        if prediction.label is None
        else {"label": prediction.label, "score": prediction.score}
    )
