"""A trial of several workers: a TorchTrainer for each stretch between two reports.

Ray Tune can stop a trial only when it reports, and then no trainer is at work: nothing is left holding resources, which
is what a trainer that is stopped from outside may do. Each stretch continues from the checkpoint of the last, in the
trial's own folder; so does a trial that died.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conclugen import PretrainConfig
from ray_jobs.mixture import open_source
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import Journal
from ray_jobs.training import trainer
from tuning.sweep.folder import SweepFolder
from tuning.sweep.objective import without_confusion
from tuning.sweep.trial import Progress, Seconds, TrialShared
from tuning.sweep.trial_actor import TrialActor

_NOTE = "trial.txt"


@dataclass
class DistributedTrial(Progress):
    """What `tuning.sweep.trial.Trial` is to one process: trains by trainers, and measures here.

    folder: of the trial. run: resources of its workers. The rest as in `Trial`.
    """

    job: PretrainJob
    shared: TrialShared
    folder: RunFolder
    journal: Journal

    def __post_init__(self) -> None:
        started = time.perf_counter()
        self.config = self.job.pretrain
        self.seconds = Seconds()
        self._identity = self.config.identity() | open_source(self.job.data, self.config).identity()
        self.plan = self.shared.plan(self.config, self.job.data)
        self.pretrainer = self.shared.pretrainer(self.config, self.plan)
        if self.config.model.standardize and not self.folder.standardization.is_file():
            self.folder.save_standardization(self.shared.standardization(self.config, self.plan))
        self._catch_up()
        self.seconds.setup += time.perf_counter() - started

    def advance(self, epoch: int) -> dict[str, float]:
        """Train to the end of the `epoch`-th epoch on all workers, then measure here."""
        started = time.perf_counter()
        until = self.last_step(epoch)
        if until > self.pretrainer.step_number:
            trainer.fit(self.job, self.folder, until, self._identity)
            self._catch_up()
        self.seconds.train += time.perf_counter() - started
        started = time.perf_counter()
        measures = self.shared.judge.measure(self.pretrainer, self.finished)
        told, _ = without_confusion(measures, self.shared.judge.classes)
        self.journal.metrics(self.pretrainer.step_number, told, series="validation")
        self.seconds.measure += time.perf_counter() - started
        return measures

    def _catch_up(self) -> None:
        """Take over the state of the workers' newest checkpoint."""
        state = self.folder.store(self.job.run).newest()
        if state is not None:
            state.restore(self.pretrainer)


def unmeasured(data: DataConfig) -> DataConfig:
    """The same data without anything to measure on."""
    sources = {n: dataclasses.replace(source, validation_view=None) for n, source in (data.sources or {}).items()}
    if sources:
        return dataclasses.replace(data, sources=sources, label=None)
    return dataclasses.replace(data, validation_view=None, label=None)


class DistributedTrialActor(TrialActor):
    """Drives the trainers of one trial after another; holds next to no CPU itself, its workers hold theirs."""

    def _make(
        self, config: PretrainConfig, data: DataConfig, name: str, journal: Journal, proposal: Mapping[str, Any]
    ) -> Any:
        plan = self._plan
        folder = SweepFolder(plan.folder)
        run = RunConfig(
            name=name,
            output=str(folder.trials),
            workers=plan.resources.workers,
            gpu=plan.resources.gpu,
            cpus_per_worker=plan.resources.cpus_per_worker,
            checkpoint_every_s=None,  # one at the end of each stretch is written in any case
            max_failures=plan.resources.max_failures,
        )
        # The judge measures here; the workers need not.
        data = unmeasured(data)
        return DistributedTrial(
            PretrainJob(config, data, run), self._shared, RunFolder(folder.trial(int(name))), journal
        )

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / _NOTE).write_text(f"the state is in {self._trial.folder.path}\n")

    def load_checkpoint(self, checkpoint_dir: str | None) -> None:
        self._worked_before = self._worked()
