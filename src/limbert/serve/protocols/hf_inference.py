"""Hugging Face inference: what ``InferenceClient.text_classification`` posts, answered as its pipeline would."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from limbert.serve.errors import Fault
from limbert.serve.http_body import check_batch, kind_of, object_at, parse_object, read_bytes, text_at
from limbert.serve.metrics import WISHES, Exchange, json_response
from limbert.serve.protocols import schemas
from limbert.serve.scores import FUNCTIONS, Function, function_of, labels_of, ranked
from limbert.serve.selection import Wish
from limbert.serve.service import Text

PARAMETERS = ("top_k", "function_to_apply", "truncation", *WISHES)
_TRUNCATION = {True: True, "longest_first": True, False: False, "do_not_truncate": False}


def router(exchange: Exchange) -> APIRouter:
    """``POST /`` and ``POST /models/{model_id}``."""
    service, routes = exchange.service, APIRouter(tags=["Hugging Face inference"])
    Model = Annotated[str, Path(json_schema_extra={"enum": [service.name]})]
    described: dict[str, Any] = {
        "responses": schemas.responses(schemas.nested_scores(service), 400, 401, 408, 413, 415, 422, 424, 429, 503),
        "openapi_extra": schemas.body(schemas.huggingface_request(service)),
        "response_class": Response,
    }

    async def classify(request: Request) -> Response:
        """Classify a text, a pair of texts, or a list of these; all scores of each, highest first."""
        return await _classify(exchange, request)

    async def classify_model(request: Request, model_id: Model) -> Response:
        """The same under the model's name, as the Hugging Face inference API has it."""
        if model_id != service.name:
            raise Fault(404, f"model is {model_id[:200]!r}; this server has {service.name!r}")
        return await _classify(exchange, request)

    routes.post("/", summary="Classify", operation_id="hf_classify", **described)(classify)
    described["responses"] = described["responses"] | schemas.failures(404)
    routes.post("/models/{model_id:path}", summary="Classify by name", operation_id="hf_model", **described)(
        classify_model
    )
    return routes


async def _classify(exchange: Exchange, request: Request) -> Response:
    service = exchange.service
    content = parse_object(await read_bytes(request, limit=service.settings.max_body))
    texts = read_inputs(content.get("inputs"), limit=service.settings.max_texts)
    parameters = object_at(content, "parameters", allowed=PARAMETERS)
    top, function = _top(parameters.get("top_k")), _function(parameters.get("function_to_apply"))
    truncate, wish = _truncation(parameters.get("truncation")), Wish.from_parameters(parameters)
    answers = await exchange.ask(request, texts, wish=wish, truncate=truncate)
    labels, function = labels_of(service.task), function or function_of(service.task)
    return json_response([ranked(row.logits, labels, function, top=top) for row in answers.rows], answers)


def read_inputs(inputs: Any, *, limit: int) -> list[Text]:
    """The texts of ``inputs``: a string, ``{"text", "text_pair"}``, or a list of these.

    Raises:
        Fault: 413 or 422.
    """
    if not isinstance(inputs, list):
        return [_text(inputs, "inputs")]
    check_batch(len(inputs), limit=limit)
    return [_text(item, f"inputs[{index}]") for index, item in enumerate(inputs)]


def _text(value: Any, where: str) -> Text:
    if not isinstance(value, dict):
        if not isinstance(value, str):
            raise Fault(422, f'{where} is {kind_of(value)}; it must be a string or {{"text", "text_pair"}}')
        return text_at(value, where), None
    for key in value:
        if key not in ("text", "text_pair"):
            raise Fault(422, f"{where} has {key[:100]!r}; it may have text and text_pair")
    pair = value.get("text_pair")
    return text_at(value.get("text"), f"{where}.text"), None if pair is None else text_at(pair, f"{where}.text_pair")


def _top(value: Any) -> int | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or value < 1 or (isinstance(value, float) and not value.is_integer()):  # 2.0 is a whole number
        raise Fault(
            422, f"top_k is {value if number else kind_of(value)}; it must be a whole number from 1, or null for all"
        )
    return int(value)


def _function(value: Any) -> Function | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in FUNCTIONS:
        given = repr(value[:100]) if isinstance(value, str) else kind_of(value)
        raise Fault(422, f"function_to_apply is {given}; it must be one of {', '.join(FUNCTIONS)}")
    return FUNCTIONS[value]


def _truncation(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, bool | str) or value not in _TRUNCATION:
        given = repr(value[:100]) if isinstance(value, str) else kind_of(value)
        raise Fault(422, f"truncation is {given}; it must be true, false, longest_first or do_not_truncate")
    return _TRUNCATION[value]
