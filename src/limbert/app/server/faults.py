"""How a request fails over HTTP: one body, ``{"error", "error_type"}``, that clients of all three protocols read."""

import json
import math
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from limbert.serve.errors import BadRequest, Down, Refused, ServeError, TooLong

_TYPES = {424: "Backend", 429: "Overloaded", 500: "Backend", 503: "Unhealthy"}  # all others: Validation
_LONGEST = 500  # characters of a message


class Fault(HTTPException):
    """A request that is answered with an error.

    It is one of Starlette's so that it also passes where a framework reads the body.

    Args:
        status: the HTTP status.
        error: one line that names the value that was given and what is allowed.
        error_type: one of TEI's names; follows from the status where it is not given.
        headers: to send along.
    """

    def __init__(
        self, status: int, error: str, *, error_type: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, error, dict(headers or {}))
        self.error_type = error_type or _TYPES.get(status, "Validation")

    def response(self) -> Response:
        """The answer to send."""
        return error_response(self.status_code, self.detail, self.error_type, self.headers)


def error_response(status: int, error: str, error_type: str, headers: Mapping[str, str] | None = None) -> Response:
    """``{"error", "error_type"}`` with a status."""
    text = printable(
        error if len(error) <= _LONGEST else error[:_LONGEST] + " ..."
    )  # it may name a value as long as it was
    body = json.dumps({"error": text, "error_type": error_type}, ensure_ascii=False).encode()
    return Response(body, status, dict(headers or {}), "application/json")


def printable(text: str) -> str:
    """The text with what UTF-8 cannot carry (lone surrogates) spelt out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def fault_of(error: ServeError) -> Fault:
    """What a refusal by the service is over HTTP."""
    if isinstance(error, Refused):
        milliseconds = max(1, math.ceil(error.retry_after * 1000))
        waits = {"retry-after": str(max(1, math.ceil(error.retry_after))), "retry-after-ms": str(milliseconds)}
        return Fault(429, str(error), headers=waits)
    for kind, status in ((TooLong, 413), (BadRequest, 422), (Down, 503)):
        if isinstance(error, kind):
            return Fault(status, str(error))
    return Fault(500, str(error))


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for `Fault` and for its own 404 and 405."""
    if isinstance(error, Fault):
        return error.response()
    assert isinstance(error, HTTPException)
    return error_response(
        error.status_code, str(error.detail), _TYPES.get(error.status_code, "Validation"), error.headers
    )


async def answer_serve_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for what the service refuses."""
    assert isinstance(error, ServeError)
    return fault_of(error).response()


async def answer_unexpected(request: Request, error: Exception) -> Response:
    """A defect: the client learns that there was one, the server's log has the traceback."""
    return error_response(500, "the server failed to answer this request; its log says why", "Backend")
