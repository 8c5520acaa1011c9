"""Joins the Ray cluster that is there, or starts a local one."""

from __future__ import annotations

import os
import tempfile

import ray

from conclugen.common import ending
from ray_jobs import ray_loggers

# A training worker reserves its CPUs, and the tasks that read data need some beside them.
_SPARE_CPUS = 4
_STARTS = 3


def connect(workers: int, cpus_per_worker: int = 1, dashboard: bool = False, spare: int = _SPARE_CPUS) -> None:
    """Join the cluster named by RAY_ADDRESS (a submitted job's own, for instance), else start Ray on this machine.

    A local Ray is told of enough logical CPUs for the workers and the tasks that read for them, also where there are
    fewer cores. dashboard: a local Ray has one, for whose start `ray.init` waits; only Ray Train inside Ray Tune needs
    it, to ask its State API which controllers have died. spare: logical CPUs beside those of the workers.
    """
    if ray.is_initialized():
        return
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=True, logging_level="warning")
            return
        ray_loggers.quieten(ray_loggers.AUTHENTICATION)
        _start_local(workers * cpus_per_worker + spare, dashboard)
    finally:
        ending.retake()  # Ray answers SIGTERM by itself, with status 15


def _start_local(cpus: int, dashboard: bool) -> None:
    """Start Ray on this machine with that many logical CPUs, or as many as there are cores.

    Ray gives its own processes fixed times to come up; a machine that is busy (with what a killed job has left, for
    instance) is given a second and a third chance.
    """
    for chance in range(1, _STARTS + 1):
        try:
            # Nobody takes the one node of a local Ray away with a notice: Ray Train need not start a process, at each
            # start of its workers, that waits for one. What the user has set there holds.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            ray.init(
                # Without it, Ray would look for one left by an earlier job of this machine, which may be dying.
                "local",
                num_cpus=max(cpus, os.cpu_count() or 1),
                include_dashboard=dashboard,
                logging_level="warning",
                # Socket paths have a length limit of about 100 bytes; the system's own temporary folder is short.
                _temp_dir=os.environ.get("RAY_TMPDIR") or f"{tempfile.gettempdir()}/ray",
            )
            return
        except Exception as error:
            ray.shutdown()
            if chance == _STARTS or "timed out during startup" not in str(error):
                raise
            print(f"Ray did not come up in time ({chance} of {_STARTS} tries); once more", flush=True)
