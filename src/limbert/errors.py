"""Every error that Limbert raises on purpose, so that a caller can catch one name.

::

    LimbertError
    ├── ConfigError(ValueError)            a setting is out of range, or two settings contradict each other
    ├── SubnetError(ValueError)            a width, depth or layer choice that the model cannot run
    ├── UnsupportedModelError(ValueError)  a model family that has not passed the zeroed-copy test
    ├── DataError(ValueError)              a data file or a row that cannot be read as told
    ├── CheckpointError                    a checkpoint folder that is missing, broken or of another kind
    ├── StorageError                       the disk is full, or a folder cannot be written
    ├── ExportError                        an exported model that does not answer as its source does
    ├── DivergedError                      a training whose loss is no number any more
    ├── ProcessError                       another process of the same training run has ended
    ├── ServeError                         what a server says instead of an answer (limbert.serve.errors)
    └── RemoteError                        a server that does not answer a client
        ├── UnreachableError               nothing answers at its address, or not in time
        ├── BusyError                      it has no time, and says when to try again
        └── RejectedError                  it refuses the request

Each message is one line that names the value that was given and what is allowed.
"""

from importlib import import_module
from typing import Any


class LimbertError(Exception):
    """Base of all errors raised on purpose by Limbert."""


class ConfigError(LimbertError, ValueError):
    """A setting is out of range, or two settings contradict each other."""


class SubnetError(LimbertError, ValueError):
    """A width, depth or layer choice that the model cannot run."""


class UnsupportedModelError(LimbertError, ValueError):
    """A model family that has not passed the zeroed-copy test."""


class DataError(LimbertError, ValueError):
    """A data file or a row that cannot be read as told."""


class CheckpointError(LimbertError):
    """A checkpoint folder that is missing, broken or of another kind."""


class StorageError(LimbertError):
    """The disk is full, or a folder cannot be written."""


class DivergedError(LimbertError):
    """A training whose loss is no number any more."""


class ExportError(LimbertError):
    """An exported model that does not answer as its source does."""


class RemoteError(LimbertError):
    """A server that does not answer a client."""


class UnreachableError(RemoteError):
    """Nothing answers at the server's address, or not in time."""


class BusyError(RemoteError):
    """The server has no time for a request.

    Attributes:
        retry_after: seconds after which it asks to try again.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RejectedError(RemoteError):
    """The server refuses a request.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class ProcessError(LimbertError):
    """Another process of the same training run has ended."""


class TrainingInterrupted(Exception):
    """The run was asked to stop; its state is saved and the same call goes on from there."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, or the error's type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def import_optional(name: str, *, extra: str) -> Any:
    """A module of one of the extras.

    Raises:
        ConfigError: if it is not installed, naming the command that installs it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).partition(".")[0]
        raise ConfigError(f"{missing} is not installed; pip install 'limbert[{extra}]'") from None
