"""Limbert: one pretrained Transformer encoder, run at any trained width and depth.

Importing this package loads nothing else: the names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbert.augment.generate import augment as augment
    from limbert.client import Client as Client
    from limbert.core.space import Space as Space
    from limbert.core.subnet import Shape as Shape
    from limbert.core.subnet import Subnet as Subnet
    from limbert.errors import LimbertError as LimbertError
    from limbert.inference.engine import Engine as Engine
    from limbert.inference.policy import Policy as Policy
    from limbert.method.early_exit import ExitRule as ExitRule
    from limbert.model.elastic import ElasticModel as ElasticModel

_HOMES = {
    "Client": "limbert.client",
    "ElasticModel": "limbert.model.elastic",
    "Engine": "limbert.inference.engine",
    "ExitRule": "limbert.method.early_exit",
    "LimbertError": "limbert.errors",
    "Policy": "limbert.inference.policy",
    "Shape": "limbert.core.subnet",
    "Space": "limbert.core.space",
    "Subnet": "limbert.core.subnet",
    "augment": "limbert.augment.generate",
}

__all__ = [
    "Client",
    "ElasticModel",
    "Engine",
    "ExitRule",
    "LimbertError",
    "Policy",
    "Shape",
    "Space",
    "Subnet",
    "augment",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'limbert' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
