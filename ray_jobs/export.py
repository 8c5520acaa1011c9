"""Job: a finished run as a folder to be shared. `conclugen export RUN`."""

from __future__ import annotations

import sys
from pathlib import Path

from conclugen.common.commands import tell_next
from conclugen.common.options import GOOD, Command
from ray_jobs.options.export import ExportJob
from ray_jobs.run_config import DEFAULT_OUTPUT


def run(job: ExportJob) -> int:
    from ray_jobs import sharing  # torch: not before a wrong option has been refused

    folder = sharing.share(job)
    print("\n".join(f"{path.stat().st_size:>12,} bytes  {path}" for path in sorted(folder.iterdir())))
    print(f'read it back: conclugen.load("{folder}")')
    where = [] if job.output == Path(DEFAULT_OUTPUT) else ["--output", str(job.output)]
    tell_next(["embed", "NEW.mp4", "--run", job.run, *where])
    return GOOD


COMMAND = Command("ray_jobs.export", ExportJob, run, bare="run")
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
