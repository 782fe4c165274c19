"""Whether the server lives, what it serves, and its counters: for probes, people and Prometheus."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from limbert.serve.errors import ApiError
from limbert.serve.metrics import RequestHandler
from limbert.serve.protocols import schemas
from limbert.serve.scores import label_names
from limbert.serve.service import Service

PUBLIC_PATHS = frozenset(("/health", "/v2/health/live", "/v2/health/ready"))  # answered without the API key


def create_router(handler: RequestHandler) -> APIRouter:
    """``/health``, ``/v2/health/live``, ``/v2/health/ready``, ``/info`` and ``/metrics``."""
    service, routes = handler.service, APIRouter(tags=["Health"])

    @routes.get("/health", summary="Health", operation_id="health", **schemas.get_route(schemas.STATUS, 503))
    async def health() -> Any:
        """200 while the server can compute, 503 once it cannot any more and should be replaced."""
        _check_health(service)
        return {"status": "healthy"}

    @routes.get("/v2/health/live", summary="Live", operation_id="oip_live", **schemas.get_route(schemas.LIVE, 503))
    async def live() -> Any:
        """As /health: a server that cannot compute any more should be restarted."""
        _check_health(service)
        return {"live": True}

    @routes.get("/v2/health/ready", summary="Ready", operation_id="oip_ready", **schemas.get_route(schemas.READY, 503))
    async def ready() -> Any:
        """200 while requests are taken; 503 during start and while the server drains."""
        _check_health(service)
        if not service.ready:
            raise ApiError(503, "the server is starting, or drains before its end")
        return {"ready": True}

    @routes.get("/info", summary="What is served", operation_id="info", **schemas.get_route(schemas.INFO, 401))
    async def info() -> Any:
        """The model, its labels, its limits, and the sizes that it can run as."""
        return server_info(service)

    @routes.get(
        "/metrics", summary="Prometheus metrics", operation_id="metrics", response_class=Response,
        responses=schemas.text_responses(401),
    )  # fmt: skip
    async def metrics(request: Request) -> Response:
        """Counters of this process since its start."""
        return Response(handler.metrics.exposition(), headers={"content-type": handler.metrics.content_type})

    return routes


def _check_health(service: Service) -> None:
    if not service.healthy:
        raise ApiError(503, "the compute thread has died; this server must be restarted")


def server_info(service: Service) -> dict[str, Any]:
    """What ``/info`` says: TEI's fields, and Limbert's."""
    labels, settings = label_names(service.task), service.settings
    names = {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    return {
        "model_id": service.model_name,
        "model_sha": None,
        "model_dtype": "bfloat16" if settings.precision == "bf16" else "float32",
        "model_type": {"classifier": names},
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
        "sizes": [
            {
                "name": size.name,
                "kind": size.kind,
                "quality": size.quality,
                "metric": size.metric,
                "data": size.eval_split,
                "flops": size.flops,
            }
            for size in service.variants.variants
        ],
    }
