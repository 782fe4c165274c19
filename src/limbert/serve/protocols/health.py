"""Health probes, what is served, and metrics."""

from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from limbert.core.config import RuntimePrecision
from limbert.serve.errors import UnavailableError
from limbert.serve.metrics import ServerMetrics
from limbert.serve.responses import label_names
from limbert.serve.schemas import error_responses
from limbert.serve.service import Service

PUBLIC_PATHS = frozenset(("/health", "/v2/health/live", "/v2/health/ready"))  # need no API key

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}


class VariantInfo(BaseModel):
    """A sub-network or operating point; qualities on different ``data`` are not compared."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    kind: Literal["subnet", "policy"]
    quality: float | None
    metric: str
    data: Literal["development", "validation"] | None = Field(validation_alias="eval_split")
    flops: Annotated[int, Field(ge=0)]
    runtime: str
    precision: RuntimePrecision
    memory_bytes: Annotated[int, Field(ge=0, description="held by it alone; on torch variants share the full model's")]


def create_router(service: Service, metrics: ServerMetrics) -> APIRouter:
    """``/health``, ``/v2/health/live``, ``/v2/health/ready``, ``/info`` and ``/metrics``."""
    routes = APIRouter(tags=["Health"])
    text: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}

    def check_health() -> None:
        if not service.healthy:
            raise UnavailableError("inference has failed; restart the server")

    @routes.get("/health", responses=error_responses(503))
    async def health() -> dict[str, str]:
        """200 until inference fails for good; then 503: restart the server."""
        check_health()
        return {"status": "healthy"}

    @routes.get("/v2/health/live", responses=error_responses(503))
    async def live() -> dict[str, bool]:
        """The same as /health."""
        check_health()
        return {"live": True}

    @routes.get("/v2/health/ready", responses=error_responses(503))
    async def ready() -> dict[str, bool]:
        """200 while requests are accepted; 503 during start and shutdown."""
        check_health()
        if not service.ready:
            raise UnavailableError("not ready: the server is starting or shutting down")
        return {"ready": True}

    @routes.get("/info", responses=error_responses(401))
    async def info() -> dict[str, Any]:
        """The model, its labels, its limits, and its variants: TEI's fields, the task type, and the variants."""
        settings, labels = service.settings, label_names(service.task)
        id2label = {str(index): label for index, label in enumerate(labels)}
        label2id = {label: index for index, label in enumerate(labels)}
        return {
            "model_id": service.model_name,
            "model_sha": None,
            "model_dtype": _DTYPES[settings.precision],
            "model_type": {"classifier": {"id2label": id2label, "label2id": label2id}},
            "max_concurrent_requests": settings.max_queue,
            "max_input_length": service.max_length,
            "max_batch_tokens": settings.max_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_texts,
            "auto_truncate": False,
            "tokenization_workers": 1,
            "version": version("limbert"),
            "sha": None,
            "docker_label": None,
            "task": service.task.task_type,
            "sizes": [VariantInfo.model_validate(variant).model_dump() for variant in service.variants.variants],
        }

    @routes.get("/metrics", response_class=Response, responses={200: text, **error_responses(401)})
    async def read_metrics() -> Response:
        """Metrics of this process since its start, for Prometheus."""
        return metrics.response()

    return routes
