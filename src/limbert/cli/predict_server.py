"""``limbert predict --server``: predictions from a server instead of a model on this machine."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from limbert.core.config import DataConfig, config_field, require
from limbert.core.task_types import MULTI_LABEL_THRESHOLD
from limbert.errors import ConfigError

if TYPE_CHECKING:
    from limbert.cli.predict_options import PredictOptions
    from limbert.client import ServerPrediction
    from limbert.inference.prediction_files import InputRows


@dataclass(frozen=True)
class ServerOptions:
    """Options of ``limbert predict`` that name a server instead of a model on this machine."""

    server: str | None = config_field(None, "URL of a running limbert serve, instead of RUN")
    api_key: str | None = config_field(None, "API key of the server", envvar="LIMBERT_API_KEY")


_SERVER_OPTIONS = {
    *("server", "api_key", "subnet", "policy", "as_json", "abstain_below"),
    *("text", "pair", "input", "output", "text_column", "pair_column", "keep", "skip_bad_rows", "top_k", "scores"),
}


def check_server_options(context: typer.Context) -> None:
    """Require either RUN or ``--server``, and refuse options of the other.

    Raises:
        ConfigError: naming the option.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if ("run" in given) == ("server" in given):
        both = "not both" if "run" in given else "none is given"
        raise ConfigError(f"provide either RUN, a model on this machine, or --server URL; {both}")
    if "run" in given and "api_key" in given:
        raise ConfigError("--api-key is for --server; a model on this machine needs none")
    for name in given if "server" in given else ():
        if name not in _SERVER_OPTIONS:
            raise ConfigError(f"--{name.replace('_', '-')} is for a model on this machine; the server has its own")


def predict_on_server(
    server: ServerOptions,
    options: "PredictOptions",
    columns: dict[str, Any],
    *,
    subnet: str | None = None,
    policy: str | None = None,
) -> "tuple[InputRows, list[dict[str, Any]]]":
    """Rows of the command line or of a file, and their predictions as ``limbert predict`` writes them.

    Without a sub-network or policy the server's policy decides; a prediction names its sub-network as ``size``.

    Raises:
        ConfigError: for an invalid URL, before the file is read.
        DataError: for a file that cannot be read.
        RemoteError: if the server cannot be reached or refuses.
    """
    from limbert.cli.console import progress_bar
    from limbert.client import Client
    from limbert.data.readers import Examples
    from limbert.inference.prediction_files import given_rows

    client = Client(str(server.server), api_key=server.api_key)
    if options.input is None:
        inputs = given_rows(Examples(options.text, options.pair or None, None))
    else:
        inputs = options.read_input(DataConfig(**columns))
    examples, rows = inputs.examples, list[dict[str, Any]]()
    with progress_bar("predicting") as advance, client:
        chunk_size, task_type = 16 * client.max_batch_size, client.task_type
        has_scores = options.scores or options.top_k is not None
        require(not has_scores or task_type != "regression", "top k", options.top_k, "left out: a regression has none")
        for start in range(0, len(examples), chunk_size):
            pairs = None if examples.pairs is None else examples.pairs[start : start + chunk_size]
            texts = examples.texts[start : start + chunk_size]
            for prediction in client.predict(texts, pairs=pairs, subnet=subnet, policy=policy):
                rows.append(_prediction_json(prediction, task_type))
                if has_scores:
                    best = [*prediction.scores.items()][: None if options.scores else options.top_k]
                    rows[-1]["scores"] = [{"label": label, "score": score} for label, score in best]
                if prediction.subnet:
                    rows[-1]["size"] = prediction.subnet
            advance(len(rows), len(examples))
    return inputs, rows


def _prediction_json(prediction: "ServerPrediction", task_type: str) -> dict[str, Any]:
    if task_type == "multi-label":
        scores = [{"label": label, "score": score} for label, score in prediction.scores.items()]
        return {"labels": [label for label in scores if label["score"] > MULTI_LABEL_THRESHOLD]}  # type: ignore[operator]
    score = {"score": prediction.score}
    return score if prediction.label is None else {"label": prediction.label, **score}
