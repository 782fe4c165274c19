"""JSON that the playground shows: the model, predictions, and the state of the server."""

from typing import Any

from limbert.core.space import is_width_depth_name, parse_width_depth
from limbert.core.task_types import MULTI_LABEL_THRESHOLD
from limbert.data.tasks import Task
from limbert.serve.responses import check_finite, label_names, score_function
from limbert.serve.runner import RequestOutput
from limbert.serve.service import Service
from limbert.serve.variants import Variant


def model_json(service: Service) -> dict[str, Any]:
    """The task and the variants of a model."""
    task = service.task
    return {
        "name": service.model_name,
        "task": {"name": task.name, "task_type": task.task_type, "labels": list(task.labels)},
        "pair": "optional" if task.has_pairs is None else "required" if task.has_pairs else "none",
        "max_tokens": service.max_length,
        "full": service.variants.full.name,
        "variants": [_variant_json(variant) for variant in service.variants.variants],
    }


def _variant_json(variant: Variant) -> dict[str, Any]:
    on_grid = variant.kind == "subnet" and is_width_depth_name(variant.name)
    width, depth = parse_width_depth(variant.name) if on_grid else (None, None)
    return {
        "name": variant.name,
        "kind": variant.kind,
        "policy": str(variant.policy),
        "width": width,
        "depth": depth,
        "quality": variant.quality,
        "metric": variant.metric,
        "data": variant.eval_split,
        "flops": variant.flops,
    }


def prediction_json(task: Task, output: RequestOutput) -> dict[str, Any]:
    """The prediction for one text: labels or value, all scores (highest first), what ran, and milliseconds by stage.

    Raises:
        InferenceError: if an output is not finite.
    """
    (text,) = output.outputs
    check_finite(text.logits)
    is_regression = task.task_type == "regression"
    scores = zip(label_names(task), score_function(task)(text.logits), strict=True)
    ranked = [] if is_regression else sorted(scores, key=lambda pair: -pair[1])
    applying = [label for label, score in ranked if score > MULTI_LABEL_THRESHOLD]
    return {
        "variant": text.variant,
        "labels": applying if task.task_type == "multi-label" else [label for label, _ in ranked[:1]],
        "value": text.logits[0] if is_regression else None,
        "scores": ranked,
        "tokens": text.tokens,
        "truncated": text.truncated,
        "flops": text.flops,
        "layers": text.layers,
        "widths": text.widths,
        "milliseconds": {
            "tokenization": 1000 * output.timing.tokenization,
            "queue": 1000 * output.timing.queue,
            "inference": 1000 * output.timing.inference,
        },
    }


def compare_with_full(prediction: dict[str, Any], full: dict[str, Any] | None) -> dict[str, Any]:
    """Whether a prediction has the full model's labels, the difference of values, and the fraction of its FLOPs."""
    if full is None:
        return {"agrees": None, "difference": None, "flops_fraction": None}
    fraction = prediction["flops"] / full["flops"]
    if prediction["value"] is not None:
        return {"agrees": None, "difference": prediction["value"] - full["value"], "flops_fraction": fraction}
    agrees = {*prediction["labels"]} == {*full["labels"]}
    return {"agrees": agrees, "difference": None, "flops_fraction": fraction}


def status_json(service: Service) -> dict[str, Any]:
    """The server at this moment; latencies are None if no request was completed lately."""
    now = service.snapshot()
    return {
        "state": "failed" if not service.healthy else "ready" if service.ready else "starting or shutting down",
        "workers": service.settings.workers,
        "variant": now.variant,
        "queued": now.queued,
        "queued_tokens": now.queued_tokens,
        "running": now.running,
        "requests_per_second": now.requests_per_second,
        "p50_ms": None if now.p50 is None else 1000 * now.p50,
        "p99_ms": None if now.p99 is None else 1000 * now.p99,
        "refused": now.refused,
        "completed": now.completed,
        "texts_by_variant": now.texts_by_variant,
        "uptime": now.uptime,
    }
