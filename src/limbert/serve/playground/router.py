"""The playground's routes: the page with its parts, and the JSON that the page asks for."""

from collections.abc import AsyncIterator, Mapping
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from limbert.core.palette import colours
from limbert.errors import LimbertError
from limbert.serve.errors import Fault
from limbert.serve.http_body import object_at, parse_object, read_bytes, text_at
from limbert.serve.metrics import WISHES, Exchange, to_json
from limbert.serve.playground.answers import answer_values, compared, live_values, menu_values
from limbert.serve.selection import Wish
from limbert.serve.service import Text
from limbert.serve.variants import Size

_PAGE = "/playground"
_ASSETS = f"{_PAGE}/assets"
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
OPEN_PATHS = frozenset((_PAGE, *(f"{_ASSETS}/{name}" for name in ("page.css", "colours.css", *_SCRIPTS))))
"""The page and its parts hold nothing of the model: a server with an API key shows them without it."""


def router(exchange: Exchange) -> APIRouter:
    """``/playground``, and what the page asks for below it."""
    service, routes, parts = exchange.service, APIRouter(include_in_schema=False), _parts()

    @routes.get(_PAGE)
    async def page() -> Response:
        return Response(parts["page.html"], headers=_HEADERS, media_type="text/html")

    @routes.get(_ASSETS + "/{name}")
    async def asset(name: str) -> Response:
        if name not in parts or name == "page.html":
            raise Fault(404, f"the playground has no part {name[:100]!r}")
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        return Response(parts[name], headers=_HEADERS, media_type=kind)

    @routes.get(f"{_PAGE}/menu")
    async def menu() -> Response:
        return _json(menu_values(service))

    @routes.get(f"{_PAGE}/live")
    async def live() -> Response:
        return _json(live_values(service))

    @routes.post(f"{_PAGE}/answer")
    async def answer(request: Request) -> Response:
        content = parse_object(await read_bytes(request, limit=service.settings.max_body))
        wish = Wish.from_parameters(object_at(content, "parameters", allowed=WISHES))
        answers = await exchange.ask(request, [_text(content)], wish=wish, truncate=True)
        return _json(answer_values(service.task, answers))

    @routes.post(f"{_PAGE}/sizes")
    async def sizes(request: Request) -> Response:
        """A JSON line a size, the full model first; one after the other, so that others' requests come between."""
        text = _text(parse_object(await read_bytes(request, limit=service.settings.max_body)))
        return StreamingResponse(_all_sizes(exchange, text), headers=_HEADERS, media_type="application/x-ndjson")

    return routes


def _text(content: Mapping[str, Any]) -> Text:
    pair = content.get("pair")
    return text_at(content.get("text"), "text"), None if pair is None else text_at(pair, "pair")


async def _all_sizes(exchange: Exchange, text: Text) -> AsyncIterator[bytes]:
    """Cancelled by the server when the client hangs up: what it waits for leaves the queue."""
    service, menu = exchange.service, exchange.service.menu
    first = menu.full
    full: dict[str, Any] | None = None
    for size in (first, *(size for size in menu.sizes if size is not first)):
        line: dict[str, Any] = {"name": size.name}
        try:
            answers = await service.answer([text], wish=_wish_for(size))
        except LimbertError as error:
            line |= {"error": str(error)}
        else:
            exchange.metrics.count(answers)
            values = answer_values(service.task, answers)
            full = values if size is first else full
            line |= {"answer": values} | compared(values, full)
        yield to_json(line) + b"\n"


def _wish_for(size: Size) -> Wish:
    return Wish(policy=size.name) if size.kind == "policy" else Wish(subnet=size.name)


def _json(value: Any) -> Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(to_json(value), headers=headers, media_type="application/json")


def _parts() -> dict[str, bytes]:
    """The page's files by name, read once; the colours are the report's."""
    folder = files("limbert.serve.playground")
    parts = {name: (folder / name).read_bytes() for name in ("page.html", "page.css", *_SCRIPTS)}
    return parts | {"colours.css": _colours().encode()}


def _colours() -> str:
    light, dark = (
        "".join(f"--{name}:{pair[place]};" for name, pair in colours().items()) + f"color-scheme:{scheme};"
        for place, scheme in enumerate(("light", "dark"))
    )
    return (
        f":root {{{light}}}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{{dark}}} }}\n"
        f":root[data-theme=light] {{{light}}}\n"
        f":root[data-theme=dark] {{{dark}}}\n"
    )
