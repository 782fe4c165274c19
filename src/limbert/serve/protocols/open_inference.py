"""The Open Inference Protocol, version 2, with its binary tensor and classification extensions."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from limbert.data.tasks import Task
from limbert.serve.errors import BadRequest, Fault
from limbert.serve.http_body import flag_at, kind_of, object_at, parse_object, read_bytes
from limbert.serve.metrics import WISHES, Exchange, json_response, sizes, spent, to_json
from limbert.serve.protocols import schemas
from limbert.serve.protocols.tensors import Tensor, read_strings, split_body
from limbert.serve.scores import check_finite, function_of, labels_of
from limbert.serve.selection import Wish
from limbert.serve.service import Answers, Service, Text

_JSON_LENGTH = "inference-header-content-length"
_IGNORED = (  # what clients and other servers of this protocol send along, without meaning here
    "sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "content_type",
)  # fmt: skip
PARAMETERS = (*WISHES, "truncate", "binary_data_output", *_IGNORED)


def inputs_of() -> list[dict[str, Any]]:
    """The tensors that a model takes."""
    return [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in ("TEXT", "TEXT_PAIR")]


def outputs_of(task: Task) -> list[dict[str, Any]]:
    """The tensors that a model answers with; LABEL only where exactly one of the labels holds."""
    numbers = [{"name": name, "datatype": "FP32", "shape": [-1, len(labels_of(task))]} for name in ("SCORES", "LOGITS")]
    label = {"name": "LABEL", "datatype": "BYTES", "shape": [-1]}
    return [label, *numbers] if task.kind == "classification" else numbers


@dataclass(frozen=True)
class _Wanted:
    """One output as requested."""

    name: str
    binary: bool
    classes: int  # > 0: the best of them as strings, instead of numbers


def router(exchange: Exchange) -> APIRouter:
    """All under ``/v2`` but the server's health."""
    service, routes = exchange.service, APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    Model = Annotated[str, Path(json_schema_extra={"enum": [service.name]})]

    @routes.get("", summary="Server metadata", operation_id="oip_server", **schemas.get(schemas.OIP_SERVER, 401))
    async def server() -> Any:
        """What this server is and can."""
        extensions = ["binary_tensor_data", "classification"]
        return {"name": "limbert", "version": version("limbert"), "extensions": extensions}

    @routes.get("/models/{model}", summary="Model metadata", operation_id="oip_model",
                **schemas.get(schemas.OIP_MODEL, 401, 404))  # fmt: skip
    async def model_metadata(model: Model) -> Any:
        """The model's inputs and outputs."""
        _check_model(model, service)
        tensors = {"inputs": inputs_of(), "outputs": outputs_of(service.task)}
        return {"name": service.name, "platform": "limbert", **tensors}

    @routes.get("/models/{model}/ready", summary="Model ready", operation_id="oip_model_ready",
                **schemas.get(schemas.OIP_MODEL_READY, 401, 404, 503))  # fmt: skip
    async def model_ready(model: Model) -> Any:
        """Whether the model answers."""
        _check_model(model, service)
        if not (service.ready and service.healthy):
            raise Fault(503, f"model {service.name} is not ready")
        return {"name": service.name, "ready": True}

    @routes.post("/models/{model}/infer", summary="Infer", operation_id="oip_infer", response_class=Response,
                 responses=schemas.infer_responses(service), openapi_extra=schemas.infer_body(service))  # fmt: skip
    async def infer(request: Request, model: Model) -> Response:
        """Answer a batch of texts: BYTES in, labels, scores and logits out, in JSON or binary."""
        _check_model(model, service)
        return await _infer(exchange, request)

    return routes


def _check_model(model: str, service: Service) -> None:
    if model != service.name:
        raise Fault(404, f"model is {model[:200]!r}; this server has {service.name!r}")


async def _infer(exchange: Exchange, request: Request) -> Response:
    service = exchange.service
    types = ("application/json", "application/octet-stream")
    body = await read_bytes(request, limit=service.settings.max_body, types=types)
    try:
        head, binary = split_body(body, request.headers.get(_JSON_LENGTH))
        content = parse_object(head)
        parameters = object_at(content, "parameters", allowed=PARAMETERS)
        identity = content.get("id")
        if identity is not None and not isinstance(identity, str):
            raise Fault(400, f"id is {kind_of(identity)}; it must be a string")
        binary_output = flag_at(parameters, "binary_data_output", default=False)
        wanted = _wanted(content.get("outputs"), outputs_of(service.task), binary=binary_output)
        texts = _texts(content.get("inputs"), binary, limit=service.settings.max_texts)
        wish, truncate = Wish.from_parameters(parameters), flag_at(parameters, "truncate", default=True)
        answers = await exchange.ask(request, texts, wish=wish, truncate=truncate)
    except BadRequest as error:
        raise Fault(400, str(error)) from error
    except Fault as fault:
        if fault.status_code != 422:
            raise
        raise Fault(400, fault.detail) from fault  # what is wrong with a request is 400 in this protocol
    answer: dict[str, Any] = {"model_name": service.name}
    if identity is not None:
        answer["id"] = identity
    timing = answers.timing
    times = {"queue_ms": timing.queue, "tokenization_ms": timing.tokenisation, "inference_ms": timing.inference}
    answer["parameters"] = {"size": sizes(answers)} | {key: round(1e3 * value, 3) for key, value in times.items()}
    return _response(answer, _outputs(answers, service.task, wanted), wanted, answers)


