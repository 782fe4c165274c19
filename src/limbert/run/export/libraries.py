"""Optional libraries, asked for by name where they are used: absent, the error says what to install."""

from importlib import import_module
from typing import Any

from limbert.errors import ConfigError


def optional_library(name: str) -> Any:
    """A module of the extra ``export``.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{(error.name or name).partition('.')[0]} is not installed; pip install 'limbert[export]'"
        ) from error
