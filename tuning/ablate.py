"""Job: which tasks, on which modalities, make the better representation? Every combination, judged alike.

    python -m tuning.ablate --data.ravdess shards/ravdess --data.mosi shards/mosi --run first
    python -m tuning.report outputs/first

Runs all combinations of the tasks, the published presets, modality subsets, untrained heads and raw
features, with several seeds and shares of labels, on every data set given. Stopped by anything, the same command
continues where it was: what the folder's ledger holds is not run again. `--dry-run` prints cells and cost only. Cells
that fail leave holes in the tables, and the job ends with status 3. What a sweep found is put beside all tasks at the
ablation's own settings, on test speakers, by

    python -m tuning.ablate --data.ravdess shards/ravdess --run found \\
        --configurations.searched outputs/search/best.yaml --sections configurations,baselines
"""

from __future__ import annotations

import shlex
import sys

from conclugen.common.commands import tell_next
from conclugen.common.options import GOOD, PARTIAL, Command
from tuning.ablation.job import AblateJob


def run(job: AblateJob) -> int:
    from tuning.ablation.ablate import ablate  # torch, Ray: not before a wrong option has been refused

    failed = ablate(job)
    if not job.dry_run:
        tell_next(f"report {shlex.quote(str(job.folder))}")
    if failed:
        print(f"{len(failed)} cell(s) failed, each with its reason in the ledger; the same command tries them again")
    return PARTIAL if failed else GOOD


COMMAND = Command(
    "tuning.ablate",
    AblateJob,
    run,
    short={"run": "name", "data": "datasets", "epochs": "sizes.epochs"},
    shown=(
        *("data", "run", "output", "labels", "train-only", "configurations", "sections", "recipes", "seeds", "epochs"),
        *("parallel", "dry-run"),
    ),
    was={"name": "run", "datasets": "data"},
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
