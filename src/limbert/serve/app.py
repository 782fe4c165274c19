"""The HTTP application: all protocols and the playground over one service."""

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from limbert.serve.errors import ApiError, ServeError
from limbert.serve.metrics import ServerMetrics
from limbert.serve.middleware import RequestLimits
from limbert.serve.playground import router as playground
from limbert.serve.protocols import health, hf_inference, open_inference, tei
from limbert.serve.responses import score_function
from limbert.serve.schemas import USAGE_HEADERS, describe_limits, error_response, validation_error
from limbert.serve.service import Service

_DESCRIPTION = """One elastic model over the protocol of your client: Hugging Face inference, Text Embeddings Inference,
or the Open Inference Protocol version 2. In each, `parameters` takes `latency_budget_ms`, `min_quality`, `subnet` or
`policy`. Response headers name the variants that ran and the time by stage."""
_PUBLIC_GET_PATHS = playground.PUBLIC_PATHS | {"/"}


def create_app(service: Service) -> FastAPI:
    """The application for a service, which it neither starts nor closes.

    With an API key in the settings, all paths need it but health and the files of the playground.

    Raises:
        UnsupportedModelError: for a task that does not score whole texts.
    """
    score_function(service.task)
    metrics = ServerMetrics(service)
    service.on_output = metrics.observe_output
    app = FastAPI(
        title="Limbert", version=version("limbert"), description=_DESCRIPTION,
        redoc_url=None, docs_url=None, strict_content_type=False,
    )  # fmt: skip
    for protocol in (hf_inference, tei, open_inference, playground):
        app.include_router(protocol.create_router(service))
    app.include_router(health.create_router(service, metrics))
    app.add_api_route("/", _browser_start, include_in_schema=False)  # last: 405 is for the documented methods
    for error in (ServeError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(error, _handle_error)
    app.openapi = lambda: _openapi_document(app, service)  # type: ignore[method-assign] # as FastAPI documents it
    app.add_middleware(RequestLimits, metrics=metrics, settings=service.settings, is_public=_is_public)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key"],
            expose_headers=["Retry-After", "Retry-After-Ms", *USAGE_HEADERS],
        )
    return app


async def _browser_start(request: Request) -> Response:
    """Lead a browser to the playground."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("playground", 307)
    raise ApiError(405, "GET is for browsers; send texts with POST", headers={"allow": "POST"})


def _is_public(method: str, path: str) -> bool:
    return path in health.PUBLIC_PATHS or (method == "GET" and path in _PUBLIC_GET_PATHS)


async def _handle_error(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        error = validation_error(error.errors())
    elif isinstance(error, HTTPException):  # Starlette's 404 and 405, FastAPI's 400 for a body that is not UTF-8
        unreadable = "the body cannot be read; it must be JSON in UTF-8, not nested deeply"
        detail = unreadable if error.status_code == 400 else str(error.detail)
        error = ApiError(error.status_code, detail, headers=error.headers)
    elif not isinstance(error, ServeError):
        error = ServeError("internal error; see the server's log")
    return error_response(error)


def _openapi_document(app: FastAPI, service: Service) -> dict[str, Any]:
    if not app.openapi_schema:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, definitions = models_json_schema(  # a route reads this body itself, since binary tensors may follow it
            [(open_inference.InferRequest, "validation")], ref_template="#/components/schemas/{model}"
        )
        document["components"]["schemas"] |= definitions["$defs"]
        describe_limits(document, service.variants, max_texts=service.settings.max_texts)
        app.openapi_schema = document
    return app.openapi_schema
