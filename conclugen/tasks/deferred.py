"""What task files use of torch and of this package's layers, imported when it is first used.

A task is one file: its configuration, which `--help` and the refusal of a misspelt flag need within a second, and its
arithmetic, which needs torch. So task files take torch and what is built on it from here, as they would from torch:

    from conclugen.tasks.deferred import distributed, functional, nn, torch

Until something of them is used, nothing is imported. What a module needs while it is imported (a decorator such as
`torch.no_grad()`, a base class) can't wait: use `with torch.no_grad():` inside, and derive from `Task`.
Files outside this package may do the same, or import torch at the top: then it is imported with the configuration.
"""

from __future__ import annotations

import importlib
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    from torch import nn as nn
    from torch.nn import functional as functional
    from torch.utils import checkpoint as checkpoint

    from conclugen import blockwise as blockwise
    from conclugen import distributed as distributed
    from conclugen import heads as heads
    from conclugen import kmeans as kmeans


class _Deferred(types.ModuleType):
    """Stands for the module of its name."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def bind(namespace: dict[str, Any]) -> None:
    """Put the modules themselves where a namespace (a module's `__dict__`) still has what stands for them."""
    for name, value in namespace.items():
        if isinstance(value, _Deferred):
            namespace[name] = importlib.import_module(value.__name__)


if not TYPE_CHECKING:
    torch, nn, functional = map(_Deferred, ("torch", "torch.nn", "torch.nn.functional"))
    checkpoint = _Deferred("torch.utils.checkpoint")
    blockwise, distributed, heads, kmeans = (
        _Deferred(f"conclugen.{name}") for name in ("blockwise", "distributed", "heads", "kmeans")
    )
