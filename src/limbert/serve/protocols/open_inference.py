"""Open Inference Protocol, version 2, with its binary tensor and classification extensions."""

import struct
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import chain
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, Tag, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from limbert.data.tasks import Task
from limbert.serve.errors import ApiError, InvalidRequestError, RequestTooLargeError, UnavailableError
from limbert.serve.responses import (
    abstaining,
    json_response,
    label_names,
    score_matrix,
    usage_headers,
    variant_names,
)
from limbert.serve.runner import RequestOutput
from limbert.serve.schemas import (
    RequestModel,
    by_json_type,
    error_responses,
    model_path,
    prediction_responses,
    suggestion,
    validation_error,
)
from limbert.serve.selection import RequestOptions
from limbert.serve.service import Service
from limbert.serve.tokenizer import TextInput

_JSON_LENGTH = "inference-header-content-length"
_STRING_LENGTH = struct.Struct("<I")  # before each string of a binary tensor


class InferParameters(RequestOptions):
    """Request options and parameters of the protocol; those from ``sequence_id`` on have no effect here."""

    truncate: bool | None = None
    binary_data_output: bool | None = None
    sequence_id: Any = None
    sequence_start: Any = None
    sequence_end: Any = None
    priority: Any = None
    timeout: Any = None
    headers: Any = None
    content_type: Any = None


class TensorParameters(RequestModel):
    """Parameters of a tensor; those that the protocol does not define have no effect."""

    model_config = ConfigDict(extra="ignore")

    binary_data_size: Annotated[int | None, Field(ge=0)] = None
    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=0)] | None = None
    shared_memory_region: None = None


_Item = Annotated[
    Annotated[str, Tag("#str")] | Annotated[list[str], Tag("#list")], by_json_type("must be a string")
]  # data of shape [n, 1] may be nested


class InputTensor(RequestModel):
    """Texts: ``TEXT``, and ``TEXT_PAIR`` for pairs, of shape ``[n]`` or ``[n, 1]``, in JSON or as binary data."""

    name: Literal["TEXT", "TEXT_PAIR"]
    datatype: Literal["BYTES"]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=2)]
    parameters: TensorParameters = TensorParameters()
    data: list[_Item] | None = None


class RequestedOutput(RequestModel):
    """An output tensor to return."""

    name: str
    parameters: TensorParameters = TensorParameters()


class InferRequest(RequestModel):
    """Texts, and the outputs to return (default: all)."""

    id: str | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=2)]
    outputs: list[RequestedOutput] | None = None
    parameters: InferParameters | None = None


class TensorMetadata(BaseModel):
    """Name, datatype and shape; -1: any size."""

    name: str
    datatype: str
    shape: list[int]


class OutputTensor(TensorMetadata):
    """An output; its data may follow the JSON as binary data."""

    parameters: dict[str, Any] | None = None
    data: list[str] | list[float] | None = None

    def move_data(self) -> bytes:
        """The data of the binary tensor extension (little-endian float32, or strings after their length), removed."""
        if self.datatype == "BYTES":
            strings = [str(item).encode() for item in self.data or ()]
            binary = b"".join(_STRING_LENGTH.pack(len(item)) + item for item in strings)
        else:
            binary = struct.pack(f"<{len(self.data or ())}f", *(self.data or ()))
        self.data, self.parameters = None, {"binary_data_size": len(binary)}
        return binary


class ModelMetadata(BaseModel):
    """The model's inputs and outputs."""

    name: str
    platform: str = "limbert"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InferResponse(BaseModel):
    """Output tensors; ``parameters`` name the variants that ran and the milliseconds by stage."""

    model_name: str
    id: str | None = None
    parameters: dict[str, Any]
    outputs: list[OutputTensor]


