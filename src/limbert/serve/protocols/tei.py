"""Text Embeddings Inference: its ``POST /predict``, where ``["a", "b"]`` is one pair."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from limbert.serve.errors import Fault
from limbert.serve.http_body import check_batch, flag_at, kind_of, object_at, parse_object, read_bytes, text_at
from limbert.serve.metrics import WISHES, Exchange, json_response
from limbert.serve.protocols import schemas
from limbert.serve.scores import function_of, labels_of, ranked, unchanged
from limbert.serve.selection import Wish
from limbert.serve.service import Text

_INPUTS = 'it must be a string, a pair ["a", "b"], or a batch [["a"], ["b", "c"]]'


def router(exchange: Exchange) -> APIRouter:
    """``POST /predict``."""
    service, routes = exchange.service, APIRouter(tags=["Text Embeddings Inference"])

    @routes.post(
        "/predict",
        summary="Predict",
        operation_id="tei_predict",
        responses=schemas.responses(schemas.predictions(service), 400, 401, 408, 413, 415, 422, 424, 429, 503),
        openapi_extra=schemas.body(schemas.tei_request(service)),
        response_class=Response,
    )
    async def predict(request: Request) -> Response:
        """Scores of a text or of one pair (flat), or of each in a batch (nested), highest first."""
        content = parse_object(await read_bytes(request, limit=service.settings.max_body))
        texts, batch = read_inputs(content.get("inputs"), limit=service.settings.max_texts)
        truncate = flag_at(content, "truncate", default=False)
        _check_direction(content.get("truncation_direction"))
        raw = flag_at(content, "raw_scores", default=False)
        wish = Wish.from_parameters(object_at(content, "parameters", allowed=WISHES))
        answers = await exchange.ask(request, texts, wish=wish, truncate=truncate)
        labels, function = labels_of(service.task), unchanged if raw else function_of(service.task)
        scored = [ranked(row.logits, labels, function) for row in answers.rows]
        return json_response(scored if batch else scored[0], answers)

    return routes


def read_inputs(inputs: Any, *, limit: int) -> tuple[list[Text], bool]:
    """The texts, and whether they came as a batch.

    Raises:
        Fault: 400 for an empty text, 413 or 422.
    """
    if isinstance(inputs, str):
        return [_text([inputs], "inputs")], False
    if not isinstance(inputs, list):
        raise Fault(422, f"inputs is {kind_of(inputs)}; {_INPUTS}")
    if inputs and isinstance(inputs[0], str):
        return [_text(inputs, "inputs")], False
    check_batch(len(inputs), limit=limit)
    return [_text(item, f"inputs[{index}]") for index, item in enumerate(inputs)], True


def _text(value: Any, where: str) -> Text:
    if not isinstance(value, list):
        raise Fault(422, f"{where} is {kind_of(value)}; {_INPUTS}")
    if len(value) not in (1, 2):
        raise Fault(422, f"{where} has {len(value)} strings; it must have one, or two for a pair")
    parts = [text_at(part, f"{where}[{index}]") for index, part in enumerate(value)]
    if not any(parts):
        raise Fault(400, f"{where} is empty; it must have text", error_type="Empty")
    return parts[0], parts[1] if len(parts) == 2 else None


def _check_direction(value: Any) -> None:
    if value is not None and (not isinstance(value, str) or value not in ("Right", "right")):
        given = repr(value[:100]) if isinstance(value, str) else kind_of(value)
        raise Fault(422, f"truncation_direction is {given}; this server cuts at the end: Right")
