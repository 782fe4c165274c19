"""What can go wrong with one request, each with its own HTTP status; messages are fit for the client.

::

    ServeError(LimbertError)
    ├── BadRequest   422  a wish that contradicts itself or names what there is not, or an input of another form
    ├── TooLong      413  more tokens or texts than the server takes
    ├── Refused      429  cannot be met in time, or the queue is full; says when to come again
    └── Down         503  the compute thread has died, or the server is being shut down
"""

from limbert.errors import LimbertError


class ServeError(LimbertError):
    """Base of what a request can be answered with instead of an answer."""


class BadRequest(ServeError):
    """An unknown sub-network or policy, a wish that contradicts itself, or an input of another form."""


class TooLong(ServeError):
    """More tokens than the model takes where cutting was not allowed, or more texts than a request may hold."""


class Refused(ServeError):
    """The request cannot be met in time, or the queue is full.

    Attributes:
        retry_after: seconds until it would probably be met.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Down(ServeError):
    """The server cannot answer any more: its compute thread has died, or it is being shut down."""
