"""Old public names that work for one release, with a DeprecationWarning that gives the new name."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def warn_renamed(old: str, new: str) -> None:
    """Warn the caller of the caller that ``old`` is now called ``new``."""
    warnings.warn(f"{old} is deprecated and will be removed in the next release; use {new}", DeprecationWarning, 3)


class RenamedAttribute:
    """Class attribute under which the old name of a method or property reads the new one.

    Args:
        new: the new name.
        arguments: parameters of the method that were renamed too, old name to new name.
    """

    def __init__(self, new: str, **arguments: str) -> None:
        self._new, self._arguments = new, arguments

    def __set_name__(self, owner: type, name: str) -> None:
        self._old = name

    def __get__(self, instance: object, owner: type) -> Any:
        warn_renamed(f"{owner.__name__}.{self._old}", self._new)
        value = getattr(owner if instance is None else instance, self._new)
        return _rename_keywords(value, self._arguments) if self._arguments else value


def renamed_arguments(**arguments: str) -> Callable[[_Function], _Function]:
    """Decorator for a function that also takes renamed keyword arguments, ``old="new"``."""
    return lambda function: _rename_keywords(function, arguments)


def _rename_keywords(function: Any, names: Mapping[str, str]) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        for old, new in names.items():
            if old in kwargs:
                warn_renamed(f"{old}=", f"{new}=")
                if new in kwargs:
                    raise TypeError(f"{old}= and {new}= are the same argument; give {new}= only")
                kwargs[new] = kwargs.pop(old)
        return function(*args, **kwargs)

    return wrapper


def renamed_module_attributes(module: Mapping[str, Any], names: Mapping[str, str]) -> Callable[[str], Any]:
    """``__getattr__`` of a module whose attributes were renamed, old name to new name.

    Args:
        module: ``globals()`` of the module.
        names: old name to new name.
    """

    def get_attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
        warn_renamed(f"{module['__name__']}.{name}", names[name])
        return module[names[name]]

    return get_attribute
