"""Job: what does each task keep, of factors that are known?

    python -m tuning.controlled --run first
    python -m tuning.controlled --run faces --features rendered
    python -m tuning.controlled --run mine --systems [alone,TASK+TASK:10] --data-seeds [0,1,2,3,4]

Writes feature shards whose rows are made of known factors (shared by modalities, unique to one, in their combination
only, clusters, the speaker), or of rendered faces and voices that act emotions of their own. Trains each system on them
without labels, and asks the probe for every factor: one page, `OUTPUT/RUN/page.md`, with intervals over data seeds.
Stopped by anything, the same command resumes where it was.
"""

from __future__ import annotations

import sys

from conclugen.common.commands import tell_next
from conclugen.common.locks import folder_held
from conclugen.common.options import GOOD, PARTIAL, Command
from tuning.controlled.job import ControlledJob


def run(job: ControlledJob) -> int:
    from tuning.controlled import experiment, page  # torch, scikit-learn: not before a wrong option has been refused

    with folder_held(job.folder, "the experiment is being run", "another --run", field="--output", keep=True):
        if job.shards_only:
            for seed in job.data_seeds:
                print(experiment.write_shards(job, seed).folder)
            tell_next(["controlled", "--run", job.name])
            return GOOD
        found, failed = experiment.measure(job)
        page.write(job, found, failed)
    print(f"page: {job.folder / 'page.md'}")
    tell_next("sweep --data FOLDER --label NAME --run search")
    return PARTIAL if failed else GOOD


COMMAND = Command(
    "tuning.controlled",
    ControlledJob,
    run,
    short={"run": "name"},
    shown=("run", "output", "features", "systems", "data-seeds", "epochs", "parallel", "shards-only"),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
