"""How an attempt ended is read from the run's store, whatever Ray says: without Ray here, on one in tests/cluster."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.training import trainer
from ray_jobs.training.failures import RunFailedError
from tests.conclugen.runs import small_config


@pytest.mark.parametrize("stored", [(), (6,), (6, 12)])
def test_workers_that_end_early_without_an_error_are_no_success(
    stored: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Any] = []
    monkeypatch.setattr(trainer, "_make_room", lambda *_: None)
    monkeypatch.setattr(trainer, "_stored", lambda _: stored)
    monkeypatch.setattr(trainer, "_fit_once", lambda job, start, train: starts.append(start))
    monkeypatch.setattr(trainer.far_folder, "home", lambda *_: contextlib.nullcontext(None))
    monkeypatch.setattr(trainer, "last_step", lambda _: 7)
    (tmp_path / "a").mkdir()
    job = PretrainJob(small_config("contrast_only"), DataConfig("/data"), RunConfig("a", str(tmp_path)))
    told = (
        contextlib.nullcontext()
        if 12 in stored
        else pytest.raises(RunFailedError, match=r"^the workers ended after step 7 of 12$")
    )
    with told:
        trainer.fit(job, RunFolder(tmp_path / "a"), 12, {}, lambda _: None)
    assert len(starts) == 1
