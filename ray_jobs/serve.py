"""Job: a finished run behind HTTP, by Ray Serve. `conclugen serve RUN`."""

from __future__ import annotations

import sys

from conclugen.common.options import Command
from ray_jobs.options.serve import ServeJob


def run(job: ServeJob) -> int:
    from ray_jobs.serving import application  # torch, Ray: not before a wrong option has been refused

    return application.run(job)


COMMAND = Command(
    "ray_jobs.serve",
    ServeJob,
    run,
    shown=("run", "output", "host", "port", "label", "fusion", "clips", "replicas", "cpus", "queue", "weights"),
    bare="run",
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
