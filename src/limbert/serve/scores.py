"""From a model's outputs to labels with scores. Plain floats: for a handful of classes that is quicker than arrays."""

import math
from collections.abc import Callable, Sequence

from limbert.data.tasks import Task
from limbert.errors import UnsupportedModelError
from limbert.serve.errors import ApiError

ScoreFunction = Callable[[Sequence[float]], list[float]]


def softmax(logits: Sequence[float]) -> list[float]:
    """Probabilities that add up to 1."""
    highest = max(logits)
    weights = [math.exp(value - highest) for value in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def sigmoid(logits: Sequence[float]) -> list[float]:
    """A probability for each by itself."""
    return [1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value)) for value in logits]


def identity(logits: Sequence[float]) -> list[float]:
    """The outputs as they are."""
    return list(logits)


SCORE_FUNCTIONS: dict[str, ScoreFunction] = {"softmax": softmax, "sigmoid": sigmoid, "none": identity}
_SCORE_FUNCTION_BY_TASK_TYPE: dict[str, ScoreFunction] = {
    "classification": softmax,
    "multi-label": sigmoid,
    "regression": identity,
}


def score_function(task: Task) -> ScoreFunction:
    """What makes scores of this task's outputs.

    Raises:
        UnsupportedModelError: for a task whose answers are no scores of whole texts.
    """
    if task.task_type not in _SCORE_FUNCTION_BY_TASK_TYPE:
        raise UnsupportedModelError(
            f"task is {task.task_type}; the server answers {', '.join(_SCORE_FUNCTION_BY_TASK_TYPE)}"
        )
    return _SCORE_FUNCTION_BY_TASK_TYPE[task.task_type]


def label_names(task: Task) -> tuple[str, ...]:
    """A name for each output; a regression's one is called as Transformers calls it."""
    return task.labels or ("LABEL_0",)


def check_finite(logits: Sequence[float]) -> None:
    """Refuse to answer with what is no number.

    Raises:
        Fault: 424.
    """
    if not all(map(math.isfinite, logits)):
        raise ApiError(424, "the model's outputs for this text are not finite")


def ranked_scores(
    logits: Sequence[float], labels: Sequence[str], function: ScoreFunction, *, top_k: int | None = None
) -> list[dict[str, str | float]]:
    """``{"label", "score"}`` of each output, highest score first, at most ``top`` of them.

    Raises:
        Fault: 424 where an output is no finite number.
    """
    check_finite(logits)
    pairs = sorted(zip(function(logits), labels, strict=True), key=lambda pair: -pair[0])
    return [{"label": label, "score": score} for score, label in pairs[:top_k]]
