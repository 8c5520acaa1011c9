"""What task files use of torch and of this package's layers, imported when it is first used.

A task is one file: its configuration, which `--help` and the refusal of a misspelt flag need within a second, and its
arithmetic, which needs torch. So task files take torch and what is built on it from here, as they would from torch:

    from conclugen.tasks.deferred import distributed, functional, nn, torch

Until something of them is used, nothing is imported. What a module needs while it is imported (a decorator such as
`torch.no_grad()`, a base class) can't wait: use `with torch.no_grad():` inside, and derive from `Task`.
Files outside this package may do the same, or import torch at the top: then it is imported with the configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conclugen.common.deferred import Deferred

if TYPE_CHECKING:
    import torch as torch
    from torch import nn as nn
    from torch.nn import functional as functional
    from torch.utils import checkpoint as checkpoint

    from conclugen import blockwise as blockwise
    from conclugen import distributed as distributed
    from conclugen import kmeans as kmeans
    from conclugen import random as random
    from conclugen.layers import heads


if not TYPE_CHECKING:
    torch, nn, functional = map(Deferred, ("torch", "torch.nn", "torch.nn.functional"))
    checkpoint = Deferred("torch.utils.checkpoint")
    blockwise, distributed, heads, kmeans, random = (
        Deferred(f"conclugen.{name}") for name in ("blockwise", "distributed", "layers.heads", "kmeans", "random")
    )
