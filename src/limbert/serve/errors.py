"""What can go wrong with one request, each with its own HTTP status; messages are fit for the client.

::

    ServeError(LimbertError)
    ├── BadRequest   422  a wish that contradicts itself or names what there is not, or an input of another form
    ├── TooLong      413  more tokens or texts than the server takes
    ├── Refused      429  cannot be met in time, or the queue is full; says when to come again
    └── Down         503  the compute thread has died, or the server is being shut down
"""

import json
import math
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from limbert.errors import LimbertError


class ServeError(LimbertError):
    """Base of what a request can be answered with instead of an answer."""


class InvalidRequestError(ServeError):
    """An unknown sub-network or policy, a wish that contradicts itself, or an input of another form."""


class RequestTooLargeError(ServeError):
    """More tokens than the model takes where cutting was not allowed, or more texts than a request may hold."""


class OverloadedError(ServeError):
    """The request cannot be met in time, or the queue is full.

    Attributes:
        retry_after: seconds until it would probably be met.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(ServeError):
    """The server cannot answer any more: its compute thread has died, or it is being shut down."""


_ERROR_TYPES = {424: "Backend", 429: "Overloaded", 500: "Backend", 503: "Unhealthy"}  # all others: Validation
_MAX_MESSAGE_LENGTH = 500  # characters of a message


class ApiError(HTTPException):
    """A request that is answered with an error.

    It is one of Starlette's so that it also passes where a framework reads the body.

    Args:
        status: the HTTP status.
        error: one line that names the value that was given and what is allowed.
        error_type: one of TEI's names; follows from the status where it is not given.
        headers: to send along.
    """

    def __init__(
        self, status: int, message: str, *, error_type: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.error_type = error_type or _ERROR_TYPES.get(status, "Validation")

    def response(self) -> Response:
        """The answer to send."""
        return error_response(self.status_code, self.detail, self.error_type, self.headers)


def error_response(status: int, message: str, error_type: str, headers: Mapping[str, str] | None = None) -> Response:
    """``{"error", "error_type"}`` with a status."""
    text = escape_surrogates(
        message if len(message) <= _MAX_MESSAGE_LENGTH else message[:_MAX_MESSAGE_LENGTH] + " ..."
    )  # it may name a value as long as it was
    body = json.dumps({"error": text, "error_type": error_type}, ensure_ascii=False).encode()
    return Response(body, status, dict(headers or {}), "application/json")


def escape_surrogates(text: str) -> str:
    """The text with what UTF-8 cannot carry (lone surrogates) spelt out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def to_api_error(error: ServeError) -> ApiError:
    """What a refusal by the service is over HTTP."""
    if isinstance(error, OverloadedError):
        milliseconds = max(1, math.ceil(error.retry_after * 1000))
        waits = {"retry-after": str(max(1, math.ceil(error.retry_after))), "retry-after-ms": str(milliseconds)}
        return ApiError(429, str(error), headers=waits)
    for kind, status in ((RequestTooLargeError, 413), (InvalidRequestError, 422), (UnavailableError, 503)):
        if isinstance(error, kind):
            return ApiError(status, str(error))
    return ApiError(500, str(error))


async def handle_http_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for `Fault` and for its own 404 and 405."""
    if isinstance(error, ApiError):
        return error.response()
    assert isinstance(error, HTTPException)
    return error_response(
        error.status_code, str(error.detail), _ERROR_TYPES.get(error.status_code, "Validation"), error.headers
    )


async def handle_serve_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for what the service refuses."""
    assert isinstance(error, ServeError)
    return to_api_error(error).response()


async def handle_unexpected_error(request: Request, error: Exception) -> Response:
    """A defect: the client learns that there was one, the server's log has the traceback."""
    return error_response(500, "the server failed to answer this request; its log says why", "Backend")
