"""ASGI middleware around all routes: API key, limits of the body, disconnected clients, and the request metrics."""

import asyncio
import hmac
import re
import zlib
from collections.abc import Callable
from time import perf_counter

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limbert.serve.errors import ApiError, RequestTooLargeError, ServeError
from limbert.serve.metrics import ServerMetrics
from limbert.serve.schemas import error_response
from limbert.serve.settings import ServeSettings

_CLIENT_DISCONNECTED = 499  # in the metrics only
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # of zlib, by Content-Encoding
_CLOSE = {"connection": "close"}  # the rest of the body may follow on the connection
_PROTOCOL_PREFIXES = (
    ("/predict", "tei"),
    ("/v2/health", "health"),
    ("/health", "health"),
    ("/v2", "open-inference"),
    ("/models/", "huggingface"),
    ("/playground", "playground"),
)


class RequestLimits:
    """Checks and reads each request before a handler sees it, and cancels the handler if the client disconnects.

    ``is_public`` says whether a method and path need no API key.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: ServerMetrics, settings: ServeSettings, is_public: Callable[[str, str], bool]
    ) -> None:
        self._app, self._metrics, self._settings, self._is_public = app, metrics, settings, is_public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, complete = perf_counter(), _CLIENT_DISCONNECTED, False

        async def observed_send(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                complete = not message.get("more_body", False)
            await send(message)

        if scope["method"] == "HEAD":  # the server drops the body
            scope = {**scope, "method": "GET"}
        try:
            self._check_key(scope)
            if scope["method"] != "POST":
                await self._app(scope, receive, observed_send)
            elif (body := await self._read_body(scope, receive)) is not None:
                await _run_until_disconnect(self._app, scope, body, receive, observed_send, lambda: complete)
        except ServeError as error:
            await error_response(error)(scope, receive, observed_send)
        except Exception:
            status = 500  # sent by Starlette, outside of this
            raise
        finally:
            self._metrics.observe_request(protocol_name(scope["path"]), status=status, seconds=perf_counter() - start)

    def _check_key(self, scope: Scope) -> None:
        key = self._settings.api_key
        if key is None or self._is_public(scope["method"], scope["path"]):
            return
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = (token.strip() if scheme.lower() == "bearer" else "") or headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode("latin-1"), key.encode()):  # Starlette decodes headers as Latin-1
            reason = "is wrong" if given else "is missing; send it as Authorization: Bearer KEY or X-API-Key: KEY"
            raise ApiError(401, f"the API key {reason}", headers={"www-authenticate": "Bearer"})

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The decompressed body; None if the client disconnected."""
        headers, path = Headers(scope=scope), scope["path"]
        limit, timeout = self._settings.max_body, self._settings.body_timeout
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdecimal() and (len(length) > 18 or int(length) > limit):
            raise RequestTooLargeError(f"the body is over the limit of {limit} bytes")
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        is_json = media_type in ("", "application/json") or re.fullmatch(r"application/[^/]+\+json", media_type)
        if not is_json and not (media_type == "application/octet-stream" and path.endswith("/infer")):
            raise ApiError(415, f"content-type is {media_type[:100]!r}; it must be application/json")
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(timeout):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > limit:
                        raise ApiError(413, f"the body is over the limit of {limit} bytes", headers=_CLOSE)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {timeout:g} s", headers=_CLOSE) from None
        return _decompress(bytes(body), headers.get("content-encoding", "identity").strip().lower(), limit)


async def _run_until_disconnect(
    app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send, is_complete: Callable[[], bool]
) -> None:
    """Run the application on a body; if the client disconnects before the response is complete, cancel it."""
    task, disconnected, sent_body = asyncio.current_task(), False, False
    assert task is not None

    async def watch() -> None:
        nonlocal disconnected
        while (await receive())["type"] != "http.disconnect":
            pass
        if not is_complete():
            disconnected = True
            task.cancel()

    async def receive_body() -> Message:
        nonlocal sent_body
        if sent_body:
            await asyncio.Event().wait()  # until the response is complete: this function watches the connection
        sent_body = True
        return {"type": "http.request", "body": body, "more_body": False}

    watcher = asyncio.create_task(watch())
    try:
        await app(scope, receive_body, send)
    except asyncio.CancelledError:
        if not disconnected:
            raise
        task.uncancel()
    finally:
        watcher.cancel()


def protocol_name(path: str) -> str:
    """The protocol's name in the metrics."""
    if path == "/":
        return "huggingface"
    return next((name for prefix, name in _PROTOCOL_PREFIXES if path.startswith(prefix)), "other")


def _decompress(body: bytes, encoding: str, limit: int) -> bytes:
    if encoding == "identity":
        return body
    if encoding not in _WINDOW_BITS:
        raise ApiError(415, f"content-encoding is {encoding[:100]!r}; it must be {' or '.join(_WINDOW_BITS)}")
    decompressor = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = decompressor.decompress(body, limit + 1)
    except zlib.error:
        raise ApiError(400, f"the body is not valid {encoding}, the content-encoding of the request") from None
    if len(plain) > limit:
        raise RequestTooLargeError(f"the body is over the limit of {limit} bytes when decompressed")
    if not decompressor.eof:
        raise ApiError(400, f"the {encoding} body is incomplete")
    return plain
