"""Joins the Ray cluster that is there, or starts a local one."""

from __future__ import annotations

import os
import tempfile

import ray

# A training worker reserves its CPUs, and the tasks that read data need some beside them.
_SPARE_CPUS = 4


def connect(workers: int, cpus_per_worker: int = 1) -> None:
    """Join the cluster named by RAY_ADDRESS (a submitted job's own, for instance), else start Ray on this machine.

    A local Ray is told of enough logical CPUs for the workers and the tasks that read for them, also where there are
    fewer cores.
    """
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True, logging_level="warning")
        return
    needed = workers * cpus_per_worker + _SPARE_CPUS
    ray.init(
        num_cpus=max(needed, os.cpu_count() or 1),
        # Ray Train asks the dashboard's State API whether a controller died, to free what it held.
        include_dashboard=True,
        logging_level="warning",
        # Socket paths have a length limit of about 100 bytes; the system's own temporary folder is short.
        _temp_dir=os.environ.get("RAY_TMPDIR") or f"{tempfile.gettempdir()}/ray",
    )
