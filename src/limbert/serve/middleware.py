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

from limbert.serve.errors import Fault
from limbert.serve.metrics import GONE, Metrics

_PROTOCOLS = (
    ("/predict", "tei"),
    ("/v2/health", "health"),
    ("/health", "health"),
    ("/v2", "open-inference"),
    ("/models/", "huggingface"),
    ("/playground", "playground"),
)


class Guard:
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
        self, app: ASGIApp, *, metrics: Metrics, key: str | None, is_open: Callable[[str, str], bool],
        limit: int, seconds: float,
    ) -> None:  # fmt: skip
        self._app, self._metrics, self._is_open = app, metrics, is_open
        self._key = None if key is None else key.encode()
        self._limit, self._seconds = limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = perf_counter(), GONE

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
                await self._app(scope, _Body(receive, limit=self._limit, seconds=self._seconds).receive, noting)
        except Exception:
            status = 500  # Starlette answers so outside of this
            raise
        finally:
            self._metrics.count_request(protocol_of(scope["path"]), status=status, seconds=perf_counter() - start)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self._key is not None and not self._is_open(scope["method"], scope["path"]):
            given = _given_key(headers)
            if not hmac.compare_digest(given, self._key):
                what = "is wrong" if given else "is missing; send it as Authorization: Bearer KEY or X-API-Key: KEY"
                return Fault(401, f"the API key {what}", headers={"www-authenticate": "Bearer"}).response()
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdecimal() and (len(length) > 18 or int(length) > self._limit):
            return too_large(self._limit).response()
        return None


def protocol_of(path: str) -> str:
    """The protocol's name in the counters."""
    if path == "/":
        return "huggingface"
    return next((name for start, name in _PROTOCOLS if path.startswith(start)), "other")


def too_large(limit: int, headers: Mapping[str, str] | None = None) -> Fault:
    """The answer to a body of more bytes than allowed."""
    return Fault(413, f"the body has more than {limit} bytes, the most allowed", headers=headers)


def _given_key(headers: Headers) -> bytes:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else ""
    return (key or headers.get("x-api-key", "")).encode("latin-1")  # as it came: Starlette decodes headers so


class _Body:
    """Hands on the body while it keeps to its limits."""

    def __init__(self, receive: Receive, *, limit: int, seconds: float) -> None:
        self._receive, self._limit, self._seconds = receive, limit, seconds
        self._deadline: float | None = None
        self._read, self._whole = 0, False

    async def receive(self) -> Message:
        """The next part; once the body is whole, what else comes (a client that hangs up).

        Raises:
            Fault: 413 or 408, with the connection closed: what would follow on it is the rest of this body.
        """
        if self._whole:
            return await self._receive()
        closing = {"connection": "close"}
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise Fault(408, f"the body did not arrive within {self._seconds:g} s", headers=closing) from None
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        self._read += len(message.get("body", b""))
        if self._read > self._limit:
            raise too_large(self._limit, closing)
        return message
