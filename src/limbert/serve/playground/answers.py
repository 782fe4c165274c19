"""The menu, the answers and the live state as the page reads them: plain values, milliseconds, percent left to it."""

from typing import Any

from limbert.core.space import is_width_depth_name, parse_width_depth
from limbert.core.task_types import MULTI_LABEL_THRESHOLD
from limbert.data.tasks import Task
from limbert.serve.scores import check_finite, label_names, score_function
from limbert.serve.service import RequestOutput, Service
from limbert.serve.variants import Variant


def model_json(service: Service) -> dict[str, Any]:
    """What can be asked: the task, and every size with what is known of it."""
    sizes, task = service.variants.variants, service.task
    return {
        "name": service.model_name,
        "task": {"name": task.name, "kind": task.task_type, "labels": list(task.labels)},
        "pair": _pair_requirement(task),
        "max_tokens": service.max_length,
        "full": service.variants.full.name,
        "sizes": [_variant_json(size) for size in sizes],
    }


def _pair_requirement(task: Task) -> str:
    """Whether a text comes with a second one; where the model does not know, the person does."""
    if task.has_pairs is None:
        return "optional"
    return "needed" if task.has_pairs else "none"


def _variant_json(variant: Variant) -> dict[str, Any]:
    width, depth = (
        parse_width_depth(variant.name)
        if variant.kind == "subnet" and is_width_depth_name(variant.name)
        else (None, None)
    )
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
    """One text's answer: its labels or value, all scores in falling order, what ran, and where the time went.

    Raises:
        Fault: where an output is no finite number.
    """
    (row,) = output.outputs
    check_finite(row.logits)
    regression = task.task_type == "regression"
    scores = zip(label_names(task), score_function(task)(row.logits), strict=True)
    ranked = [] if regression else sorted(scores, key=lambda pair: -pair[1])
    several = task.task_type == "multi-label"
    return {
        "size": row.variant,
        "labels": [label for label, score in ranked if score > MULTI_LABEL_THRESHOLD]
        if several
        else [pair[0] for pair in ranked[:1]],
        "value": row.logits[0] if regression else None,
        "scores": ranked,
        "tokens": row.tokens,
        "truncated": row.truncated,
        "flops": row.flops,
        "layers": row.layers,
        "widths": row.widths,
        "milliseconds": {
            "tokenisation": 1000 * output.timing.tokenization,
            "queue": 1000 * output.timing.queue,
            "inference": 1000 * output.timing.inference,
        },
    }


def compare_with_full(prediction: dict[str, Any], full: dict[str, Any] | None) -> dict[str, Any]:
    """An answer beside the full model's: same labels or not, the difference of values, its share of the FLOPs."""
    if full is None:
        return {"agrees": None, "difference": None, "flops_share": None}
    share = prediction["flops"] / full["flops"]
    if prediction["value"] is not None:
        return {"agrees": None, "difference": prediction["value"] - full["value"], "flops_share": share}
    return {"agrees": set(prediction["labels"]) == set(full["labels"]), "difference": None, "flops_share": share}


def status_json(service: Service) -> dict[str, Any]:
    """How the server does at this moment; times in milliseconds, absent where nothing was answered lately."""
    now = service.snapshot()
    return {
        "state": "out of order" if not service.healthy else "ready" if service.ready else "starting or stopping",
        "workers": service.settings.workers,
        "size": now.variant,
        "queued": now.queued,
        "queued_tokens": now.queued_tokens,
        "running": now.running,
        "requests_per_second": now.requests_per_second,
        "p50_ms": None if now.p50 is None else 1000 * now.p50,
        "p99_ms": None if now.p99 is None else 1000 * now.p99,
        "refused": now.refused,
        "answered": now.answered,
        "sizes": dict(now.texts_by_variant),
        "uptime": now.uptime,
    }
