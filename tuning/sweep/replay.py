"""Job: train the best member of a population again. `python -m tuning.sweep.replay --help`.

python -m tuning.sweep --scheduler pbt --run population ...
python -m tuning.sweep.replay outputs/population
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from conclugen.common.locks import folder_held
from conclugen.common.options import GOOD, Command

if TYPE_CHECKING:
    from tuning.sweep.population import Schedule


@dataclass(frozen=True)
class ReplayJob:
    """The best model of a population, trained again by its schedule of task weights, in one process.

    Where a population's best trial took over the state of another, no configuration by itself gives its model: the
    schedule does. The model is exported to `model/` in the sweep's folder.

    Attributes:
        folder: Folder of a sweep with `--scheduler pbt`.
    """

    folder: Path


def replay_sweep(path: Path | str) -> tuple[Schedule, float]:
    """Train by the schedule of a sweep's folder and export the model; the schedule, and what the objective is now.

    Raises ValueError for a folder without a schedule, whose data are others by now, or that the sweep works in.
    """
    import torch

    from conclugen import export
    from ray_jobs.source import Source
    from tuning.sweep.__main__ import COMMAND as SWEEP
    from tuning.sweep.folder import SCHEDULE, SweepFolder
    from tuning.sweep.population import Schedule, replay
    from tuning.sweep.sweep import identity, prepare

    folder = SweepFolder(path)
    schedule = Schedule.load(folder.path / SCHEDULE)
    job = SWEEP.parse(["--config", str(folder.settings)])
    ready = prepare(job)
    folder.belongs(identity(ready))
    with folder_held(folder.path, "the sweep is being run", "another FOLDER", keep=True):
        # As in the sweep: sums in another order differ in the last bit.
        torch.set_num_threads(job.resources.cpus_per_worker)
        trial = replay(schedule, ready.shared)
        export.save(folder.model, trial.pretrainer, Source.open(job.data, trial.config).model_info())
    return schedule, trial.measure()[schedule.objective]


def run(job: ReplayJob) -> int:
    from tuning.sweep.folder import SweepFolder

    schedule, value = replay_sweep(job.folder)
    print(
        f"{schedule.objective} {value:.4f}, in the sweep {schedule.value:.4f}; "
        f"weights changed {len(schedule.changes)} times in {schedule.config.epochs} epochs"
        f"\nmodel: conclugen.load({str(SweepFolder(job.folder).model)!r})"
    )
    return GOOD


COMMAND = Command("tuning.sweep.replay", ReplayJob, run, bare="folder")
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
