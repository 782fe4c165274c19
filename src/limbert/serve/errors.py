"""Errors that end one request, each with its HTTP status; their messages are written for the client.

::

    ServeError(LimbertError)
    ├── InvalidRequestError    422  a value of the wrong type or out of range, or options that contradict each other
    ├── RequestTooLargeError   413  a text, a batch or a body over the server's limit
    ├── InferenceError         424  the model fails on this text
    ├── OverloadedError        429  the deadline cannot be met, or the queue is full; says when to try again
    ├── UnavailableError       503  the compute thread has failed, or the server is starting or shutting down
    └── ApiError                    any other status
"""

import math
from collections.abc import Mapping

from limbert.errors import LimbertError

_ERROR_TYPES = {424: "Backend", 429: "Overloaded", 500: "Backend", 503: "Unhealthy"}  # others: Validation


class ServeError(LimbertError):
    """Base of the errors that a request can end with.

    Attributes:
        status: HTTP status.
        error_type: TEI's name for it.
        headers: to send with the response.
    """

    status = 500
    headers: Mapping[str, str] = {}

    @property
    def error_type(self) -> str:
        """TEI's name for it."""
        return _ERROR_TYPES.get(self.status, "Validation")


class InvalidRequestError(ServeError):
    """A value of the wrong type or out of range, an unknown name, or options that contradict each other."""

    status = 422


class RequestTooLargeError(ServeError):
    """A text longer than the model takes where truncation is off, too many texts, or a body over the limit."""

    status = 413


class InferenceError(ServeError):
    """The model fails on a text, or its outputs are not finite."""

    status = 424


class OverloadedError(ServeError):
    """The deadline cannot be met, or the queue is full.

    Attributes:
        retry_after: seconds after which the request would probably be accepted.
    """

    status = 429

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        milliseconds = max(1, math.ceil(retry_after * 1000))
        self.headers = {"retry-after": str(max(1, math.ceil(retry_after))), "retry-after-ms": str(milliseconds)}


class UnavailableError(ServeError):
    """The compute thread has failed, or the server is starting or shutting down."""

    status = 503


class ApiError(ServeError):
    """An error with a status and headers of its own, such as 401 or 415."""

    def __init__(
        self, status: int, message: str, *, error_type: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self._error_type, self.headers = status, error_type, headers or {}

    @property
    def error_type(self) -> str:
        """TEI's name for it."""
        return self._error_type or super().error_type
