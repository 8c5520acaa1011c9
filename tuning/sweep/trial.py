"""One trial in one process: train up to an epoch, measure, save; the same batches as a pretraining run, no Ray.

    shared = TrialShared.open(data, manifest, modalities, judge, seed)     # once; travels through an object store
    trial = Trial(config, shared)
    while trial.epoch < config.epochs:
        measures = trial.advance(trial.epoch + 2)

The rows of the pretraining view are read once and shared between trials where they fit; else every trial streams them.
Either way step k sees exactly the rows that `ray_jobs.pretrain` with the same configuration sees.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from conclugen import PretrainConfig, Pretrainer
from conclugen.training import checkpoint
from ray_jobs.mixture import Corpora, Fitted
from ray_jobs.run_config import DataConfig
from ray_jobs.source import open_reader
from ray_jobs.tracking.journal import Journal
from ray_jobs.training.step_recorder import StepTimer
from shards import Cursor, EpochPlan, Manifest, Rows, View
from shards.planning.mixed_plan import MixedPlan
from shards.reading.stream import RowReader, stream
from shards.tools.stats import column_moments
from tuning.sweep.objective import Judge, read_all, take, without_confusion

STATE = "state"
AnyPlan = EpochPlan | MixedPlan
# Rows of this many bytes are shared through the object store; more are streamed from the shards by each trial.
SHARED_BYTES = 4 * 1024**3

Moments = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


def warm_up() -> None:
    """Have torch load what it loads with the first optimizer of a process: its compiler, about a second of imports."""
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])


@dataclass(frozen=True)
class TrialShared:
    """What all trials of a sweep have in common: their rows, the input standardisation, the judge.

    rows: every row of the pretraining view in the order of the shards, or None where trials stream them by `reader`.
    counts (S,): rows of the view in each shard. moments: modality -> (mean, deviation), of the view. corpora: of a
    mixture, whose weights each trial has its own of, with `fitted` in the place of moments.
    """

    rows: Rows | None
    reader: RowReader
    counts: NDArray[np.int64]
    data: DataConfig
    moments: Moments
    judge: Judge
    corpora: Corpora | None = None
    fitted: Fitted = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        data: DataConfig,
        manifest: Manifest,
        modalities: tuple[str, ...],
        judge: Judge,
        seed: int,
        shared_bytes: int = SHARED_BYTES,
    ) -> TrialShared:
        """Read what fits; modalities: all that any trial uses; seed: of the trials, by which moments are drawn."""
        view = View.open(manifest, data.view)
        reader = open_reader(data, manifest, view, modalities, (), speaker=data.speaker)
        moments = column_moments(reader, data.standardization_rows, seed)
        return cls(_fitting(reader, shared_bytes), reader, view.counts, data, moments, judge)

    @classmethod
    def open_corpora(
        cls, data: DataConfig, corpora: Corpora, judge: Judge, seed: int, shared_bytes: int = SHARED_BYTES
    ) -> TrialShared:
        """The same of a mixture."""
        reader, fitted = corpora.reader, corpora.fitted(data.standardization_rows, seed)
        return cls(_fitting(reader, shared_bytes), reader, reader.counts, data, {}, judge, corpora, fitted)

    def check_batch(self, global_batch: int, data: DataConfig | None = None) -> None:
        """Raise ValueError where the view, or one of several corpora, is smaller than its part of one batch."""
        if self.corpora is not None:
            self.corpora.plan(data or self.data, PretrainConfig(global_batch=global_batch))
        else:
            EpochPlan(self.counts, 0, global_batch, self.data.chunk_rows, self.data.remainder)

    def of_corpora(self, config: PretrainConfig) -> PretrainConfig:
        """The configuration, with the names of the corpora where there are some."""
        if self.corpora is None:
            return config
        return replace(config, corpora=replace(config.corpora, names=self.corpora.reader.names))

    def plan(self, config: PretrainConfig, data: DataConfig | None = None) -> AnyPlan:
        """The order of rows of a configuration; data: with the weights of a trial. Raises ValueError for a batch larger
        than the view."""
        if self.corpora is not None:
            return self.corpora.plan(data or self.data, config)
        return EpochPlan(self.counts, config.seed, config.global_batch, self.data.chunk_rows, self.data.remainder)

    def standardization(self, config: PretrainConfig, plan: AnyPlan) -> Moments:
        """Of the configuration's modalities, of rows as the whole trial sees them."""
        moments = self.moments
        if self.corpora is not None:
            assert isinstance(plan, MixedPlan)
            given = plan.rows_before(plan.start_of_epoch(config.epochs))
            moments = self.corpora.moments(self.fitted, given)
        return {name: both for name, both in moments.items() if name.partition("@")[0] in config.modalities}

    def pretrainer(self, config: PretrainConfig, plan: AnyPlan) -> Pretrainer:
        """Untrained, with the standardisation of its modalities."""
        moments = self.standardization(config, plan) if config.model.standardize else None
        return Pretrainer(self.of_corpora(config), self.reader.widths, plan.steps_per_epoch, moments)

    def batches(self, plan: AnyPlan, start: Cursor, steps: int) -> Iterator[Rows]:
        """The next global batches from a cursor on."""
        if self.rows is None:
            yield from stream(self.reader, plan, 0, 1, start, steps)
            return
        before = np.cumsum(self.counts) - self.counts
        for step in range(steps):
            cursor = plan.advance(start, step)
            pieces = plan.rows(cursor.epoch, cursor.step)
            rows = take(self.rows, np.concatenate([before[p.shard] + np.arange(p.start, p.stop) for p in pieces]))
            yield rows if self.corpora is None else replace(rows, corpus=self.reader.corpus_of(rows.row))


