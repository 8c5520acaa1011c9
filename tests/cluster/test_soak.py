"""Many steps: the memory and the open files of the workers and of the job stay as they are.

The figures themselves, of an hour's worth: `python -m pytest -m slow -s tests/cluster/test_soak.py`.
"""

import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    print(f"\njob: {before[0] / _MB:.0f} MB and {before[1]} files, then {after[0] / _MB:.0f} MB and {after[1]} files")
    check_flat(trace.read_trace(tmp_path / "soak"))
    assert after[0] - before[0] < 150 * _MB and after[1] - before[1] <= 30


def check_flat(records: list[dict[str, Any]]) -> None:
    """Memory and open files of each rank, in quarters of the run's steps (`trace.read_trace`), told and compared."""
    for rank in sorted({record["rank"] for record in records}):
        used = [record for record in records if record["rank"] == rank and record["step"] > 21]
        quarter = len(used) // 4
        print(f"rank {rank}, {len(used)} steps in {used[-1]['time'] - used[0]['time']:.0f} s", end="")
        for name, unit, most in (("memory", _MB, 40 * _MB), ("files", 1, 8)):
            starts = (0, quarter, len(used) - quarter)
            first, second, last = (statistics.median(r[name] for r in used[i : i + quarter]) for i in starts)
            print(f"; {name} in quarters 1, 2, 4: {first / unit:.0f}, {second / unit:.0f}, {last / unit:.0f}", end="")
            assert last - second <= most, f"{name} of rank {rank} grew by {last - second:g} over {len(used)} steps"
        print()
