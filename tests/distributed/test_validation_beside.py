"""Rank 0 looks at held-out rows while all ranks go on with their steps, and finds the numbers that it would find if
they waited for it."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from conclugen import Pretrainer, distributed, presets
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import Journal, metric_history
from ray_jobs.training.step_recorder import NullRecorder, StepRecorder
from ray_jobs.training.validation import Embedded, Embeds, Validation
from ray_jobs.training.worker import Checkpointer
from shards import Cursor, Rows
from tests.distributed.pool import Pool
from tests.distributed.ranks import WIDTHS, make_batch, own_rows

STEPS, KEPT = 8, 4
BATCH = 12


def validation() -> Validation:
    """Forty held-out rows of five speakers and two classes."""
    batch = make_batch(40, 77)
    group = np.arange(40) // 8
    return Validation(
        Rows(batch["features"], batch["present"], batch["row"], {"emotion": group % 2}, group), "emotion", 2
    )


def trained(folder: str, beside: bool) -> dict[str, Any]:
    """A run's losses, and what rank 0 measures before the first step and at the checkpoint behind the fourth.

    beside: as workers do it, each look held up until all ranks have made three more steps; else in the loop, where the
    others wait for it.
    """
    config = presets.build(
        "conclugen",
        "improved",
        global_batch=BATCH,
        model={"representation_dim": 16, "projection_dim": 8, "reconstruction_hidden_dim": 8, "standardize": False},
        tasks={"clustering": {"clusters": 3, "queue_batches": 2, "start_epoch": 0}},
    )
    pretrainer, rank, held_out = Pretrainer(config, WIDTHS, 4), distributed.rank(), validation()
    measured: dict[int, dict[str, float]] = {}
    losses: list[float] = []

    def step() -> None:
        batch = make_batch(BATCH, pretrainer.step_number)
        losses.append(float(pretrainer.step(own_rows(batch, config))["loss"]))

    if not beside:
        for _ in range(STEPS):
            if rank == 0 and pretrainer.step_number in (0, KEPT):
                measured[pretrainer.step_number] = held_out.measure(pretrainer)
            step()
        return {"losses": losses, "measured": measured}

    job = PretrainJob(config, DataConfig("/nowhere", validation_view=None), RunConfig("first", folder))
    place = RunFolder(Path(folder) / "first")
    recorder = NullRecorder()
    if rank == 0:
        place.path.mkdir(parents=True)
        with Journal(place.journal, experiment="e", name="first"):
            pass
        recorder = StepRecorder(place, job, held_out, place.begin_attempt())
    attempt: Any = SimpleNamespace(job=job, folder=str(place.path), identity={"a": 1})
    checkpointer = Checkpointer(attempt, rank, recorder)
    may_go_on, looks = threading.Event(), list[int]()

    def held_up(self: Validation, model: Embeds) -> Embedded:
        assert threading.current_thread() is not threading.main_thread(), "the other ranks wait for this"
        assert may_go_on.wait(200), "steps do not go on while rank 0 looks at held-out rows"
        looks.append(pretrainer.step_number)
        may_go_on.clear()
        return real(self, model)

    real = Validation.embedded
    with mock.patch.object(Validation, "embedded", held_up):
        checkpointer.begin(pretrainer)
        for _ in range(STEPS):
            step()
            if pretrainer.step_number in (3, KEPT + 3):  # which no rank makes without the other
                may_go_on.set()
            if pretrainer.step_number == KEPT:
                checkpointer.keep(pretrainer, Cursor(0, KEPT), at_once=False)
        if checkpointer._writer is not None:
            checkpointer._writer.finish()
            assert looks[0] >= 3 and looks[1] >= KEPT + 3, looks
            for name, points in metric_history(place.journal).items():
                for at, value in points if name.startswith("validation/") else ():
                    measured.setdefault(at, {})[name.removeprefix("validation/")] = value
            newest = place.store(job.run).newest()
            assert (
                newest is not None
                and newest.extra["measures"].items()
                <= {f"validation/{name}": value for name, value in measured[KEPT].items()}.items()
            )
    return {"losses": losses, "measured": measured}


def test_steps_go_on_while_rank_0_validates_and_every_number_is_the_same(workers: Pool, tmp_path: Path) -> None:
    waiting = workers.run(2, trained, str(tmp_path), False)
    beside = workers.run(2, trained, str(tmp_path), True)
    assert waiting[0]["losses"] == beside[0]["losses"] == beside[1]["losses"]
    measured, expected = beside[0]["measured"], waiting[0]["measured"]
    assert set(measured) == {0, KEPT} == set(expected) and "effective_rank/video" in measured[0]
    assert "clusters/used" in measured[KEPT] and "neighbour_accuracy" in measured[KEPT]
    del expected[0]["warnings"]  # before the first step none is looked for
    for at in measured:
        np.testing.assert_equal(measured[at], expected[at])
    assert measured[0] != measured[KEPT]
