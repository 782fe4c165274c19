"""The HTTP application: every protocol on its own path, over one service."""

from importlib.metadata import version

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from limbert.serve.errors import ServeError, answer_http_error, answer_serve_error, answer_unexpected
from limbert.serve.metrics import GONE, ClientGone, Exchange, Metrics
from limbert.serve.middleware import Guard
from limbert.serve.playground import router as playground
from limbert.serve.protocols import health, hf_inference, open_inference, tei
from limbert.serve.scores import function_of
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
    function_of(service.task)
    metrics = Metrics(service)
    app = FastAPI(title="Limbert", version=version("limbert"), description=_DESCRIPTION, redoc_url=None, docs_url=None)
    exchange = Exchange(service, metrics)
    for protocol in (hf_inference, tei, open_inference, health):
        app.include_router(protocol.router(exchange))
    app.include_router(playground.router(exchange))
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(ServeError, answer_serve_error)
    for gone in (ClientGone, ClientDisconnect):  # while it waited for its answer; while it sent its body
        app.add_exception_handler(gone, _nobody_listens)
    app.add_exception_handler(Exception, answer_unexpected)
    app.add_middleware(
        Guard,
        metrics=metrics,
        key=service.settings.api_key,
        is_open=_is_open,
        limit=service.settings.max_body,
        seconds=service.settings.body_timeout,
    )
    return app


def _is_open(method: str, path: str) -> bool:
    """Health for probes, and the playground's page, which asks for the key and holds no answers itself."""
    return path in health.OPEN_PATHS or (method in ("GET", "HEAD") and path in playground.OPEN_PATHS)


async def _nobody_listens(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)
