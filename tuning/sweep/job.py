"""What a sweep needs to know, as one typed configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from conclugen.common import paths
from conclugen.common.options import build
from conclugen.evaluation.config import MeasureConfig
from conclugen.fields import choose, require
from ray_jobs.run_config import DEFAULT_OUTPUT, DataConfig, RunConfig
from shards.access import SHARED_FOLDER, refuse_url
from tuning.sweep.space import SPACES, Space, laptop

DEFAULT_SPACE = "laptop"
DEFAULT_TRIALS = 64
_BEST = "-best"


@dataclass(frozen=True)
class ScheduleConfig:
    """When trials report, are stopped, or take over each other's states.

    Attributes:
        grace_epochs: Epochs before ASHA may stop a trial; None: a reduction's part of the length, yet never before the
            last task of the space has begun (before, a trial can't be compared).
        reduction: ASHA keeps one trial in so many at each rung.
        report_epochs: Epochs between reports; None: at ASHA's rungs and at the end; a population reports at each
            exchange.
        exchange_epochs: Epochs between the exchanges of a population.
        checkpoint_every_s: A report also writes a checkpoint when the last one is so old: what a death can cost.
    """

    grace_epochs: int | None = None
    reduction: int = 3
    report_epochs: int | None = None
    exchange_epochs: int = 2
    checkpoint_every_s: float = 20.0

    def __post_init__(self) -> None:
        require(self.reduction >= 2, "schedule.reduction", self.reduction, "2 or more")
        for name in ("grace_epochs", "report_epochs", "exchange_epochs"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"schedule.{name}", value, "1 or more")
        require(self.checkpoint_every_s >= 0, "schedule.checkpoint_every_s", self.checkpoint_every_s, "0 or more")

    def grace(self, space: Space) -> int:
        """Epochs that every trial gets. Raises ValueError where a task of the space would begin later."""
        if self.grace_epochs is None:
            return min(space.epochs, max(1, space.epochs // self.reduction**2, space.latest_start + 1))
        if self.grace_epochs <= space.latest_start:
            raise ValueError(
                f"schedule.grace_epochs: {self.grace_epochs}, but a task may start as late as epoch "
                f"{space.latest_start} (0-based) in this space: trials would be stopped before it began; give at least "
                f"{space.latest_start + 1}, or narrow when tasks begin (space.*epoch)"
            )
        return min(self.grace_epochs, space.epochs)

    def milestones(self, space: Space, scheduler: str) -> tuple[int, ...]:
        """Epochs at which trials report, the last one included."""
        end = space.epochs
        if scheduler == "pbt":
            return (*range(self.exchange_epochs, end, self.exchange_epochs), end)
        regular = range(self.report_epochs, end, self.report_epochs) if self.report_epochs is not None else ()
        rungs: list[int] = []
        rung = self.grace(space)
        while scheduler == "asha" and rung < end:
            rungs.append(rung)
            rung *= self.reduction
        return tuple(sorted({*regular, *rungs, end}))


@dataclass(frozen=True)
class ResourceConfig:
    """What each trial gets.

    Attributes:
        workers: Training workers of a trial; 1: the trial is one process, more: a TorchTrainer for each trial.
        gpu: A GPU for each worker.
        cpus_per_worker: Logical CPUs that each worker reserves; also its number of threads.
        max_concurrent: Trials at a time at most; None: as many as the cluster holds.
        max_failures: How often a trial that dies is started again, from its checkpoint.
    """

    workers: int = 1
    gpu: bool = False
    cpus_per_worker: int = 1
    max_concurrent: int | None = None
    max_failures: int = 2

    def __post_init__(self) -> None:
        for name in ("workers", "cpus_per_worker", "max_concurrent"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"resources.{name}", value, "1 or more")
        require(self.max_failures >= 0, "resources.max_failures", self.max_failures, "0 or more")


@dataclass(frozen=True)
class SweepJob:
    """Search task combinations, weights and sizes for the better representation.

    Started again under the same name after whatever stopped it, it continues: trials that have ended are not run again.

    Attributes:
        data: Shards: `view` is pretrained on and gives the probe its labels, `validation_view` judges. Of a mixture
            (data.sources) those of the corpus `judged_on`.
        name: Name of the sweep; the same name continues it.
        space: What may be tried.
        objective: Measure by which trials are judged: probe_accuracy, probe_uar, probe_macro_f1, or without labels
            recall@1, recall@5, recall@10, effective_rank, alignment, uniformity, alignment_uniformity, cluster_usage.
        judged_on: Of a mixture: the corpus on which trials are judged, with `data.label` where the objective needs one;
            none: the only one that could be.
        trials: How many; None: 64, or the whole grid.
        search: `random`, `grid`, `tpe`.
        scheduler: `none`, `asha`: poor trials are stopped early, `pbt`: a population changes task weights in training.
        search_seed: Of the search; the trials' own is `space.seed`.
        output: Folder of all runs; the sweep lives in `<output>/<name>`.
        tracking_uri: MLflow tracking URI; None: a local SQLite file below `output`.
        experiment: MLflow experiment.
        commit: Source revision, recorded as a tag.
    """

    data: DataConfig
    name: str
    space: Space = field(default_factory=laptop)
    objective: str = "probe_accuracy"
    judged_on: str | None = None
    trials: int | None = None
    search: Literal["random", "grid", "tpe"] = "tpe"
    scheduler: Literal["none", "asha", "pbt"] = "asha"
    search_seed: int = 0
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    output: str = DEFAULT_OUTPUT
    tracking_uri: str | None = None
    experiment: str = "conclugen"
    commit: str | None = field(default_factory=lambda: os.environ.get("CONCLUGEN_COMMIT"))

    def __post_init__(self) -> None:
        refuse_url("output", self.output, SHARED_FOLDER)
        self._check_corpora(tuple(sorted(self.data.sources or ())))
        if not self.name or not all(c.isalnum() or c in "-_." for c in self.name) or self.name.startswith("."):
            raise ValueError(f"name: {self.name!r} cannot name a folder; use letters, digits, -, _ and . (not first)")
        require(
            self.trials is None or self.trials >= 1,
            "trials",
            self.trials,
            "1 or more: a sweep without trials finds nothing",
        )
        if self.scheduler == "pbt" and self.resources.workers > 1:
            raise ValueError(
                "scheduler: pbt needs trials of one process (resources.workers: 1): a trainer's checkpoints do not "
                "reach the scheduler, and nothing would ever be exchanged"
            )

        self.best_run()  # what the end will build is refused now

    def _check_corpora(self, corpora: tuple[str, ...]) -> None:
        """Raise ValueError for what names a corpus that is not there, or is of none."""
        for field_name, given in (("judged_on", [self.judged_on] if self.judged_on else []),
                                  ("space.corpora", self.space.corpora)):  # fmt: skip
            for name in given:
                if not corpora:
                    raise ValueError(f"{field_name}: found {name!r}, expected data.sources, whose corpora it is about")
                choose(field_name, name, corpora)
        if corpora and self.scheduler == "pbt":
            raise ValueError(
                "scheduler: found pbt with data.sources; a population hands states from trial to trial, and those of "
                "other mixtures are other runs': expected asha or none"
            )
        if self.space.corpora:  # told now where only some would have a weight
            self.data.weighted({name: within.high for name, within in self.space.corpora.items()})

    @property
    def folder(self) -> Path:
        return paths.absolute(self.output, "output") / self.name

    def best_run(self) -> RunConfig:
        """The run that trains the best configuration, as `best.yaml` has it. Raises ValueError for a name, an
        experiment or a tracking URI that no run can have."""
        try:
            return RunConfig(
                name=f"{self.name}{_BEST}",
                output=self.output,
                workers=self.resources.workers,
                gpu=self.resources.gpu,
                cpus_per_worker=self.resources.cpus_per_worker,
                tracking_uri=self.tracking_uri,
                experiment=self.experiment,
            )
        except ValueError as error:
            message = str(error).removeprefix("run.")
            raise ValueError(f"{message} (of the run of the best configuration, {self.name[:40]}...{_BEST})") from None


def space_with(fields: Mapping[str, Any]) -> Space:
    """The named space, with the single fields that plain data hold laid over it."""
    rest = dict(fields)
    name = rest.pop("preset", DEFAULT_SPACE)
    choose("space.preset", name, SPACES)
    return build(Space, rest, SPACES[name](), "space")
