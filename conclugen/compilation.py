"""torch.compile where it pays: the row-wise arithmetic of a step, in regions without graph breaks.

Regions rather than the whole step: between them lies what should not be traced, k-means and the queue (loops and
counters that change from step to step), collectives, and the sweep over blocks of similarities, whose number depends on
the batch. Nothing inside a region depends on the step's number or on which tasks are active, so each is compiled once
for each shape it meets.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch

BACKEND = "inductor"
# torch's default of 8 counts all models of a process together; a worker that trains one after another would exceed it,
# and `fullgraph` makes that an error.
_RECOMPILE_LIMIT = 256
_CACHE_TAG = "conclugen: buffers are kept"

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """`function` by torch.compile, in one graph (a graph break is an error), again for each shape."""
    return cast(Function, _compiled(function, BACKEND))


def options() -> dict[str, Any]:
    """How everything is compiled: arguments of torch.compile and of Module.compile."""
    import torch._dynamo  # takes as long to import as torch itself, so only where something is compiled
    import torch._functorch.config
    import torch.compiler.config

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
    # Where the tasks' gradients are taken one by one, a backward pass leaves its buffers to the next. The key of the
    # cache that torch keeps on disk does not hold this setting: without a tag, code that was compiled for the other
    # value would be taken, and the second pass would read what the first has overwritten.
    torch._functorch.config.donated_buffer = False
    tag = torch.compiler.config.cache_key_tag
    if _CACHE_TAG not in tag:
        torch.compiler.config.cache_key_tag = f"{tag} {_CACHE_TAG}".strip()
    return {"backend": BACKEND, "fullgraph": True, "dynamic": False}


@functools.lru_cache(maxsize=64)
def _compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    return torch.compile(function, **options())


@dataclass(frozen=True)
class Counts:
    """What torch.compile has done in this process: graphs made, breaks in them, and compilations of a function that
    had been compiled before (for another shape, dtype or instance)."""

    graphs: int
    breaks: int
    recompiles: int

    def since(self, before: "Counts") -> "Counts":
        return Counts(self.graphs - before.graphs, self.breaks - before.breaks, self.recompiles - before.recompiles)


def counts() -> Counts:
    """So far in this process."""
    from torch._dynamo.utils import counters, get_compilation_metrics

    identifiers = [str(metrics.compile_id) for metrics in get_compilation_metrics() if metrics.compile_id]
    return Counts(
        graphs=counters["stats"]["unique_graphs"],
        breaks=sum(counters["graph_break"].values()),
        recompiles=sum(not name.split("_")[0].endswith("/0") for name in identifiers),
    )
