"""JSON that the playground shows: the model, predictions, and the state of the server."""

from dataclasses import asdict
from typing import Any

from limbert.core.space import is_width_depth_name, parse_width_depth
from limbert.data.tasks import Task
from limbert.serve.protocols.health import VariantInfo
from limbert.serve.responses import abstains, predicted_labels, scores_by_label
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
    info = VariantInfo.model_validate(variant).model_dump()
    return info | {"policy": str(variant.policy), "width": width, "depth": depth}


def prediction_json(task: Task, output: RequestOutput, abstain_below: float | None = None) -> dict[str, Any]:
    """The prediction for one text: labels or value, all scores (highest first), what ran, and milliseconds by stage."""
    (text,) = output.outputs
    is_regression, scores = task.task_type == "regression", scores_by_label(task, text.logits)
    abstained = abstains(text.logits, task, abstain_below)
    return {
        "variant": text.variant,
        "labels": [] if abstained else predicted_labels(task, text.logits),
        "abstained": abstained,
        "value": text.logits[0] if is_regression else None,
        "scores": [] if is_regression else scores,
        "tokens": text.tokens,
        "truncated": text.truncated,
        "flops": text.flops,
        "layers": text.layers,
        "widths": text.widths,
        "milliseconds": output.timing.milliseconds(),
    }


def compare_with_full(prediction: dict[str, Any], full: dict[str, Any] | None) -> dict[str, Any]:
    """Whether a prediction has the full model's labels, the difference of values, and the fraction of its FLOPs."""
    comparison = {"agrees": None, "difference": None, "flops_fraction": None}
    if full is None:
        return comparison
    comparison["flops_fraction"] = prediction["flops"] / full["flops"]
    if prediction["value"] is not None:
        return comparison | {"difference": prediction["value"] - full["value"]}
    return comparison | {"agrees": {*prediction["labels"]} == {*full["labels"]}}


def status_json(service: Service) -> dict[str, Any]:
    """The server at this moment; latencies are None if no request was completed lately."""
    return asdict(service.snapshot()) | {
        "state": "failed" if not service.healthy else "ready" if service.ready else "starting or shutting down",
        "workers": service.settings.workers,
    }
