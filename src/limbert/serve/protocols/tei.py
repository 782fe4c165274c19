"""Text Embeddings Inference: its ``POST /predict``, where ``["a", "b"]`` is one pair."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from limbert.serve.errors import ApiError
from limbert.serve.http_body import (
    check_batch_size,
    json_type_name,
    optional_bool,
    optional_object,
    parse_json_object,
    read_body,
    require_string,
)
from limbert.serve.metrics import REQUEST_OPTIONS, RequestHandler, json_response
from limbert.serve.protocols import schemas
from limbert.serve.scores import identity, label_names, ranked_scores, score_function
from limbert.serve.selection import RequestOptions
from limbert.serve.service import TextInput

_INPUTS_ALLOWED = 'it must be a string, a pair ["a", "b"], or a batch [["a"], ["b", "c"]]'


def create_router(handler: RequestHandler) -> APIRouter:
    """``POST /predict``."""
    service, routes = handler.service, APIRouter(tags=["Text Embeddings Inference"])

    @routes.post(
        "/predict",
        summary="Predict",
        operation_id="tei_predict",
        responses=schemas.responses(schemas.tei_predictions(service), 400, 401, 408, 413, 415, 422, 424, 429, 503),
        openapi_extra=schemas.request_body(schemas.tei_request(service)),
        response_class=Response,
    )
    async def predict(request: Request) -> Response:
        """Scores of a text or of one pair (flat), or of each in a batch (nested), highest first."""
        content = parse_json_object(await read_body(request, max_body=service.settings.max_body))
        texts, batch = read_inputs(content.get("inputs"), max_texts=service.settings.max_texts)
        truncate = optional_bool(content, "truncate", default=False)
        _check_truncation_direction(content.get("truncation_direction"))
        raw = optional_bool(content, "raw_scores", default=False)
        wish = RequestOptions.from_parameters(optional_object(content, "parameters", allowed=REQUEST_OPTIONS))
        answers = await handler.predict(request, texts, options=wish, truncate=truncate)
        labels, function = label_names(service.task), identity if raw else score_function(service.task)
        scored = [ranked_scores(row.logits, labels, function) for row in answers.outputs]
        return json_response(scored if batch else scored[0], answers)

    return routes


def read_inputs(inputs: Any, *, max_texts: int) -> tuple[list[TextInput], bool]:
    """The texts, and whether they came as a batch.

    Raises:
        Fault: 400 for an empty text, 413 or 422.
    """
    if isinstance(inputs, str):
        return [_parse_text([inputs], "inputs")], False
    if not isinstance(inputs, list):
        raise ApiError(422, f"inputs is {json_type_name(inputs)}; {_INPUTS_ALLOWED}")
    if inputs and isinstance(inputs[0], str):
        return [_parse_text(inputs, "inputs")], False
    check_batch_size(len(inputs), max_texts=max_texts)
    return [_parse_text(item, f"inputs[{index}]") for index, item in enumerate(inputs)], True


def _parse_text(value: Any, where: str) -> TextInput:
    if not isinstance(value, list):
        raise ApiError(422, f"{where} is {json_type_name(value)}; {_INPUTS_ALLOWED}")
    if len(value) not in (1, 2):
        raise ApiError(422, f"{where} has {len(value)} strings; it must have one, or two for a pair")
    parts = [require_string(part, f"{where}[{index}]") for index, part in enumerate(value)]
    if not any(parts):
        raise ApiError(400, f"{where} is empty; it must have text", error_type="Empty")
    return parts[0], parts[1] if len(parts) == 2 else None


def _check_truncation_direction(value: Any) -> None:
    if value is not None and (not isinstance(value, str) or value not in ("Right", "right")):
        given = repr(value[:100]) if isinstance(value, str) else json_type_name(value)
        raise ApiError(422, f"truncation_direction is {given}; this server cuts at the end: Right")
