"""Many steps: the memory and the open files of the workers and of the job stay as they are."""

import os
import statistics
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ray_jobs.pretrain import pretrain
from tests.cluster import trace
from tests.cluster.runs import small_job, with_run

_MB = 1e6
_SECONDS_AN_EPOCH = 0.4  # 21 small steps on two quiet cores, for the length of an hour's worth


@pytest.mark.parametrize(
    "epochs",
    [
        pytest.param(15, id="short"),
        pytest.param(
            int(os.environ.get("SOAK_EPOCHS", 3600 / _SECONDS_AN_EPOCH)),
            id="hour",
            marks=[pytest.mark.slow, pytest.mark.timeout(3 * 3600)],
        ),
    ],
)
def test_memory_and_open_files_are_flat(shared_ray: None, shards: Path, tmp_path: Path, epochs: int) -> None:
    """Of the time from the second quarter to the last: what warms up (caches, first checkpoints) is behind by then."""
    job = small_job(shards, tmp_path, "soak", workers=2, epochs=1)
    pretrain(with_run(job, checkpoint_every=50, report_every=20), trace.train)
    driver = psutil.Process()
    before = driver.memory_info().rss, driver.num_fds()
    longer = replace(job, pretrain=replace(job.pretrain, epochs=epochs))
    pretrain(with_run(longer, checkpoint_every=50, report_every=20), trace.train)
    after = driver.memory_info().rss, driver.num_fds()
    records = [record for record in trace.read_trace(tmp_path / "soak") if record["step"] > 21]
    for rank in range(2):
        used = [record for record in records if record["rank"] == rank]
        quarter = len(used) // 4
        early, late = used[quarter : 2 * quarter], used[-quarter:]
        for name, most in (("memory", 40 * _MB), ("files", 8)):
            grown = statistics.median(r[name] for r in late) - statistics.median(r[name] for r in early)
            assert grown <= most, f"{name} of rank {rank} grew by {grown:g} over {len(used)} steps"
    assert after[0] - before[0] < 150 * _MB and after[1] - before[1] <= 30
