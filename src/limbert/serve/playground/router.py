"""Routes of the playground: the page with its files, and the JSON that its scripts request."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response, StreamingResponse

from limbert.core.palette import palette_colours
from limbert.core.space import is_width_depth_name, parse_width_depth
from limbert.data.tasks import Task
from limbert.errors import LimbertError
from limbert.serve.errors import ApiError
from limbert.serve.protocols.health import VariantInfo
from limbert.serve.responses import abstaining, predicted_labels, scores_by_label, to_json
from limbert.serve.runner import RequestOutput
from limbert.serve.schemas import RequestModel
from limbert.serve.selection import RequestOptions
from limbert.serve.service import Service
from limbert.serve.tokenizer import TextInput
from limbert.serve.variants import Variant

_PAGE = "/playground"
_SCRIPTS = ("main.js", "server.js", "elements.js", "variants.js", "prediction.js", "comparison.js", "status.js")
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_JSON_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
PUBLIC_PATHS = frozenset((_PAGE, *(f"{_PAGE}/assets/{name}" for name in ("page.css", "colours.css", *_SCRIPTS))))
"""Files that tell nothing about the model: they need no API key."""


class PlaygroundRequest(RequestModel):
    """A text with its second text and request options."""

    text: str
    pair: str | None = None
    parameters: RequestOptions | None = None


def create_router(service: Service) -> APIRouter:
    """``/playground`` and the paths below it."""
    routes, page_files = APIRouter(include_in_schema=False), _page_files()

    @routes.get(_PAGE)
    async def page() -> Response:
        return Response(page_files["page.html"], headers=_PAGE_HEADERS, media_type="text/html")

    @routes.get(_PAGE + "/assets/{name}")
    async def asset(name: str) -> Response:
        if name not in page_files or name == "page.html":
            raise ApiError(404, f"the playground has no file {name[:100]!r}")
        media_type = "text/css" if name.endswith(".css") else "text/javascript"
        return Response(page_files[name], headers=_PAGE_HEADERS, media_type=media_type)

    @routes.get(f"{_PAGE}/model")
    async def model() -> Response:
        return _json(model_json(service))

    @routes.get(f"{_PAGE}/status")
    async def status() -> Response:
        return _json(status_json(service))

    @routes.post(f"{_PAGE}/predict")
    async def predict(body: PlaygroundRequest) -> Response:
        options = body.parameters or RequestOptions()
        output = await service.predict([(body.text, body.pair)], options=options)
        return _json(prediction_json(service.task, output, options.abstain_below))

    @routes.post(f"{_PAGE}/compare")
    async def compare(body: PlaygroundRequest) -> Response:
        """A JSON line per variant, the full model first; one at a time, so that other requests run in between."""
        lines = _predict_all_variants(service, (body.text, body.pair))
        return StreamingResponse(lines, headers=_PAGE_HEADERS, media_type="application/x-ndjson")

    return routes


async def _predict_all_variants(service: Service, text: TextInput) -> AsyncIterator[bytes]:
    full: dict[str, Any] | None = None
    first = service.variants.full
    for variant in sorted(service.variants.variants, key=lambda variant: variant is not first):
        line: dict[str, Any] = {"name": variant.name}
        try:
            output = await service.predict([text], options=RequestOptions.model_validate({variant.kind: variant.name}))
            prediction = prediction_json(service.task, output)
        except LimbertError as error:
            line["error"] = str(error)
        else:
            full = prediction if variant is first else full
            line |= {"prediction": prediction} | compare_with_full(prediction, full)
        yield to_json(line) + b"\n"


def _json(value: Any) -> Response:
    return Response(to_json(value), headers=_JSON_HEADERS, media_type="application/json")


def _page_files() -> dict[str, bytes]:
    """The page's files by name; its colours are the report's."""
    folder = files("limbert.serve.playground")
    contents = {name: (folder / name).read_bytes() for name in ("page.html", "page.css", *_SCRIPTS)}
    light, dark = (
        "".join(f"--{name}:{pair[index]};" for name, pair in palette_colours().items()) + f"color-scheme:{scheme};"
        for index, scheme in enumerate(("light", "dark"))
    )
    colours = (
        f":root {{{light}}}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{{dark}}} }}\n"
        f":root[data-theme=light] {{{light}}}\n"
        f":root[data-theme=dark] {{{dark}}}\n"
    )
    return contents | {"colours.css": colours.encode()}


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
    (abstained,) = abstaining(task, [text.logits], abstain_below)
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
