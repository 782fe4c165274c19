"""The exceptions of Limbert, all derived from LimbertError.

::

    LimbertError
    ├── ConfigError(ValueError)            a setting is out of range, or two settings contradict each other
    ├── SubnetError(ValueError)            a width, depth or layer choice that the model cannot run
    ├── UnsupportedModelError(ValueError)  a model family that is not supported
    ├── DataError(ValueError)              a data file or a row that cannot be read
    ├── CheckpointError                    a checkpoint folder that is missing, incomplete or broken
    ├── StorageError                       the disk is full, or a file or folder cannot be written
    ├── ExportError                        an exported model whose predictions differ from its source
    ├── OutOfMemoryError                   not enough memory for a batch; says which size to try
    ├── DivergedError                      a training loss that is NaN or infinite
    ├── ProcessError                       another process of the same training run has ended
    ├── ServeError                         an error response of the server (limbert.serve.errors)
    └── RemoteError                        a request to a server that failed (limbert.Client)
        ├── UnreachableError               no connection, or no response in time
        ├── BusyError                      the server is overloaded; says when to retry
        └── RejectedError                  the server refused the request

Each message is one line that names the value, what is allowed and what to try next. ``TrainingInterrupted`` is not an
error: a run that was stopped by a signal raises it after saving its state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


class LimbertError(Exception):
    """Base class of Limbert's errors."""


class ConfigError(LimbertError, ValueError):
    """A setting is out of range, or two settings contradict each other."""


class SubnetError(LimbertError, ValueError):
    """A width, depth or layer choice that the model cannot run."""


class UnsupportedModelError(LimbertError, ValueError):
    """A model family that is not supported."""


class DataError(LimbertError, ValueError):
    """A data file or a row that cannot be read."""


class CheckpointError(LimbertError):
    """A checkpoint folder that is missing, incomplete or broken."""


class StorageError(LimbertError):
    """The disk is full, or a file or folder cannot be written."""


class OutOfMemoryError(LimbertError):
    """Not enough memory for a batch."""


class DivergedError(LimbertError):
    """A training loss that is NaN or infinite."""


class ExportError(LimbertError):
    """An exported model whose predictions differ from its source."""


class RemoteError(LimbertError):
    """A request to a server that failed."""


class UnreachableError(RemoteError):
    """No connection to the server, or no response in time."""


class BusyError(RemoteError):
    """The server is overloaded.

    Attributes:
        retry_after: seconds to wait before the next attempt, as the server says.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RejectedError(RemoteError):
    """The server refused a request.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class ProcessError(LimbertError):
    """Another process of the same training run has ended."""


class TrainingInterrupted(Exception):
    """Training was stopped by a signal; its state is saved, and the same call resumes it."""


@contextmanager
def explain_out_of_memory(batch_size: int | None) -> Iterator[None]:
    """Turn the errors of allocators of CPUs and GPUs into one that names the batch size to try, if it is known.

    Raises:
        OutOfMemoryError: instead of MemoryError, or a RuntimeError of that meaning.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reasons = ("out of memory", "allocate memory", "bad_alloc")
        if not isinstance(error, MemoryError) and not any(reason in str(error) for reason in reasons):
            raise
        size = "" if batch_size is None else f" with a batch size of {batch_size}"
        smaller = f"--batch-size {batch_size // 2}" if batch_size and batch_size > 1 else "a smaller --batch-size"
        raise OutOfMemoryError(f"out of memory{size}; try {smaller}, or a smaller --max-length") from error


def first_line(error: BaseException) -> str:
    """First line of a library's error message, or the type of the error if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def import_optional(name: str, *, extra: str) -> Any:
    """Import a module of an optional extra.

    Raises:
        ConfigError: if it is not installed, naming the command that installs it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).partition(".")[0]
        raise ConfigError(f"{missing} is not installed; pip install 'limbert[{extra}]'") from None
