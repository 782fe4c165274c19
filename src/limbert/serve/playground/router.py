"""The playground's routes: the page with its parts, and the JSON that the page asks for."""

from collections.abc import AsyncIterator, Mapping
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from limbert.core.palette import palette_colours
from limbert.errors import LimbertError
from limbert.serve.errors import ApiError
from limbert.serve.http_body import optional_object, parse_json_object, read_body, require_string
from limbert.serve.metrics import REQUEST_OPTIONS, RequestHandler, to_json
from limbert.serve.playground.answers import compare_with_full, model_json, prediction_json, status_json
from limbert.serve.selection import RequestOptions
from limbert.serve.service import TextInput
from limbert.serve.variants import Variant

_PAGE_PATH = "/playground"
_ASSETS_PATH = f"{_PAGE_PATH}/assets"
_SCRIPTS = ("main.js", "server.js", "draw.js", "size.js", "answer.js", "all.js", "live.js")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
PUBLIC_PATHS = frozenset((_PAGE_PATH, *(f"{_ASSETS_PATH}/{name}" for name in ("page.css", "colours.css", *_SCRIPTS))))
"""The page and its parts hold nothing of the model: a server with an API key shows them without it."""


def create_router(handler: RequestHandler) -> APIRouter:
    """``/playground``, and what the page asks for below it."""
    service, routes, parts = handler.service, APIRouter(include_in_schema=False), _page_files()

    @routes.get(_PAGE_PATH)
    async def page() -> Response:
        return Response(parts["page.html"], headers=_HEADERS, media_type="text/html")

    @routes.get(_ASSETS_PATH + "/{name}")
    async def asset(name: str) -> Response:
        if name not in parts or name == "page.html":
            raise ApiError(404, f"the playground has no part {name[:100]!r}")
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        return Response(parts[name], headers=_HEADERS, media_type=kind)

    @routes.get(f"{_PAGE_PATH}/menu")
    async def menu() -> Response:
        return _json(model_json(service))

    @routes.get(f"{_PAGE_PATH}/live")
    async def live() -> Response:
        return _json(status_json(service))

    @routes.post(f"{_PAGE_PATH}/answer")
    async def answer(request: Request) -> Response:
        content = parse_json_object(await read_body(request, max_body=service.settings.max_body))
        wish = RequestOptions.from_parameters(optional_object(content, "parameters", allowed=REQUEST_OPTIONS))
        answers = await handler.predict(request, [_parse_text(content)], options=wish, truncate=True)
        return _json(prediction_json(service.task, answers))

    @routes.post(f"{_PAGE_PATH}/sizes")
    async def sizes(request: Request) -> Response:
        """A JSON line a size, the full model first; one after the other, so that others' requests come between."""
        text = _parse_text(parse_json_object(await read_body(request, max_body=service.settings.max_body)))
        return StreamingResponse(
            _predict_all_variants(handler, text), headers=_HEADERS, media_type="application/x-ndjson"
        )

    return routes


def _parse_text(content: Mapping[str, Any]) -> TextInput:
    pair = content.get("pair")
    return require_string(content.get("text"), "text"), None if pair is None else require_string(pair, "pair")


async def _predict_all_variants(handler: RequestHandler, text: TextInput) -> AsyncIterator[bytes]:
    """Cancelled by the server when the client hangs up: what it waits for leaves the queue."""
    service, menu = handler.service, handler.service.variants
    first = menu.full
    full: dict[str, Any] | None = None
    for size in (first, *(size for size in menu.variants if size is not first)):
        line: dict[str, Any] = {"name": size.name}
        try:
            answers = await service.predict([text], options=_options_for(size))
        except LimbertError as error:
            line |= {"error": str(error)}
        else:
            handler.metrics.observe_output(answers)
            values = prediction_json(service.task, answers)
            full = values if size is first else full
            line |= {"answer": values} | compare_with_full(values, full)
        yield to_json(line) + b"\n"


def _options_for(variant: Variant) -> RequestOptions:
    return RequestOptions(policy=variant.name) if variant.kind == "policy" else RequestOptions(subnet=variant.name)


def _json(value: Any) -> Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(to_json(value), headers=headers, media_type="application/json")


def _page_files() -> dict[str, bytes]:
    """The page's files by name, read once; the colours are the report's."""
    folder = files("limbert.serve.playground")
    parts = {name: (folder / name).read_bytes() for name in ("page.html", "page.css", *_SCRIPTS)}
    return parts | {"colours.css": _color_css().encode()}


def _color_css() -> str:
    light, dark = (
        "".join(f"--{name}:{pair[place]};" for name, pair in palette_colours().items()) + f"color-scheme:{scheme};"
        for place, scheme in enumerate(("light", "dark"))
    )
    return (
        f":root {{{light}}}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{{dark}}} }}\n"
        f":root[data-theme=light] {{{light}}}\n"
        f":root[data-theme=dark] {{{dark}}}\n"
    )
