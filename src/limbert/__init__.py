"""Limbert: one pretrained Transformer encoder, trained once, that runs at any trained width and depth.

The public names are imported on first use, so that ``import limbert`` is fast.
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
    from limbert.evaluation.benchmark import benchmark as benchmark
    from limbert.evaluation.choose import choose as choose
    from limbert.evaluation.evaluate import evaluate as evaluate
    from limbert.evaluation.search import search as search
    from limbert.evaluation.tune import tune as tune
    from limbert.export.export import export_model as export_model
    from limbert.inference.engine import Engine as Engine
    from limbert.inference.pipeline import pipeline as pipeline
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
    "benchmark": "limbert.evaluation.benchmark",
    "choose": "limbert.evaluation.choose",
    "evaluate": "limbert.evaluation.evaluate",
    "export_model": "limbert.export.export",
    "pipeline": "limbert.inference.pipeline",
    "search": "limbert.evaluation.search",
    "tune": "limbert.evaluation.tune",
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
    "benchmark",
    "choose",
    "evaluate",
    "export_model",
    "pipeline",
    "pretrain",
    "search",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_PACKAGES:
        return import_module(f"limbert.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'limbert' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
