"""Errors that end one request, each with its HTTP status; their messages are written for the client."""

import math
from collections.abc import Mapping

from limbert.errors import LimbertError


class ServeError(LimbertError):
    """Base of the errors that a request can end with."""

    status = 500
    error_type = "Backend"  # TEI's name for it
    headers: Mapping[str, str] = {}  # to send with the response


class InvalidRequestError(ServeError):
    """A value of the wrong type or out of range, an unknown name, or options that contradict each other."""

    status, error_type = 422, "Validation"


class RequestTooLargeError(ServeError):
    """A text longer than the model takes where truncation is off, too many texts, or a body over the limit."""

    status, error_type = 413, "Validation"


class InferenceError(ServeError):
    """The model fails on a text, or its outputs are not finite."""

    status = 424


class OverloadedError(ServeError):
    """The deadline cannot be met, or the queue is full; accepted probably after ``retry_after`` seconds."""

    status, error_type = 429, "Overloaded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        seconds, milliseconds = (max(1, math.ceil(unit * retry_after)) for unit in (1, 1000))
        self.headers = {"retry-after": str(seconds), "retry-after-ms": str(milliseconds)}


class UnavailableError(ServeError):
    """Inference has failed, or the server is starting or shutting down."""

    status, error_type = 503, "Unhealthy"


class ApiError(ServeError):
    """An error with a status and headers of its own, such as 401 or 415."""

    def __init__(
        self, status: int, message: str, *, error_type: str = "Validation", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.error_type, self.headers = status, error_type, headers or {}
