"""Job: the model that a population came to, trained once more by its schedule of task weights, in one process.

    python -m tuning.sweep --scheduler pbt --name population ...
    python -m tuning.sweep.replay outputs/population

Where a population's best trial took over the state of another, no configuration by itself gives its model: the schedule
does. The model is exported to `model/` in the sweep's folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from conclugen import export
from ray_jobs.source import Source
from tuning.sweep.folder import SCHEDULE, SweepFolder
from tuning.sweep.job import parse
from tuning.sweep.population import Schedule, replay
from tuning.sweep.sweep import identity, prepare


def replay_sweep(path: Path | str) -> tuple[Schedule, float]:
    """Train by the schedule of a sweep's folder and export the model; the schedule, and what the objective is now.

    Raises ValueError for a folder without a schedule, or whose data are others by now.
    """
    folder = SweepFolder(path)
    schedule = Schedule.load(folder.path / SCHEDULE)
    job = parse(["--config", str(folder.settings)])
    ready = prepare(job)
    folder.belongs(identity(ready))
    # As in the sweep: sums in another order differ in the last bit.
    torch.set_num_threads(job.resources.cpus_per_worker)
    trial = replay(schedule, ready.shared)
    export.save(folder.model, trial.pretrainer, Source.open(job.data, trial.config).model_info())
    return schedule, trial.measure()[schedule.objective]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tuning.sweep.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="output folder of a sweep with --scheduler pbt")
    folder = parser.parse_args(argv).folder
    try:
        schedule, value = replay_sweep(folder)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{schedule.objective} {value:.4f}, in the sweep {schedule.value:.4f}; "
        f"weights changed {len(schedule.changes)} times in {schedule.config.epochs} epochs"
        f"\nmodel: conclugen.load({str(SweepFolder(folder).model)!r})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
