"""What every request passes first: the API key, the limit on its body and the time for sending it, and the counting.

Plain ASGI, with nothing between the server and the routes that costs more than a few microseconds.
"""

import asyncio
import hmac
from collections.abc import Callable, Mapping
from time import perf_counter

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limbert.serve.errors import ApiError
from limbert.serve.metrics import CLIENT_CLOSED_REQUEST, ServerMetrics

_PROTOCOL_PREFIXES = (
    ("/predict", "tei"),
    ("/v2/health", "health"),
    ("/health", "health"),
    ("/v2", "open-inference"),
    ("/models/", "huggingface"),
    ("/playground", "playground"),
)


class RequestLimits:
    """ASGI middleware.

    Args:
        app: what answers.
        metrics: what counts.
        key: the API key; None where everybody may ask.
        is_open: whether a method and path are answered without the key.
        limit: bytes that a body may have.
        seconds: for a whole body to arrive.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: ServerMetrics, api_key: str | None, is_public: Callable[[str, str], bool],
        max_body: int, body_timeout: float,
    ) -> None:  # fmt: skip
        self._app, self._metrics, self._is_public = app, metrics, is_public
        self._api_key = None if api_key is None else api_key.encode()
        self._max_body, self._body_timeout = max_body, body_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = perf_counter(), CLIENT_CLOSED_REQUEST

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, noting)
            else:
                await self._app(
                    scope, _LimitedBody(receive, max_body=self._max_body, timeout=self._body_timeout).receive, noting
                )
        except Exception:
            status = 500  # Starlette answers so outside of this
            raise
        finally:
            self._metrics.observe_request(protocol_name(scope["path"]), status=status, seconds=perf_counter() - start)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self._api_key is not None and not self._is_public(scope["method"], scope["path"]):
            given = _sent_api_key(headers)
            if not hmac.compare_digest(given, self._api_key):
                what = "is wrong" if given else "is missing; send it as Authorization: Bearer KEY or X-API-Key: KEY"
                return ApiError(401, f"the API key {what}", headers={"www-authenticate": "Bearer"}).response()
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdecimal() and (len(length) > 18 or int(length) > self._max_body):
            return body_too_large_error(self._max_body).response()
        return None


def protocol_name(path: str) -> str:
    """The protocol's name in the counters."""
    if path == "/":
        return "huggingface"
    return next((name for start, name in _PROTOCOL_PREFIXES if path.startswith(start)), "other")


def body_too_large_error(max_body: int, headers: Mapping[str, str] | None = None) -> ApiError:
    """The answer to a body of more bytes than allowed."""
    return ApiError(413, f"the body has more than {max_body} bytes, the most allowed", headers=headers)


def _sent_api_key(headers: Headers) -> bytes:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else ""
    return (key or headers.get("x-api-key", "")).encode("latin-1")  # as it came: Starlette decodes headers so


class _LimitedBody:
    """Hands on the body while it keeps to its limits."""

    def __init__(self, receive: Receive, *, max_body: int, timeout: float) -> None:
        self._receive, self._max_body, self._timeout = receive, max_body, timeout
        self._deadline: float | None = None
        self._received, self._complete = 0, False

    async def receive(self) -> Message:
        """The next part; once the body is whole, what else comes (a client that hangs up).

        Raises:
            Fault: 413 or 408, with the connection closed: what would follow on it is the rest of this body.
        """
        if self._complete:
            return await self._receive()
        closing = {"connection": "close"}
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self._timeout:g} s", headers=closing) from None
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        self._received += len(message.get("body", b""))
        if self._received > self._max_body:
            raise body_too_large_error(self._max_body, closing)
        return message