def create_router(service: Service) -> APIRouter:
    """All paths under ``/v2`` but the server's health."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    Model = model_path(service.model_name)
    binary: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    schema = {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}}

    @routes.get("", responses=error_responses(401))
    async def server() -> dict[str, Any]:
        """The server and its extensions."""
        extensions = ["binary_tensor_data", "classification"]
        return {"name": "limbert", "version": version("limbert"), "extensions": extensions}

    @routes.get("/models/{model}", responses=error_responses(401, 404, 422))
    async def model_metadata(model: Model) -> ModelMetadata:  # type: ignore[valid-type]
        """The model's inputs and outputs."""
        service.check_name(model)
        inputs = [TensorMetadata(name=name, datatype="BYTES", shape=[-1]) for name in ("TEXT", "TEXT_PAIR")]
        return ModelMetadata(name=service.model_name, inputs=inputs, outputs=output_tensors(service.task))

    @routes.get("/models/{model}/ready", responses=error_responses(401, 404, 422, 503))
    async def model_ready(model: Model) -> dict[str, str | bool]:  # type: ignore[valid-type]
        """Whether the model accepts requests."""
        service.check_name(model)
        if not service.ready:
            raise UnavailableError(f"model {service.model_name} is not ready")
        return {"name": service.model_name, "ready": True}

    @routes.post(
        "/models/{model}/infer",
        operation_id="oip_infer",
        response_class=Response,
        responses=prediction_responses(InferResponse, content=binary),
        openapi_extra={"requestBody": {"required": True, "content": schema | binary}},
    )
    async def infer(request: Request, model: Model) -> Response:  # type: ignore[valid-type]
        """Labels, scores and logits of texts; tensors in JSON or binary."""
        service.check_name(model)
        try:
            return await _infer(service, await request.body(), request.headers.get(_JSON_LENGTH))
        except ValidationError as error:
            raise ApiError(400, str(validation_error(error.errors(include_url=False)))) from None
        except InvalidRequestError as error:  # this protocol has no 422
            raise ApiError(400, str(error)) from None

    return routes


async def _infer(service: Service, body: bytes, json_length: str | None) -> Response:
    length = len(body)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdecimal() and len(json_length) < 16):
            raise InvalidRequestError(f"Inference-Header-Content-Length is {json_length[:40]!r}; it must be a number")
        length = int(json_length)
        if length > len(body):
            raise InvalidRequestError(f"Inference-Header-Content-Length is {length}; the body has {len(body)} bytes")
    content = InferRequest.model_validate_json(body[:length])
    parameters = content.parameters or InferParameters()
    texts = _read_texts(content.inputs, memoryview(body)[length:], max_texts=service.settings.max_texts)
    requested = _requested_outputs(service.task, content.outputs)
    output = await service.predict(texts, options=parameters, truncate=parameters.truncate is not False)
    tensors = [_output_tensor(service.task, output, item, parameters.abstain_below) for item in requested]
    blobs = [
        tensor.move_data()
        for tensor, choice in zip(tensors, (item.parameters.binary_data for item in requested), strict=True)
        if (parameters.binary_data_output if choice is None else choice)
    ]
    stages = {f"{stage}_ms": round(value, 3) for stage, value in output.timing.milliseconds().items()}
    used = {"size": variant_names(output), **stages}
    response = InferResponse(model_name=service.model_name, id=content.id, parameters=used, outputs=tensors)
    answer = json_response(response.model_dump(exclude_none=True), output)
    if not blobs:
        return answer
    headers = {**usage_headers(output), _JSON_LENGTH: str(len(answer.body))}
    return Response(b"".join([answer.body, *blobs]), headers=headers, media_type="application/octet-stream")


