"""The HTTP application: every protocol on its own path, over one service."""

from importlib.metadata import version

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from limbert.serve.errors import ServeError, handle_http_error, handle_serve_error, handle_unexpected_error
from limbert.serve.metrics import CLIENT_CLOSED_REQUEST, ClientDisconnectedError, RequestHandler, ServerMetrics
from limbert.serve.middleware import RequestLimits
from limbert.serve.playground import router as playground
from limbert.serve.protocols import health, hf_inference, open_inference, tei
from limbert.serve.scores import score_function
from limbert.serve.service import Service

_DESCRIPTION = """One elastic model, asked in the protocol that a client knows: Hugging Face inference, Text Embeddings
Inference, or the Open Inference Protocol version 2. In each, `parameters` takes wishes: `latency_budget_ms`,
`min_quality`, `subnet` or `policy`. The headers of an answer say which size answered and where the time went."""


def create_app(service: Service) -> FastAPI:
    """The application that answers for a service. It neither starts nor ends it.

    With an API key in the service's settings, everything needs it but health and the playground's page.

    Raises:
        UnsupportedModelError: for a task whose answers are no scores of whole texts.
    """
    score_function(service.task)
    metrics = ServerMetrics(service)
    app = FastAPI(title="Limbert", version=version("limbert"), description=_DESCRIPTION, redoc_url=None, docs_url=None)
    exchange = RequestHandler(service, metrics)
    for protocol in (hf_inference, tei, open_inference, health):
        app.include_router(protocol.create_router(exchange))
    app.include_router(playground.create_router(exchange))
    app.add_exception_handler(HTTPException, handle_http_error)
    app.add_exception_handler(ServeError, handle_serve_error)
    for gone in (ClientDisconnectedError, ClientDisconnect):  # while it waited for its answer; while it sent its body
        app.add_exception_handler(gone, _handle_client_disconnect)
    app.add_exception_handler(Exception, handle_unexpected_error)
    app.add_middleware(
        RequestLimits,
        metrics=metrics,
        api_key=service.settings.api_key,
        is_public=_is_public,
        max_body=service.settings.max_body,
        body_timeout=service.settings.body_timeout,
    )
    return app


def _is_public(method: str, path: str) -> bool:
    """Health for probes, and the playground's page, which asks for the key and holds no answers itself."""
    return path in health.PUBLIC_PATHS or (method in ("GET", "HEAD") and path in playground.PUBLIC_PATHS)


async def _handle_client_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
