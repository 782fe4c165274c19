"""Augmentation: more training examples, made by replacing words. ``limbert.augment(...)`` calls `generate.augment`."""

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """``limbert.augment`` names this folder and the function; Python binds the folder once it is imported."""

    def __call__(self, **options: Any) -> Any:
        from limbert.augment.generate import augment

        return augment(**options)


sys.modules[__name__].__class__ = _CallableModule