def _read_texts(inputs: Sequence[InputTensor], binary: memoryview, *, max_texts: int) -> list[TextInput]:
    columns: dict[str, list[str]] = {}
    for tensor in inputs:
        name, size = tensor.name, tensor.parameters.binary_data_size
        if name in columns:
            raise InvalidRequestError(f"inputs has {name} twice")
        if tensor.shape[1:] not in ([], [1]):
            raise InvalidRequestError(f"the shape of {name} is {tensor.shape}; it must be [n] or [n, 1]")
        if size is None:
            nested = ([item] if isinstance(item, str) else item for item in tensor.data or ())
            columns[name] = list(chain.from_iterable(nested))
        elif size > len(binary):
            raise InvalidRequestError(f"binary_data_size of {name} is {size}; {len(binary)} bytes are left in the body")
        else:
            columns[name], binary = list(_decode_strings(binary[:size], name)), binary[size:]
        if len(columns[name]) != tensor.shape[0]:
            raise InvalidRequestError(f"{name} has {len(columns[name])} strings; its shape is {tensor.shape}")
    if len(binary):
        raise InvalidRequestError(f"the body has {len(binary)} bytes after its tensors")
    if "TEXT" not in columns:
        raise InvalidRequestError("inputs has no tensor TEXT")
    texts = columns["TEXT"]
    pairs = columns.get("TEXT_PAIR", [None] * len(texts))
    if len(texts) > max_texts:
        raise RequestTooLargeError(f"TEXT has {len(texts)} texts; at most {max_texts} are allowed")
    if len(pairs) != len(texts):
        raise InvalidRequestError(f"TEXT_PAIR has {len(pairs)} texts; TEXT has {len(texts)}")
    return list(zip(texts, pairs, strict=True))


def _decode_strings(binary: memoryview, name: str) -> Iterator[str]:
    while len(binary):
        if len(binary) < _STRING_LENGTH.size:
            raise InvalidRequestError(f"the binary data of {name} ends within a length")
        end = _STRING_LENGTH.size + _STRING_LENGTH.unpack_from(binary)[0]
        if end > len(binary):
            raise InvalidRequestError(f"the binary data of {name} ends within a string")
        try:
            yield str(binary[_STRING_LENGTH.size : end], "utf-8")
        except UnicodeDecodeError:
            raise InvalidRequestError(f"the binary data of {name} has a string that is not UTF-8") from None
        binary = binary[end:]


def output_tensors(task: Task) -> list[TensorMetadata]:
    """The model's outputs; LABEL only where exactly one label applies."""
    count = len(label_names(task))
    numbers = [TensorMetadata(name=name, datatype="FP32", shape=[-1, count]) for name in ("SCORES", "LOGITS")]
    label = TensorMetadata(name="LABEL", datatype="BYTES", shape=[-1])
    return [label, *numbers] if task.task_type == "classification" else numbers


def _requested_outputs(task: Task, requested: Sequence[RequestedOutput] | None) -> Sequence[RequestedOutput]:
    available = {tensor.name: tensor for tensor in output_tensors(task)}
    requested = requested or [RequestedOutput(name=name) for name in available]
    for index, item in enumerate(requested):
        if item.name not in available or item.name in [other.name for other in requested[:index]]:
            near = suggestion(item.name, list(available))
            raise InvalidRequestError(f"outputs[{index}] {item.name[:100]!r} is unknown or repeated{near}")
        top, most = item.parameters.classification or 0, max(0, available[item.name].shape[-1])
        if top > most:
            raise InvalidRequestError(f"classification of {item.name} is {top}; it must be at most {most}")
    return requested


def _output_tensor(
    task: Task, output: RequestOutput, item: RequestedOutput, abstain_below: float | None
) -> OutputTensor:
    labels, top = label_names(task), item.parameters.classification or 0
    logits = [text.logits for text in output.outputs]
    scores = score_matrix(task, logits, function_name="none" if item.name == "LOGITS" else None)
    data: list[str] | list[float]
    if item.name == "LABEL":
        silent = abstaining(task, logits, abstain_below)
        best_labels = ["" if none else labels[best] for none, best in zip(silent, scores.argmax(axis=-1), strict=True)]
        shape, data = [len(scores)], best_labels
    elif top:  # as the classification extension writes it
        best = np.argsort(-scores, axis=-1, kind="stable")[:, :top]
        pairs = ((row[index], index) for row, indices in zip(scores, best, strict=True) for index in indices)
        shape, data = [*best.shape], [f"{score:.6f}:{index}:{labels[index]}" for score, index in pairs]
    else:
        shape, data = [*scores.shape], scores.ravel().tolist()
    datatype = "BYTES" if item.name == "LABEL" or top else "FP32"
    return OutputTensor(name=item.name, datatype=datatype, shape=shape, data=data)
