"""``limbert predict --server``: predictions from a server instead of a model on this machine."""

from typing import TYPE_CHECKING, Any

from limbert.cli.predict_options import PredictOptions, ServerOptions
from limbert.core.config import DataConfig, require
from limbert.core.task_types import MULTI_LABEL_THRESHOLD

if TYPE_CHECKING:
    from limbert.client import ServerPrediction
    from limbert.inference.prediction_files import InputRows


def predict_on_server(
    server: ServerOptions, options: PredictOptions, columns: dict[str, Any], **variant: Any
) -> "tuple[InputRows, list[dict[str, Any]]]":
    """Rows of the command line or of a file, and their predictions as ``limbert predict`` writes them.

    Without a ``subnet`` or ``policy`` the server's policy decides; a prediction names its sub-network as ``size``.

    Raises:
        ConfigError: for an invalid URL, before the file is read.
        DataError: for a file that cannot be read.
        RemoteError: if the server cannot be reached or refuses.
    """
    from limbert.cli.console import ProgressBar
    from limbert.client import Client
    from limbert.data.readers import Examples
    from limbert.inference.prediction_files import given_rows

    client = Client(str(server.server), api_key=server.api_key)
    if options.input is None:
        inputs = given_rows(Examples(options.text, options.pair or None, None))
    else:
        inputs = options.read_input(DataConfig(**columns))
    examples, rows = inputs.examples, list[dict[str, Any]]()
    with ProgressBar() as bar, client:
        chunk_size, task_type = 16 * client.max_batch_size, client.task_type
        has_scores = options.scores or options.top_k is not None
        require(not has_scores or task_type != "regression", "top k", options.top_k, "left out: a regression has none")
        for start in range(0, len(examples), chunk_size):
            chunk = examples.select(range(start, min(start + chunk_size, len(examples))))
            predictions = client.predict(chunk.texts, pairs=chunk.pairs, **variant)
            rows += [_prediction_json(prediction, task_type, options) for prediction in predictions]
            bar("predicting", len(rows), len(examples))
    return inputs, rows


def _prediction_json(prediction: "ServerPrediction", task_type: str, options: PredictOptions) -> dict[str, Any]:
    row: dict[str, Any] = {} if prediction.label is None else {"label": prediction.label}
    row["score"] = prediction.score
    scores: list[dict[str, Any]] = [{"label": label, "score": score} for label, score in prediction.scores.items()]
    if task_type == "multi-label":
        row = {"labels": [label for label in scores if label["score"] > MULTI_LABEL_THRESHOLD]}
    if options.scores or options.top_k is not None:
        row["scores"] = scores[: None if options.scores else options.top_k]
    return row | ({"size": prediction.subnet} if prediction.subnet else {})
