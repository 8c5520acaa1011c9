"""Loggers of Ray's private modules, named in one place: what they tell concerns nobody who runs these jobs."""

from __future__ import annotations

import logging

# That the cluster asks for a token, also where it is a local Ray of the job's own.
AUTHENTICATION = "ray._private.authentication"
# That the progress bars of Ray Data are off, which the jobs themselves turn off.
PROGRESS = "ray.data._internal.progress"


def quieten(name: str) -> None:
    """Let a logger and those below it tell errors only."""
    logging.getLogger(name).setLevel(logging.ERROR)
