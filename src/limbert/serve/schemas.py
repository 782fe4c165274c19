"""Base of the request models, the error response, and what the OpenAPI document says about all paths."""

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Discriminator, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from limbert.serve.errors import ApiError, InvalidRequestError, ServeError
from limbert.serve.variants import ModelVariants

_MAX_MESSAGE_LENGTH = 500  # characters
_TAG = "#"  # first character of the tags of `by_json_type`, which messages leave out
_ERROR_DESCRIPTIONS = {
    400: "The body cannot be read or (Open Inference Protocol) is invalid",
    401: "The API key is missing or wrong",
    404: "No such model",
    408: "The body did not arrive in time",
    413: "The body, the batch or a text is over the limit",
    415: "Unsupported content type or compression",
    422: "A value of the wrong type or out of range, or an unknown name",
    424: "The model fails on this text",
    429: "The deadline cannot be met, or the queue is full; Retry-After says when to try again",
    503: "The server is starting or shutting down, or inference has failed",
}
_RETRY_HEADERS = {
    "Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}},
    "Retry-After-Ms": {"description": "milliseconds", "schema": {"type": "integer", "minimum": 1}},
}

_STAGE_HEADER = {"description": "of the request's last text", "schema": {"type": "number"}}
_COUNT_HEADER = {"description": "of all texts", "schema": {"type": "integer"}}
USAGE_HEADERS = {
    "X-Limbert-Size": {"description": "variants that ran, separated by commas", "schema": {"type": "string"}},
    **{f"X-Limbert-{stage}-Ms": _STAGE_HEADER for stage in ("Queue", "Tokenization", "Inference")},
    **{f"X-Limbert-{count}": _COUNT_HEADER for count in ("Flops", "Tokens", "Truncated")},
}


class RequestModel(BaseModel):
    """A JSON object of a request: values are not converted, and unknown keys are refused with the nearest name."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        if isinstance(values, dict) and cls.model_config.get("extra") == "forbid":
            for key in values:
                if key not in cls.model_fields:
                    raise refusal(f"has unknown key {key[:100]!r}{suggestion(key, list(cls.model_fields))}")
        return values


class ErrorResponse(BaseModel):
    """What is wrong, in one line, and TEI's name for the type of error."""

    error: str
    error_type: Literal["Validation", "Empty", "Overloaded", "Backend", "Unhealthy"]


def refusal(message: str) -> PydanticCustomError:
    """An error for a validator to raise; the name of the field is put in front of the message."""
    return PydanticCustomError("refused", "{message}", {"message": message})


def suggestion(name: str, allowed: Sequence[str]) -> str:
    """The end of a message about an unknown name: the nearest allowed name, if there is one, and all allowed names."""
    near = get_close_matches(name, allowed, n=1)
    return (f"; did you mean {near[0]!r}? Allowed" if near else "; allowed") + f": {', '.join(allowed)}"


def by_json_type(message: str) -> Discriminator:
    """Chooses among members of a union that are tagged ``#str``, ``#bool``, ``#dict`` or ``#list``."""
    return Discriminator(
        lambda value: _TAG + ("dict" if isinstance(value, BaseModel) else type(value).__name__),
        custom_error_type="refused",
        custom_error_message=message,
    )


def model_path(name: str) -> Any:
    """Type of a path parameter that is the model's name."""
    return Annotated[str, Path(json_schema_extra={"enum": [name]})]


def validation_error(errors: Sequence[Any]) -> ServeError:
    """The first of pydantic's errors in one line that names the field and the value."""
    error = errors[0]
    if error["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {error['ctx']['error']}")
    path = ""
    for part in error["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "body" and not part.startswith(_TAG):
            path += f".{part}" if path else part
    message = error["msg"].replace("Input should be", "must be").replace("Field required", "is missing")
    message = re.sub(r"List should have (.*) after validation.*", r"must have \1", message)
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        message = "must be an object"
    given = "" if error["type"] == "missing" or message.startswith("has ") else f"; got {_describe(error['input'])}"
    return InvalidRequestError(f"{path or 'the body'} {message}{given}")


def _describe(value: Any) -> str:
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, (dict, BaseModel)):
        return "an object"
    return json.dumps(value, default=repr)[:100]


def error_response(error: ServeError) -> Response:
    """The error as an HTTP response."""
    message = str(error).encode("utf-8", "backslashreplace").decode()  # UTF-8 has no lone surrogates
    if len(message) > _MAX_MESSAGE_LENGTH:
        message = message[:_MAX_MESSAGE_LENGTH] + " ..."
    body = ErrorResponse(error=message, error_type=error.error_type)  # type: ignore[arg-type] # checked here
    return Response(body.model_dump_json(), error.status, dict(error.headers), "application/json")


def prediction_responses(model: Any, *, content: Mapping[str, Any] | None = None) -> dict[int | str, dict[str, Any]]:
    """The responses of a path that runs the model, for FastAPI's ``responses``."""
    success = {"model": model, "headers": USAGE_HEADERS, "content": content or {}}
    return {200: success, **error_responses(*_ERROR_DESCRIPTIONS)}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a path, for FastAPI's ``responses``."""
    return {
        status: {"model": ErrorResponse, "description": _ERROR_DESCRIPTIONS[status]}
        | ({"headers": _RETRY_HEADERS} if status == 429 else {})
        for status in statuses
    }


def describe_limits(document: Mapping[str, Any], variants: ModelVariants, *, max_texts: int) -> None:
    """Put names and limits of the model into the schemas of the request bodies of an OpenAPI document."""
    names = variants.names("subnet")
    best = max((variant.quality for variant in variants.variants if variant.quality is not None), default=None)
    for schema in document["components"]["schemas"].values():
        properties = schema.get("properties", {})
        if "min_quality" in properties:
            subnet, policy, quality = (properties[name]["anyOf"] for name in ("subnet", "policy", "min_quality"))
            subnet[0]["enum"] = names
            policy[0]["enum"] = [*variants.names("policy"), *(f"static:{name}" for name in names)]
            quality[0]["maximum"] = best
            if best is None:  # only null is valid
                del quality[0]
        for member in properties.get("inputs", {}).get("oneOf", []):
            if member.get("type") == "array":
                member.setdefault("maxItems", max_texts)
