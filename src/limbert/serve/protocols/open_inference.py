"""The Open Inference Protocol, version 2, with its binary tensor and classification extensions."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from limbert.data.tasks import Task
from limbert.serve.errors import ApiError, InvalidRequestError
from limbert.serve.http_body import json_type_name, optional_bool, optional_object, parse_json_object, read_body
from limbert.serve.metrics import REQUEST_OPTIONS, RequestHandler, json_response, to_json, usage_headers, variant_names
from limbert.serve.protocols import schemas
from limbert.serve.protocols.tensors import OutputTensor, read_strings, split_body
from limbert.serve.scores import check_finite, label_names, score_function
from limbert.serve.selection import RequestOptions
from limbert.serve.service import RequestOutput, Service, TextInput

_JSON_LENGTH_HEADER = "inference-header-content-length"
_IGNORED_PARAMETERS = (  # what clients and other servers of this protocol send along, without meaning here
    "sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "content_type",
)  # fmt: skip
PARAMETER_NAMES = (*REQUEST_OPTIONS, "truncate", "binary_data_output", *_IGNORED_PARAMETERS)


def input_tensors() -> list[dict[str, Any]]:
    """The tensors that a model takes."""
    return [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in ("TEXT", "TEXT_PAIR")]


def output_tensors(task: Task) -> list[dict[str, Any]]:
    """The tensors that a model answers with; LABEL only where exactly one of the labels holds."""
    numbers = [
        {"name": name, "datatype": "FP32", "shape": [-1, len(label_names(task))]} for name in ("SCORES", "LOGITS")
    ]
    label = {"name": "LABEL", "datatype": "BYTES", "shape": [-1]}
    return [label, *numbers] if task.task_type == "classification" else numbers


@dataclass(frozen=True)
class _RequestedOutput:
    """One output as requested."""

    name: str
    binary: bool
    top_classes: int  # > 0: the best of them as strings, instead of numbers


def create_router(handler: RequestHandler) -> APIRouter:
    """All under ``/v2`` but the server's health."""
    service, routes = handler.service, APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    Model = Annotated[str, Path(json_schema_extra={"enum": [service.model_name]})]

    @routes.get("", summary="Server metadata", operation_id="oip_server", **schemas.get_route(schemas.OIP_SERVER, 401))
    async def server() -> Any:
        """What this server is and can."""
        extensions = ["binary_tensor_data", "classification"]
        return {"name": "limbert", "version": version("limbert"), "extensions": extensions}

    @routes.get("/models/{model}", summary="Model metadata", operation_id="oip_model",
                **schemas.get_route(schemas.OIP_MODEL, 401, 404))  # fmt: skip
    async def model_metadata(model: Model) -> Any:
        """The model's inputs and outputs."""
        _check_model(model, service)
        tensors = {"inputs": input_tensors(), "outputs": output_tensors(service.task)}
        return {"name": service.model_name, "platform": "limbert", **tensors}

    @routes.get("/models/{model}/ready", summary="Model ready", operation_id="oip_model_ready",
                **schemas.get_route(schemas.OIP_MODEL_READY, 401, 404, 503))  # fmt: skip
    async def model_ready(model: Model) -> Any:
        """Whether the model answers."""
        _check_model(model, service)
        if not (service.ready and service.healthy):
            raise ApiError(503, f"model {service.model_name} is not ready")
        return {"name": service.model_name, "ready": True}

    @routes.post("/models/{model}/infer", summary="Infer", operation_id="oip_infer", response_class=Response,
                 responses=schemas.infer_responses(service), openapi_extra=schemas.infer_body(service))  # fmt: skip
    async def infer(request: Request, model: Model) -> Response:
        """Answer a batch of texts: BYTES in, labels, scores and logits out, in JSON or binary."""
        _check_model(model, service)
        return await _infer(handler, request)

    return routes


def _check_model(model: str, service: Service) -> None:
    if model != service.model_name:
        raise ApiError(404, f"model is {model[:200]!r}; this server has {service.model_name!r}")


async def _infer(handler: RequestHandler, request: Request) -> Response:
    service = handler.service
    types = ("application/json", "application/octet-stream")
    body = await read_body(request, max_body=service.settings.max_body, media_types=types)
    try:
        head, binary = split_body(body, request.headers.get(_JSON_LENGTH_HEADER))
        content = parse_json_object(head)
        parameters = optional_object(content, "parameters", allowed=PARAMETER_NAMES)
        identity = content.get("id")
        if identity is not None and not isinstance(identity, str):
            raise ApiError(400, f"id is {json_type_name(identity)}; it must be a string")
        binary_output = optional_bool(parameters, "binary_data_output", default=False)
        wanted = _parse_outputs(content.get("outputs"), output_tensors(service.task), binary=binary_output)
        texts = _parse_texts(content.get("inputs"), binary, max_texts=service.settings.max_texts)
        wish, truncate = RequestOptions.from_parameters(parameters), optional_bool(parameters, "truncate", default=True)
        answers = await handler.predict(request, texts, options=wish, truncate=truncate)
    except InvalidRequestError as error:
        raise ApiError(400, str(error)) from error
    except ApiError as fault:
        if fault.status_code != 422:
            raise
        raise ApiError(400, fault.detail) from fault  # what is wrong with a request is 400 in this protocol
    answer: dict[str, Any] = {"model_name": service.model_name}
    if identity is not None:
        answer["id"] = identity
    timing = answers.timing
    times = {"queue_ms": timing.queue, "tokenization_ms": timing.tokenization, "inference_ms": timing.inference}
    answer["parameters"] = {"size": variant_names(answers)} | {
        key: round(1e3 * value, 3) for key, value in times.items()
    }
    return _make_response(answer, _make_tensors(answers, service.task, wanted), wanted, answers)


