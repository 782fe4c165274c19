"""The bodies of all protocols as JSON schemas, for the OpenAPI page: with the names and limits of the model served."""

from typing import Any

from limbert.serve.scores import SCORE_FUNCTIONS, label_names
from limbert.serve.service import Service

Schema = dict[str, Any]

_STRING: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_OPTIONAL_BOOL: Schema = {"type": ["boolean", "null"]}
_ERROR_DESCRIPTIONS = {
    400: "The body cannot be read, or (Open Inference Protocol) is not as the protocol has it",
    401: "The API key is missing or wrong",
    404: "The server has no such model",
    408: "The body did not arrive in time",
    413: "The body, the batch or a text is longer than allowed",
    415: "The body is of another kind or compression",
    422: "A value is of another kind or out of range",
    424: "The model's outputs are not finite",
    429: "The wish cannot be met in time, or the queue is full; Retry-After says when to ask again",
    503: "The server cannot compute any more, is starting or is draining",
}


def _object(properties: Schema, *required: str, closed: bool = False) -> Schema:
    schema: Schema = {"type": "object", "properties": properties, "required": list(required)}
    return schema | {"additionalProperties": False} if closed else schema


def _array(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


ERROR = _object({"error": _STRING, "error_type": _STRING}, "error", "error_type")
STATUS = _object({"status": {"const": "healthy"}}, "status")
LIVE = _object({"live": {"const": True}}, "live")
READY = _object({"ready": {"const": True}}, "ready")
_VARIANT: Schema = {
    "name": _STRING,
    "kind": {"enum": ["subnet", "policy"]},
    "quality": {"type": ["number", "null"], "description": "null where it was not measured"},
    "metric": _STRING,
    "data": {
        "enum": ["development", "validation", None],
        "description": "what the quality was measured on; qualities on different data are not compared",
    },
    "flops": _COUNT,
}
INFO = _object(
    {
        "model_id": _STRING,
        "model_dtype": _STRING,
        "model_type": _object({"classifier": {"type": "object"}}, "classifier"),
        "max_input_length": _COUNT,
        "max_batch_tokens": _COUNT,
        "max_client_batch_size": _COUNT,
        "version": _STRING,
        "task": _STRING,
        "sizes": _array(_object(_VARIANT, "name", "kind", "flops")),
    },
    *("model_id", "model_dtype", "model_type", "max_input_length", "max_batch_tokens"),
    *("max_client_batch_size", "version", "task", "sizes"),
)
_TENSOR = _object(
    {"name": _STRING, "datatype": _STRING, "shape": _array({"type": "integer"})}, "name", "datatype", "shape"
)
OIP_SERVER = _object({"name": _STRING, "version": _STRING, "extensions": _array(_STRING)}, "name", "version")
OIP_MODEL = _object(
    {"name": _STRING, "platform": _STRING, "inputs": _array(_TENSOR), "outputs": _array(_TENSOR)},
    *("name", "platform", "inputs", "outputs"),
)
OIP_MODEL_READY = _object({"name": _STRING, "ready": {"const": True}}, "name", "ready")


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a path may answer with."""
    return {
        status: {"description": _ERROR_DESCRIPTIONS[status], "content": {"application/json": {"schema": ERROR}}}
        | ({"headers": _RETRY_HEADERS} if status == 429 else {})
        for status in statuses
    }


_RETRY_HEADERS = {
    "Retry-After": {"description": "whole seconds", "schema": {"type": "integer", "minimum": 1}},
    "Retry-After-Ms": {"description": "the same in milliseconds", "schema": {"type": "integer", "minimum": 1}},
}
_USAGE_HEADERS = {
    name: {"description": text, "schema": schema}
    for name, text, schema in (
        ("X-Limbert-Size", "sizes that answered, each once, separated by commas", _STRING),
        ("X-Limbert-Queue-Ms", "of the slowest text of the request", _NUMBER),
        ("X-Limbert-Tokenization-Ms", "of the slowest text of the request", _NUMBER),
        ("X-Limbert-Inference-Ms", "of the slowest text of the request", _NUMBER),
        ("X-Limbert-Flops", "floating-point operations, all texts together", _COUNT),
        ("X-Limbert-Tokens", "tokens, all texts together", _COUNT),
    )
}


def responses(schema: Schema, *statuses: int, example: Any = None) -> dict[int | str, dict[str, Any]]:
    """An answer in JSON with the headers that say what it took, and the errors."""
    content = {"schema": schema} | ({} if example is None else {"example": example})
    answer = {"description": "The answer", "headers": _USAGE_HEADERS, "content": {"application/json": content}}
    return {200: answer} | error_responses(*statuses)


def get_route(schema: Schema, *statuses: int) -> dict[str, Any]:
    """What to tell FastAPI of a path that is only read."""
    answer = {"description": "The answer", "content": {"application/json": {"schema": schema}}}
    return {"responses": {200: answer} | error_responses(*statuses)}


def text_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Plain text, and the errors."""
    return {200: {"description": "The answer", "content": {"text/plain": {"schema": _STRING}}}} | error_responses(
        *statuses
    )


def request_body(schema: Schema, example: Any = None) -> dict[str, Any]:
    """A request's body for FastAPI's ``openapi_extra``."""
    content = {"schema": schema} | ({} if example is None else {"example": example})
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


_NOT_SUBNET_AND_POLICY: Schema = {
    "not": _object({"subnet": {"type": "string"}, "policy": {"type": "string"}}, "subnet", "policy")
}  # either, as both would contradict each other


def request_options(service: Service) -> Schema:
    """The wishes as properties of ``parameters``, with the names of this model's sizes."""
    sizes = service.variants.variants
    known = [size.quality for size in sizes if size.quality is not None]
    names = {kind: [size.name for size in sizes if size.kind == kind] for kind in ("subnet", "policy")}
    budget = {"type": "number", "minimum": 0.001, "description": "milliseconds from arrival to answer"}
    quality: Schema = {"type": "number", "description": f"{sizes[0].metric}: no size below it answers"}
    schemas = {
        "latency_budget_ms": budget,
        "min_quality": quality | {"maximum": max(known)} if known else {"type": "null"},  # null: none was measured
        "subnet": {"enum": names["subnet"], "description": "what must answer; not with a policy"},
        "policy": {"enum": names["policy"] + [f"static:{name}" for name in names["subnet"]]},
    }
    return {name: _nullable(schema) for name, schema in schemas.items()}


def _scores(service: Service) -> Schema:
    return _array(_object({"label": {"enum": list(label_names(service.task))}, "score": _NUMBER}, "label", "score"))


def nested_scores(service: Service) -> Schema:
    """A list of scores for each input."""
    return _array(_scores(service), minItems=1)


def tei_predictions(service: Service) -> Schema:
    """Scores of one input, or a list of them for a batch."""
    return {"anyOf": [_scores(service), nested_scores(service)]}


def huggingface_request(service: Service) -> Schema:
    """The body of ``POST /``."""
    pair = _object({"text": _STRING, "text_pair": _nullable(_STRING)}, "text", closed=True)
    one = {"anyOf": [_STRING, pair]}
    batch = _array(one, minItems=1, maxItems=service.settings.max_texts)
    parameters = (
        _object(
            {
                "top_k": {"type": ["integer", "null"], "minimum": 1, "description": "the best so many; null for all"},
                "function_to_apply": {"enum": [*SCORE_FUNCTIONS, None], "description": "null: the task's"},
                "truncation": {"enum": [True, False, "longest_first", "do_not_truncate", None]},
                **request_options(service),
            },
            closed=True,
        )
        | _NOT_SUBNET_AND_POLICY
    )
    return _object({"inputs": {"anyOf": [_STRING, pair, batch]}, "parameters": _nullable(parameters)}, "inputs")


def tei_request(service: Service) -> Schema:
    """The body of ``POST /predict``."""
    some: Schema = {"type": "string", "minLength": 1}
    # of a pair, one of the two may be empty
    pair = {"anyOf": [{"type": "array", "prefixItems": [*order], "items": False, "minItems": 2}
                      for order in ((some, _STRING), (_STRING, some))]}  # fmt: skip
    alone = _array(some, minItems=1, maxItems=1)
    batch = _array({"anyOf": [alone, pair]}, minItems=1, maxItems=service.settings.max_texts)
    return _object(
        {
            "inputs": {"anyOf": [some, alone, pair, batch]},
            "truncate": _OPTIONAL_BOOL | {"default": False},
            "truncation_direction": {"enum": ["Right", "right", None]},
            "raw_scores": _OPTIONAL_BOOL | {"default": False},
            "parameters": _nullable(_object(request_options(service), closed=True) | _NOT_SUBNET_AND_POLICY),
        },
        "inputs",
    )


def infer_body(service: Service) -> dict[str, Any]:
    """The body of ``infer``: JSON, or JSON with binary tensors behind it."""
    parameters: Schema = {"type": ["object", "null"]}
    tensor = _object(
        {
            "name": {"enum": ["TEXT", "TEXT_PAIR"]},
            "datatype": {"const": "BYTES"},
            "shape": _array({"type": "integer", "minimum": 1}, minItems=1, maxItems=2),
            "parameters": parameters,
            "data": _array({"anyOf": [_STRING, _array(_STRING)]}),
        },
        *("name", "datatype", "shape"),
    )
    names = ["LABEL", "SCORES", "LOGITS"] if service.task.task_type == "classification" else ["SCORES", "LOGITS"]
    output = _object({"name": {"enum": names}, "parameters": parameters}, "name")
    ignored = ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "content_type")
    of_request = {
        **request_options(service),
        "truncate": _OPTIONAL_BOOL,
        "binary_data_output": _OPTIONAL_BOOL,
        **{name: {} for name in ignored},
    }
    schema = _object(
        {
            "id": {"type": ["string", "null"]},
            "inputs": _array(tensor, minItems=1, maxItems=2),
            "outputs": _nullable(_array(output, maxItems=len(names))),
            "parameters": _nullable(_object(of_request, closed=True) | _NOT_SUBNET_AND_POLICY),
        },
        "inputs",
    )
    example = {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1], "data": ["a fine film"]}]}
    described = request_body(schema, example)
    described["requestBody"]["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return described


def infer_responses(service: Service) -> dict[int | str, dict[str, Any]]:
    """What ``infer`` answers."""
    tensor = _TENSOR | {"properties": _TENSOR["properties"] | {"parameters": {"type": "object"}, "data": _array({})}}
    schema = _object(
        {"model_name": _STRING, "id": _STRING, "parameters": {"type": "object"}, "outputs": _array(tensor)},
        *("model_name", "outputs"),
    )
    described = responses(schema, 400, 401, 404, 408, 413, 415, 424, 429, 503)
    described[200]["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return described
