"""`python -m tuning.sweep`."""

from __future__ import annotations

import sys

from conclugen.common.options import Command, Leaf
from tuning.sweep.job import DEFAULT_SPACE, SweepJob, space_with
from tuning.sweep.space import SPACES


def run(job: SweepJob) -> int:
    from tuning.sweep.sweep import run_job  # torch, Ray: not before a wrong option has been refused

    return run_job(job)


COMMAND = Command(
    "tuning.sweep",
    SweepJob,
    run,
    short={
        "run": "name",
        "data": "data.folder",
        "view": "data.view",
        "label": "data.label",
        "space": "space.preset",
        "epochs": "space.epochs",
        "seed": "search_seed",
        "workers": "resources.workers",
        "gpu": "resources.gpu",
    },
    shown=(
        *("data", "run", "output", "space", "label", "objective", "trials", "search", "scheduler", "epochs", "workers"),
        *("gpu", "seed"),
    ),
    was={"name": "run"},
    built={"space": space_with},
    extra=(Leaf("space.preset", str, DEFAULT_SPACE, f"Named space that the fields narrow: {', '.join(SPACES)}."),),
)


if __name__ == "__main__":
    sys.exit(COMMAND.main())
