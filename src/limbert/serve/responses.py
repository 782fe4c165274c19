"""Logits to labels with scores, and JSON responses with headers about their cost (plain floats beat arrays here)."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from limbert.core.task_types import MULTI_LABEL_THRESHOLD
from limbert.data.tasks import Task
from limbert.errors import UnsupportedModelError
from limbert.serve.errors import InferenceError
from limbert.serve.runner import RequestOutput

ScoreFunction = Callable[[Sequence[float]], list[float]]


def _softmax(logits: Sequence[float]) -> list[float]:
    highest = max(logits)
    weights = [math.exp(value - highest) for value in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def _sigmoid(logits: Sequence[float]) -> list[float]:
    return [1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value)) for value in logits]


_SCORE_FUNCTIONS: dict[str, ScoreFunction] = {"softmax": _softmax, "sigmoid": _sigmoid, "none": list}
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


def scores_by_label(
    task: Task, logits: Sequence[float], *, function_name: str | None = None
) -> list[tuple[str, float]]:
    """Label and score of each output, highest score first; outputs that are not finite are an `InferenceError`."""
    if not all(map(math.isfinite, logits)):
        raise InferenceError("the model's outputs for this text are not finite")
    scores = score_function(task, function_name)(logits)
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
    ranked = []
    for text in output.outputs:
        pairs: list[tuple[str | None, float]] = [*scores_by_label(task, text.logits, function_name=function_name)]
        if abstains(text.logits, task, abstain_below):
            pairs = [(None, pairs[0][1])]
        ranked.append([{"label": label, "score": score} for label, score in pairs[:top_k]])
    return ranked


def abstains(logits: Sequence[float], task: Task, abstain_below: float | None) -> bool:
    """Whether the best probability is below the threshold."""
    return abstain_below is not None and max(score_function(task)(logits)) < abstain_below


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