def _texts(inputs: Any, binary: memoryview, *, limit: int) -> list[Text]:
    if not isinstance(inputs, list) or not all(isinstance(tensor, dict) for tensor in inputs):
        raise Fault(400, "inputs must be a list of tensors")
    columns: dict[str, list[str]] = {}
    for tensor in inputs:
        name = tensor.get("name")
        if not isinstance(name, str) or name not in ("TEXT", "TEXT_PAIR") or name in columns:
            given = repr(name[:100]) if isinstance(name, str) else kind_of(name)
            raise Fault(400, f"the name of an input is {given}; inputs are TEXT and, for pairs, TEXT_PAIR, each once")
        columns[name], binary = read_strings(tensor, binary, name)
    if "TEXT" not in columns:
        raise Fault(400, "inputs lack TEXT")
    if len(binary):
        raise Fault(400, f"the body has {len(binary)} bytes more than its inputs take")
    texts, pairs = columns["TEXT"], columns.get("TEXT_PAIR")
    if len(texts) > limit:
        raise Fault(413, f"TEXT has {len(texts)} rows; at most {limit} are allowed")
    if pairs is None:
        return [(text, None) for text in texts]
    if len(pairs) != len(texts):
        raise Fault(400, f"TEXT_PAIR has {len(pairs)} rows; TEXT has {len(texts)}")
    return list(zip(texts, pairs, strict=True))


def _wanted(outputs: Any, offered: Sequence[dict[str, Any]], *, binary: bool) -> list[_Wanted]:
    names = {tensor["name"]: tensor for tensor in offered}
    if outputs is None or outputs == []:
        return [_Wanted(name, binary, 0) for name in names]
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise Fault(400, "outputs must be a list of objects")
    wanted: dict[str, _Wanted] = {}
    for output in outputs:
        name = output.get("name")
        if not isinstance(name, str) or name not in names or name in wanted:
            given = repr(name[:100]) if isinstance(name, str) else kind_of(name)
            raise Fault(400, f"the name of an output is {given}; outputs are {', '.join(names)}, each once")
        parameters = object_at(output, "parameters")
        if "shared_memory_region" in parameters:
            raise Fault(400, f"output {name} is asked for in shared memory, which this server does not write")
        classes = parameters.get("classification", 0)
        width = names[name]["shape"][-1]
        if not isinstance(classes, int) or isinstance(classes, bool) or not 0 <= classes <= max(width, 0):
            raise Fault(400, f"classification of output {name} must be a whole number, at most {max(width, 0)}")
        wanted[name] = _Wanted(name, flag_at(parameters, "binary_data", default=binary), classes)
    return list(wanted.values())


def _outputs(answers: Answers, task: Task, wanted: Sequence[_Wanted]) -> list[Tensor]:
    function, labels = function_of(task), labels_of(task)
    for row in answers.rows:
        check_finite(row.logits)
    logits = [list(row.logits) for row in answers.rows]  # (rows, outputs)
    scores = [function(row) for row in logits]  # (rows, outputs)
    tensors = []
    for item in wanted:
        values = logits if item.name == "LOGITS" else scores
        if item.name == "LABEL":
            best = [labels[max(range(len(row)), key=row.__getitem__)] for row in logits]
            tensors.append(Tensor("LABEL", "BYTES", (len(best),), best))
        elif item.classes:
            best = [text for row in values for text in _classified(row, labels, item.classes)]
            tensors.append(Tensor(item.name, "BYTES", (len(values), item.classes), best))
        else:
            flat = [value for row in values for value in row]
            tensors.append(Tensor(item.name, "FP32", (len(values), len(labels)), flat))
    return tensors


def _classified(row: Sequence[float], labels: Sequence[str], count: int) -> list[str]:
    order = sorted(range(len(row)), key=lambda index: -row[index])[:count]
    return [f"{row[index]:.6f}:{index}:{labels[index]}" for index in order]


def _response(
    answer: dict[str, Any], tensors: Sequence[Tensor], wanted: Sequence[_Wanted], answers: Answers
) -> Response:
    described, parts = [], []
    for tensor, item in zip(tensors, wanted, strict=True):
        if item.binary:
            parts.append(tensor.binary())
            described.append(tensor.described() | {"parameters": {"binary_data_size": len(parts[-1])}})
        else:
            described.append(tensor.described() | {"data": list(tensor.data)})
    answer["outputs"] = described
    if not any(item.binary for item in wanted):
        return json_response(answer, answers)
    head = to_json(answer)
    headers = {**spent(answers), _JSON_LENGTH: str(len(head))}
    return Response(b"".join([head, *parts]), headers=headers, media_type="application/octet-stream")
