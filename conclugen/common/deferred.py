"""A module that is imported when something of it is first used.

    if TYPE_CHECKING:
        import numpy as np
    else:
        np = Deferred("numpy")

Files that are read for their options alone then cost no library. What a module needs while it is itself imported (a
base class, a decorator that is called) can't wait.
"""

import importlib
import types
from typing import Any


class Deferred(types.ModuleType):
    """Stands for the module of its name."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def bind(namespace: dict[str, Any]) -> None:
    """Put the modules themselves where a namespace (a module's `__dict__`) still has what stands for them."""
    for name, value in namespace.items():
        if isinstance(value, Deferred):
            namespace[name] = importlib.import_module(value.__name__)
