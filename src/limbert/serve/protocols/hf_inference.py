"""Hugging Face inference: what ``InferenceClient.text_classification`` posts, answered as its pipeline would."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from limbert.serve.errors import ApiError
from limbert.serve.http_body import (
    check_batch_size,
    json_type_name,
    optional_object,
    parse_json_object,
    read_body,
    require_string,
)
from limbert.serve.metrics import REQUEST_OPTIONS, RequestHandler, json_response
from limbert.serve.protocols import schemas
from limbert.serve.scores import SCORE_FUNCTIONS, ScoreFunction, label_names, ranked_scores, score_function
from limbert.serve.selection import RequestOptions
from limbert.serve.service import TextInput

PARAMETER_NAMES = ("top_k", "function_to_apply", "truncation", *REQUEST_OPTIONS)
_TRUNCATION_VALUES = {True: True, "longest_first": True, False: False, "do_not_truncate": False}


def create_router(handler: RequestHandler) -> APIRouter:
    """``POST /`` and ``POST /models/{model_id}``."""
    service, routes = handler.service, APIRouter(tags=["Hugging Face inference"])
    Model = Annotated[str, Path(json_schema_extra={"enum": [service.model_name]})]
    described: dict[str, Any] = {
        "responses": schemas.responses(schemas.nested_scores(service), 400, 401, 408, 413, 415, 422, 424, 429, 503),
        "openapi_extra": schemas.request_body(schemas.huggingface_request(service)),
        "response_class": Response,
    }

    async def classify(request: Request) -> Response:
        """Classify a text, a pair of texts, or a list of these; all scores of each, highest first."""
        return await _classify(handler, request)

    async def classify_model(request: Request, model_id: Model) -> Response:
        """The same under the model's name, as the Hugging Face inference API has it."""
        if model_id != service.model_name:
            raise ApiError(404, f"model is {model_id[:200]!r}; this server has {service.model_name!r}")
        return await _classify(handler, request)

    routes.post("/", summary="Classify", operation_id="hf_classify", **described)(classify)
    described["responses"] = described["responses"] | schemas.error_responses(404)
    routes.post("/models/{model_id:path}", summary="Classify by name", operation_id="hf_model", **described)(
        classify_model
    )
    return routes


async def _classify(handler: RequestHandler, request: Request) -> Response:
    service = handler.service
    content = parse_json_object(await read_body(request, max_body=service.settings.max_body))
    texts = read_inputs(content.get("inputs"), max_texts=service.settings.max_texts)
    parameters = optional_object(content, "parameters", allowed=PARAMETER_NAMES)
    top, function = _parse_top_k(parameters.get("top_k")), _parse_function(parameters.get("function_to_apply"))
    truncate, wish = _parse_truncation(parameters.get("truncation")), RequestOptions.from_parameters(parameters)
    answers = await handler.predict(request, texts, options=wish, truncate=truncate)
    labels, function = label_names(service.task), function or score_function(service.task)
    return json_response([ranked_scores(row.logits, labels, function, top_k=top) for row in answers.outputs], answers)


def read_inputs(inputs: Any, *, max_texts: int) -> list[TextInput]:
    """The texts of ``inputs``: a string, ``{"text", "text_pair"}``, or a list of these.

    Raises:
        Fault: 413 or 422.
    """
    if not isinstance(inputs, list):
        return [_parse_text(inputs, "inputs")]
    check_batch_size(len(inputs), max_texts=max_texts)
    return [_parse_text(item, f"inputs[{index}]") for index, item in enumerate(inputs)]


def _parse_text(value: Any, where: str) -> TextInput:
    if not isinstance(value, dict):
        if not isinstance(value, str):
            raise ApiError(422, f'{where} is {json_type_name(value)}; it must be a string or {{"text", "text_pair"}}')
        return require_string(value, where), None
    for key in value:
        if key not in ("text", "text_pair"):
            raise ApiError(422, f"{where} has {key[:100]!r}; it may have text and text_pair")
    pair = value.get("text_pair")
    return require_string(value.get("text"), f"{where}.text"), None if pair is None else require_string(
        pair, f"{where}.text_pair"
    )


def _parse_top_k(value: Any) -> int | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or value < 1 or (isinstance(value, float) and not value.is_integer()):  # 2.0 is a whole number
        raise ApiError(
            422,
            f"top_k is {value if number else json_type_name(value)}; it must be a whole number from 1, or null for all",
        )
    return int(value)


def _parse_function(value: Any) -> ScoreFunction | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in SCORE_FUNCTIONS:
        given = repr(value[:100]) if isinstance(value, str) else json_type_name(value)
        raise ApiError(422, f"function_to_apply is {given}; it must be one of {', '.join(SCORE_FUNCTIONS)}")
    return SCORE_FUNCTIONS[value]


def _parse_truncation(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, bool | str) or value not in _TRUNCATION_VALUES:
        given = repr(value[:100]) if isinstance(value, str) else json_type_name(value)
        raise ApiError(422, f"truncation is {given}; it must be true, false, longest_first or do_not_truncate")
    return _TRUNCATION_VALUES[value]