def _parse_texts(inputs: Any, binary: memoryview, *, max_texts: int) -> list[TextInput]:
    if not isinstance(inputs, list) or not all(isinstance(tensor, dict) for tensor in inputs):
        raise ApiError(400, "inputs must be a list of tensors")
    columns: dict[str, list[str]] = {}
    for tensor in inputs:
        name = tensor.get("name")
        if not isinstance(name, str) or name not in ("TEXT", "TEXT_PAIR") or name in columns:
            given = repr(name[:100]) if isinstance(name, str) else json_type_name(name)
            raise ApiError(
                400, f"the name of an input is {given}; inputs are TEXT and, for pairs, TEXT_PAIR, each once"
            )
        columns[name], binary = read_strings(tensor, binary, name)
    if "TEXT" not in columns:
        raise ApiError(400, "inputs lack TEXT")
    if len(binary):
        raise ApiError(400, f"the body has {len(binary)} bytes more than its inputs take")
    texts, pairs = columns["TEXT"], columns.get("TEXT_PAIR")
    if len(texts) > max_texts:
        raise ApiError(413, f"TEXT has {len(texts)} rows; at most {max_texts} are allowed")
    if pairs is None:
        return [(text, None) for text in texts]
    if len(pairs) != len(texts):
        raise ApiError(400, f"TEXT_PAIR has {len(pairs)} rows; TEXT has {len(texts)}")
    return list(zip(texts, pairs, strict=True))


def _parse_outputs(outputs: Any, available: Sequence[dict[str, Any]], *, binary: bool) -> list[_RequestedOutput]:
    names = {tensor["name"]: tensor for tensor in available}
    if outputs is None or outputs == []:
        return [_RequestedOutput(name, binary, 0) for name in names]
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise ApiError(400, "outputs must be a list of objects")
    wanted: dict[str, _RequestedOutput] = {}
    for output in outputs:
        name = output.get("name")
        if not isinstance(name, str) or name not in names or name in wanted:
            given = repr(name[:100]) if isinstance(name, str) else json_type_name(name)
            raise ApiError(400, f"the name of an output is {given}; outputs are {', '.join(names)}, each once")
        parameters = optional_object(output, "parameters")
        if "shared_memory_region" in parameters:
            raise ApiError(400, f"output {name} is asked for in shared memory, which this server does not write")
        classes = parameters.get("classification", 0)
        width = names[name]["shape"][-1]
        if not isinstance(classes, int) or isinstance(classes, bool) or not 0 <= classes <= max(width, 0):
            raise ApiError(400, f"classification of output {name} must be a whole number, at most {max(width, 0)}")
        wanted[name] = _RequestedOutput(name, optional_bool(parameters, "binary_data", default=binary), classes)
    return list(wanted.values())


def _make_tensors(output: RequestOutput, task: Task, requested: Sequence[_RequestedOutput]) -> list[OutputTensor]:
    function, labels = score_function(task), label_names(task)
    for row in output.outputs:
        check_finite(row.logits)
    logits = [list(row.logits) for row in output.outputs]  # (rows, outputs)
    scores = [function(row) for row in logits]  # (rows, outputs)
    tensors = []
    for item in requested:
        values = logits if item.name == "LOGITS" else scores
        if item.name == "LABEL":
            best = [labels[max(range(len(row)), key=row.__getitem__)] for row in logits]
            tensors.append(OutputTensor("LABEL", "BYTES", (len(best),), best))
        elif item.top_classes:
            best = [text for row in values for text in _top_classes(row, labels, item.top_classes)]
            tensors.append(OutputTensor(item.name, "BYTES", (len(values), item.top_classes), best))
        else:
            flat = [value for row in values for value in row]
            tensors.append(OutputTensor(item.name, "FP32", (len(values), len(labels)), flat))
    return tensors


def _top_classes(values: Sequence[float], labels: Sequence[str], count: int) -> list[str]:
    order = sorted(range(len(values)), key=lambda index: -values[index])[:count]
    return [f"{values[index]:.6f}:{index}:{labels[index]}" for index in order]


def _make_response(
    content: dict[str, Any],
    tensors: Sequence[OutputTensor],
    requested: Sequence[_RequestedOutput],
    output: RequestOutput,
) -> Response:
    described, parts = [], []
    for tensor, item in zip(tensors, requested, strict=True):
        if item.binary:
            parts.append(tensor.to_bytes())
            described.append(tensor.metadata() | {"parameters": {"binary_data_size": len(parts[-1])}})
        else:
            described.append(tensor.metadata() | {"data": list(tensor.data)})
    content["outputs"] = described
    if not any(item.binary for item in requested):
        return json_response(content, output)
    head = to_json(content)
    headers = {**usage_headers(output), _JSON_LENGTH_HEADER: str(len(head))}
    return Response(b"".join([head, *parts]), headers=headers, media_type="application/octet-stream")
