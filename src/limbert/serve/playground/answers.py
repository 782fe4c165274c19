"""The menu, the answers and the live state as the page reads them: plain values, milliseconds, percent left to it."""

from typing import Any

from limbert.core.space import is_point, parse_point
from limbert.data.tasks import Task
from limbert.serve.scores import check_finite, function_of, labels_of
from limbert.serve.service import Answers, Service
from limbert.serve.variants import Size

_CHOSEN = 0.5  # a label of a multi-label task holds where its probability is over this


def menu_values(service: Service) -> dict[str, Any]:
    """What can be asked: the task, and every size with what is known of it."""
    sizes, task = service.menu.sizes, service.task
    return {
        "name": service.name,
        "task": {"name": task.name, "kind": task.kind, "labels": list(task.labels)},
        "pair": _pair(task),
        "max_tokens": service.max_tokens,
        "full": service.menu.full.name,
        "sizes": [_size_values(size) for size in sizes],
    }


def _pair(task: Task) -> str:
    """Whether a text comes with a second one; where the model does not know, the person does."""
    if task.pairs is None:
        return "optional"
    return "needed" if task.pairs else "none"


def _size_values(size: Size) -> dict[str, Any]:
    width, depth = parse_point(size.name) if size.kind == "subnet" and is_point(size.name) else (None, None)
    return {
        "name": size.name,
        "kind": size.kind,
        "policy": str(size.policy),
        "width": width,
        "depth": depth,
        "quality": size.quality,
        "metric": size.metric,
        "data": size.data,
        "flops": size.flops,
    }


def answer_values(task: Task, answers: Answers) -> dict[str, Any]:
    """One text's answer: its labels or value, all scores in falling order, what ran, and where the time went.

    Raises:
        Fault: where an output is no finite number.
    """
    (row,) = answers.rows
    check_finite(row.logits)
    regression = task.kind == "regression"
    scores = zip(labels_of(task), function_of(task)(row.logits), strict=True)
    ranked = [] if regression else sorted(scores, key=lambda pair: -pair[1])
    several = task.kind == "multi-label"
    return {
        "size": row.size,
        "labels": [label for label, score in ranked if score > _CHOSEN]
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
            "tokenisation": 1000 * answers.timing.tokenisation,
            "queue": 1000 * answers.timing.queue,
            "inference": 1000 * answers.timing.inference,
        },
    }


def compared(answer: dict[str, Any], full: dict[str, Any] | None) -> dict[str, Any]:
    """An answer beside the full model's: same labels or not, the difference of values, its share of the FLOPs."""
    if full is None:
        return {"agrees": None, "difference": None, "flops_share": None}
    share = answer["flops"] / full["flops"]
    if answer["value"] is not None:
        return {"agrees": None, "difference": answer["value"] - full["value"], "flops_share": share}
    return {"agrees": set(answer["labels"]) == set(full["labels"]), "difference": None, "flops_share": share}


def live_values(service: Service) -> dict[str, Any]:
    """How the server does at this moment; times in milliseconds, absent where nothing was answered lately."""
    now = service.snapshot()
    return {
        "state": "out of order" if not service.healthy else "ready" if service.ready else "starting or stopping",
        "workers": service.settings.workers,
        "size": now.size,
        "queued": now.queued,
        "queued_tokens": now.queued_tokens,
        "running": now.running,
        "requests_per_second": now.requests_per_second,
        "p50_ms": None if now.p50 is None else 1000 * now.p50,
        "p99_ms": None if now.p99 is None else 1000 * now.p99,
        "refused": now.refused,
        "answered": now.answered,
        "sizes": dict(now.sizes),
        "uptime": now.uptime,
    }
