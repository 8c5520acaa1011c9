"""A trial as Ray Tune runs it: one process, an actor that is used again for the next trial, no Ray Train inside.

Tune's checkpoints hold what `Trial.save` writes (safetensors and JSON); Tune itself only carries the folder about.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.result import SHOULD_CHECKPOINT

from conclugen import PretrainConfig
from conclugen.common import uris
from conclugen.common.options import to_plain
from ray_jobs.run_config import DataConfig
from ray_jobs.tracking.journal import Journal
from tuning.sweep.folder import SweepFolder, readable_name, trial_tags
from tuning.sweep.job import ResourceConfig
from tuning.sweep.space import Space
from tuning.sweep.trial import Seconds, Trial, TrialShared, warm_up

EPOCH, DIVERGED, MEASURES, SCHEDULE = "epoch", "diverged", "measures", "schedule"
SECONDS, OVERHEAD, CPU, START = "seconds", "overhead_seconds", "cpu_seconds", "process_start_seconds"


@dataclass(frozen=True)
class TrialPlan:
    """What every trial of a sweep needs to know besides its own choices.

    space: resolved. milestones: epochs at which a trial measures and reports. objective, mode: by what it is judged.
    parent: of the trials' MLflow runs. tags, inputs: that all trials have. threads: of each process.
    checkpoint_every_s: a report also writes a checkpoint when the last one is older. resources: of each trial.
    """

    folder: Path
    space: Space
    data: DataConfig
    milestones: tuple[int, ...]
    objective: str
    mode: str
    experiment: str
    parent: str
    tags: Mapping[str, str]
    threads: int
    checkpoint_every_s: float
    resources: ResourceConfig
    inputs: Sequence[Mapping[str, object]] = ()


def worst(mode: str) -> float:
    """The objective of a trial that diverged."""
    return float("-inf") if mode == "max" else float("inf")


class TrialActor(tune.Trainable):
    """Trains from milestone to milestone. Its configuration is a `proposal`: `number`, `choices`, `weights` (those that
    a population changes from here on, else none), `resume` (a checkpoint of an earlier start, or None)."""

    def setup(self, config: dict[str, Any], shared: TrialShared, plan: TrialPlan) -> None:
        began = time.monotonic()
        uris.scrub_output()
        torch.set_num_threads(plan.threads)
        # Shared rows are read-only memory, and nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        for chatty in ("ray.tune", "ray.train"):  # they announce every checkpoint
            logging.getLogger(chatty).setLevel(logging.ERROR)
        self._shared, self._plan = shared, plan
        warm_up()
        self._left = time.monotonic()
        # A process is started once for many trials: told apart from what every one of them costs.
        self._start = self._left - began
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._start = 0.0
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        plan, name = self._plan, self.trial_name
        # What this actor has waited since its last trial is this trial's overhead.
        self._began, self._saved_at = self._left, time.monotonic()
        self._cpu_began = time.process_time()
        proposal = config["proposal"]
        choices = proposal["choices"]
        pretrain = plan.space.config(choices)
        number = int(name)
        journal = Journal(
            SweepFolder(plan.folder).trial(number) / "journal.jsonl",
            experiment=plan.experiment,
            name=readable_name(plan.folder.name, number, pretrain),
            parent=plan.parent,
        )
        journal.status("RUNNING")
        data = plan.space.data(plan.data, choices)
        journal.params({"pretrain": to_plain(pretrain), "data": to_plain(data)})
        own = {key: " ".join(v) if isinstance(v, list) else str(v) for key, v in trial_tags(pretrain, choices).items()}
        journal.tags({**plan.tags, **own, "kind": "trial", "trial": name})
        journal.inputs(plan.inputs)
        self._trial = self._make(pretrain, data, name, journal, proposal)
        self._weights = proposal["weights"]
        self._reweigh()
        self._worked_before = self._worked()

    def _make(
        self, config: PretrainConfig, data: DataConfig, name: str, journal: Journal, proposal: Mapping[str, Any]
    ) -> Any:
        trial = Trial(config, self._shared, name, journal, data=data)
        if proposal["resume"] is not None:
            trial.load(proposal["resume"])
        return trial

    def step(self) -> dict[str, Any]:
        trial, plan = self._trial, self._plan
        until = next((epoch for epoch in plan.milestones if epoch > trial.epoch), trial.config.epochs)
        measures: dict[str, float] = {}
        diverged = ""
        try:
            measures = trial.advance(until)
        except FloatingPointError as error:  # the same again from any checkpoint: no fault of the machine
            diverged = str(error)
        self._left = now = time.monotonic()
        overdue = now - self._saved_at >= plan.checkpoint_every_s
        return {
            plan.objective: worst(plan.mode) if diverged else measures[plan.objective],
            EPOCH: min(until, trial.config.epochs),
            "done": bool(diverged) or trial.finished,
            DIVERGED: diverged,
            MEASURES: measures,
            SECONDS: vars(trial.seconds),
            OVERHEAD: now - self._began - (self._worked() - self._worked_before),
            CPU: time.process_time()
            - self._cpu_began,  # of this process, since the trial was begun or gone on with in it
            START: self._start,
            SCHEDULE: trial.pretrainer.weighting.state(),
            SHOULD_CHECKPOINT: overdue and not diverged and not trial.finished,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self._trial.save(checkpoint_dir)
        self._saved_at = time.monotonic()

    def load_checkpoint(self, checkpoint_dir: str | None) -> None:
        assert checkpoint_dir is not None
        self._trial.load(checkpoint_dir)
        self._reweigh()
        self._worked_before = self._worked()

    def _worked(self) -> float:
        """Seconds in which the trial has trained and measured; all other time is overhead."""
        return self._trial.seconds.train + self._trial.seconds.measure

    def _reweigh(self) -> None:
        """Take the weights that a population-based scheduler wants from here on, where they are others."""
        if self._weights:
            self._trial.pretrainer.set_weights(self._weights)


def spent(result: Mapping[str, Any]) -> Seconds:
    """Where a trial's time went, as its last result says."""
    return Seconds(**result[SECONDS])
