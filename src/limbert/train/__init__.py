"""Training of elastic models. The package can be called: ``limbert.train(...)`` is `limbert.train.run.train`."""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package named like the function that users call."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from limbert.train.run import train

        return train(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