def _fitting(reader: RowReader, most: int) -> Rows | None:
    """All rows of a reader, or None where they take more bytes."""
    row_bytes = sum(width * reader.dtypes[m].itemsize for m, width in reader.widths.items())
    return read_all(reader) if int(reader.counts.sum()) * row_bytes <= most else None


@dataclass
class Seconds:
    """Where a trial's time went, over all its processes."""

    setup: float = 0.0
    train: float = 0.0
    measure: float = 0.0
    save: float = 0.0

    @property
    def total(self) -> float:
        return self.setup + self.train + self.measure + self.save


class Progress:
    """How far a pretraining is, by its plan and its optimiser steps; of one process or of several."""

    config: PretrainConfig
    plan: AnyPlan
    pretrainer: Pretrainer

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.plan.cursor_at(self.pretrainer.step_number).epoch

    @property
    def finished(self) -> bool:
        return self.pretrainer.step_number >= self.last_step(self.config.epochs)

    def last_step(self, epoch: int) -> int:
        """Optimiser steps of the first so many epochs, at most of the whole trial."""
        return self.plan.start_of_epoch(min(epoch, self.config.epochs))


@dataclass
class Trial(Progress):
    """A pretraining under way.

    config: what is trained. shared: see above. name: which tells its own checkpoints from others'. journal: where
    steps and measures are written; None: nowhere. data: of a mixture, with the trial's weights; None: the sweep's.
    """

    config: PretrainConfig
    shared: TrialShared
    name: str = "trial"
    journal: Journal | None = None
    seconds: Seconds = field(default_factory=Seconds)
    data: DataConfig | None = None

    def __post_init__(self) -> None:
        started = time.perf_counter()
        self.config = self.shared.of_corpora(self.config)
        self.plan = self.shared.plan(self.config, self.data)
        self.pretrainer = self.shared.pretrainer(self.config, self.plan)
        self._timer = StepTimer(self.config.global_batch)
        self.seconds.setup += time.perf_counter() - started

    def advance(self, epoch: int) -> dict[str, float]:
        """Train to the end of the `epoch`-th epoch (at most to the configured end) and measure.

        Raises conclugen.training.pretrainer.NonFiniteLossError (a FloatingPointError) where training diverges.
        """
        self.train(self.last_step(epoch))
        return self.measure()

    def train(self, until: int) -> None:
        """Train to optimiser step `until`; a step that is done already is not done again."""
        started = time.perf_counter()
        step = self.pretrainer.step_number
        batches = self.shared.batches(self.plan, self.plan.cursor_at(step), max(0, until - step))
        for rows in self._timer.timed(batches):
            values = self.pretrainer.step(rows)
            self._timer.add(self.pretrainer.step_number, values)
        records = self._timer.take()
        if self.journal is not None:
            for record in records:
                self.journal.metrics(record.pop("step"), record, series="train")
        self.seconds.train += time.perf_counter() - started

    def measure(self) -> dict[str, float]:
        """All measures on the validation rows, as of now."""
        started = time.perf_counter()
        measures = self.shared.judge.measure(self.pretrainer, self.finished)
        if self.journal is not None:
            told, _ = without_confusion(measures, self.shared.judge.classes)
            self.journal.metrics(self.pretrainer.step_number, told, series="validation")
        self.seconds.measure += time.perf_counter() - started
        return measures

    def save(self, folder: Path | str) -> None:
        """Write a checkpoint below `folder`."""
        started = time.perf_counter()
        cursor = self.plan.cursor_at(self.pretrainer.step_number)
        extra: dict[str, Any] = {"name": self.name, "seconds": vars(self.seconds)}
        checkpoint.save(Path(folder) / STATE, self.pretrainer, cursor.to_dict(), extra)
        self.seconds.save += time.perf_counter() - started

    def load(self, folder: Path | str) -> None:
        """Go on from a checkpoint of this trial, or of another one of the same identity, with its task weights.

        Raises CheckpointError for a damaged one, ValueError for one that does not fit.
        """
        started = time.perf_counter()
        state = checkpoint.load(Path(folder) / STATE)
        tasks = {name: {"weight": weight} for name, weight in state.meta["weights"]["configured"].items()}
        begun_as = self.config.changed({"tasks": tasks})
        if begun_as != self.config:  # a member of a population may have its state from one that began with others
            self.config, self.pretrainer = begun_as, self.shared.pretrainer(begun_as, self.plan)
        state.restore(self.pretrainer)
        if state.extra["name"] == self.name:
            self.seconds = Seconds(**state.extra["seconds"])
        self.seconds.setup += time.perf_counter() - started
