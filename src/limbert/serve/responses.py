"""Logits to labels with scores, and JSON responses with headers about their cost."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from starlette.responses import Response

from limbert.core.task_types import MULTI_LABEL_THRESHOLD
from limbert.data.tasks import Task
from limbert.errors import UnsupportedModelError
from limbert.serve.errors import InferenceError
from limbert.serve.runner import RequestOutput

ScoreFunction = Callable[[np.ndarray], np.ndarray]  # both ``(texts, outputs)``


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))


_SCORE_FUNCTIONS: dict[str, ScoreFunction] = {"softmax": _softmax, "sigmoid": _sigmoid, "none": np.asarray}
_BY_TASK_TYPE = {"classification": "softmax", "multi-label": "sigmoid", "regression": "none"}


def score_function(task: Task, name: str | None = None) -> ScoreFunction:
    """Logits to scores: ``softmax``, ``sigmoid`` or ``none``, or as the task type needs.

    Raises:
        UnsupportedModelError: for a task that does not score whole texts.
    """
    if task.task_type not in _BY_TASK_TYPE:
        raise UnsupportedModelError(f"task type is {task.task_type}; the server supports {', '.join(_BY_TASK_TYPE)}")
    return _SCORE_FUNCTIONS[name or _BY_TASK_TYPE[task.task_type]]


def label_names(task: Task) -> tuple[str, ...]:
    """A name for each output; the one of a regression is ``score``."""
    return task.labels or ("score",)


def score_matrix(task: Task, logits: Sequence[Sequence[float]], *, function_name: str | None = None) -> np.ndarray:
    """The score of each output, ``(texts, outputs)``; outputs that are not finite are an `InferenceError`."""
    values = np.array(logits)
    if not np.isfinite(values).all():
        raise InferenceError("the model's outputs for this text are not finite")
    return score_function(task, function_name)(values)


def scores_by_label(task: Task, logits: Sequence[float]) -> list[tuple[str, float]]:
    """Label and score of each output of one text, highest score first."""
    scores = score_matrix(task, [logits])[0].tolist()
    return sorted(zip(label_names(task), scores, strict=True), key=lambda pair: -pair[1])


def predicted_labels(task: Task, logits: Sequence[float]) -> list[str]:
    """The most probable label, or of several those that apply, most probable first; none of a regression."""
    ranked = scores_by_label(task, logits)
    if task.task_type == "multi-label":
        return [label for label, score in ranked if score > MULTI_LABEL_THRESHOLD]
    return [] if task.task_type == "regression" else [ranked[0][0]]


def ranked_scores(
    output: RequestOutput,
    task: Task,
    *,
    function_name: str | None = None,
    top_k: int | None = None,
    abstain_below: float | None = None,
) -> list[list[dict[str, str | float | None]]]:
    """For each text ``{"label", "score"}`` of the ``top_k`` best outputs (None: of all), highest score first.

    Texts whose best probability is below ``abstain_below`` get one entry, with that score and no label.
    """
    logits, labels = [text.logits for text in output.outputs], label_names(task)
    scores = score_matrix(task, logits, function_name=function_name)
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    best = zip(order.tolist(), np.take_along_axis(scores, order, axis=-1).tolist(), strict=True)
    ranked: list[list[dict[str, str | float | None]]] = [
        [{"label": labels[index], "score": score} for index, score in zip(*row, strict=True)] for row in best
    ]
    for row, silent in zip(ranked, abstaining(task, logits, abstain_below), strict=True):
        if silent:
            row[:] = [row[0] | {"label": None}]
    return ranked


def abstaining(task: Task, logits: Sequence[Sequence[float]], abstain_below: float | None) -> list[bool]:
    """Of each text, whether its best probability is below the threshold."""
    if abstain_below is None:
        return [False] * len(logits)
    return (score_matrix(task, logits).max(axis=-1) < abstain_below).tolist()  # type: ignore[no-any-return]


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def json_response(value: Any, output: RequestOutput) -> Response:
    """The value as JSON, with `usage_headers`."""
    return Response(to_json(value), headers=usage_headers(output), media_type="application/json")


def usage_headers(output: RequestOutput) -> Mapping[str, str]:
    """Headers that name the variants that ran, time by stage, FLOPs and tokens."""
    truncated = sum(text.truncated for text in output.outputs)
    return {
        "x-limbert-size": variant_names(output),
        **{f"x-limbert-{stage}-ms": f"{value:.3f}" for stage, value in output.timing.milliseconds().items()},
        "x-limbert-flops": str(sum(text.flops for text in output.outputs)),
        "x-limbert-tokens": str(sum(text.tokens for text in output.outputs)),
        **({"x-limbert-truncated": str(truncated)} if truncated else {}),
    }


def variant_names(output: RequestOutput) -> str:
    """Names of the variants that ran, separated by commas, encoded for a header."""
    return ",".join(quote(name, safe="+:;=@ ") for name in dict.fromkeys(text.variant for text in output.outputs))
