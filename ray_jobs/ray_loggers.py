"""Ray loggers whose messages concern nobody who runs these jobs; names of private modules are here only."""

from __future__ import annotations

import logging

# That the cluster asks for a token, also where it is a local Ray of the job's own.
AUTHENTICATION = ("ray._private.authentication",)
# That progress bars are off (the jobs have lines of their own), and the end of each execution and of each file.
DATA = ("ray.data._internal.progress", "ray.data._internal.execution.streaming_executor", "ray.data.dataset")


def quieten(names: tuple[str, ...]) -> None:
    """Let loggers, and those below them, tell errors only."""
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
