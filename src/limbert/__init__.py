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
    from limbert.train.arguments import ElasticTrainingArguments as ElasticTrainingArguments
    from limbert.train.phases import Phase as Phase
    from limbert.train.pretrain import pretrain as pretrain
    from limbert.train.run import train as train
    from limbert.train.trainer import ElasticTrainer as ElasticTrainer

_HOMES = {
    "Client": "limbert.client",
    "ElasticModel": "limbert.model.elastic",
    "ElasticTrainer": "limbert.train.trainer",
    "ElasticTrainingArguments": "limbert.train.arguments",
    "Engine": "limbert.inference.engine",
    "ExitRule": "limbert.method.early_exit",
    "LimbertError": "limbert.errors",
    "Phase": "limbert.train.phases",
    "Policy": "limbert.inference.policy",
    "Shape": "limbert.core.subnet",
    "Space": "limbert.core.space",
    "Subnet": "limbert.core.subnet",
    "pretrain": "limbert.train.pretrain",
}
_CALLABLE_PACKAGES = ("augment", "train")  # folders named like the function that users call

__all__ = [
    "Client",
    "ElasticModel",
    "ElasticTrainer",
    "ElasticTrainingArguments",
    "Engine",
    "ExitRule",
    "LimbertError",
    "Phase",
    "Policy",
    "Shape",
    "Space",
    "Subnet",
    "augment",
    "pretrain",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_PACKAGES:
        return import_module(f"limbert.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'limbert' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
