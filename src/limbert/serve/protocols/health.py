"""Health probes, what is served, and metrics."""

from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from limbert.serve.errors import UnavailableError
from limbert.serve.metrics import ServerMetrics
from limbert.serve.responses import label_names
from limbert.serve.schemas import error_responses
from limbert.serve.service import Service

PUBLIC_PATHS = frozenset(("/health", "/v2/health/live", "/v2/health/ready"))  # need no API key
_Count = Annotated[int, Field(ge=0)]


class VariantInfo(BaseModel):
    """A sub-network or operating point; qualities on different ``data`` are not compared."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    kind: Literal["subnet", "policy"]
    quality: float | None
    metric: str
    data: Literal["development", "validation"] | None = Field(validation_alias="eval_split")
    flops: _Count


class ServerInfo(BaseModel):
    """TEI's fields, the task type, and the variants."""

    model_id: str
    model_sha: str | None = None
    model_dtype: str
    model_type: dict[Literal["classifier"], dict[Literal["id2label", "label2id"], dict[str, Any]]]
    max_concurrent_requests: _Count
    max_input_length: _Count
    max_batch_tokens: _Count
    max_batch_requests: int | None = None
    max_client_batch_size: _Count
    auto_truncate: bool = False
    tokenization_workers: int = 1
    version: str
    sha: str | None = None
    docker_label: str | None = None
    task: str
    sizes: list[VariantInfo]


def create_router(service: Service, metrics: ServerMetrics) -> APIRouter:
    """``/health``, ``/v2/health/live``, ``/v2/health/ready``, ``/info`` and ``/metrics``."""
    routes = APIRouter(tags=["Health"])

    @routes.get("/health", summary="Health", operation_id="health", responses=error_responses(503))
    async def health() -> dict[str, str]:
        """200 until inference fails for good; then 503: restart the server."""
        _check_health(service)
        return {"status": "healthy"}

    @routes.get("/v2/health/live", summary="Live", operation_id="oip_live", responses=error_responses(503))
    async def live() -> dict[str, bool]:
        """The same as /health."""
        _check_health(service)
        return {"live": True}

    @routes.get("/v2/health/ready", summary="Ready", operation_id="oip_ready", responses=error_responses(503))
    async def ready() -> dict[str, bool]:
        """200 while requests are accepted; 503 during start and shutdown."""
        _check_health(service)
        if not service.ready:
            raise UnavailableError("not ready: the server is starting or shutting down")
        return {"ready": True}

    @routes.get("/info", summary="Model", operation_id="info", responses=error_responses(401))
    async def info() -> ServerInfo:
        """The model, its labels, its limits, and its variants."""
        settings, labels = service.settings, label_names(service.task)
        id2label = {str(index): label for index, label in enumerate(labels)}
        label2id = {label: index for index, label in enumerate(labels)}
        return ServerInfo(
            model_id=service.model_name,
            model_dtype="bfloat16" if settings.precision == "bf16" else "float32",
            model_type={"classifier": {"id2label": id2label, "label2id": label2id}},
            max_concurrent_requests=settings.max_queue,
            max_input_length=service.max_length,
            max_batch_tokens=settings.max_batch_tokens,
            max_client_batch_size=settings.max_texts,
            version=version("limbert"),
            task=service.task.task_type,
            sizes=[VariantInfo.model_validate(variant) for variant in service.variants.variants],
        )

    @routes.get(
        "/metrics", summary="Prometheus metrics", operation_id="metrics", response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **error_responses(401)},
    )  # fmt: skip
    async def read_metrics() -> Response:
        """Metrics of this process since its start."""
        return metrics.response()

    return routes


def _check_health(service: Service) -> None:
    if not service.healthy:
        raise UnavailableError("inference has failed; restart the server")
