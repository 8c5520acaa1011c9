"""Many steps: the memory and the open files of the workers and of the job stay as they are.

The figures themselves, of an hour's worth: `python -m pytest -m campaign -s tests/cluster/test_soak.py`. By default
only the open files of a run of two epochs are looked at (`test_pretrain.py`).
"""

import contextlib
import statistics
import threading
import time
from collections.abc import Iterator
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


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize(
    "epochs",
    [
        pytest.param(150, id="minute"),
        pytest.param(round(3600 / _SECONDS_AN_EPOCH), id="hour", marks=pytest.mark.campaign),
    ],
)
def test_memory_and_open_files_are_flat(shared_ray: None, shards: Path, tmp_path: Path, epochs: int) -> None:
    """Of the time from the second quarter to the last: what warms up (caches, first checkpoints) is behind by then."""
    job = small_job(shards, tmp_path, "soak", workers=2, epochs=epochs)
    job = replace(job, data=replace(job.data, read_tasks=1))
    with sampled_every(0.05) as of_job:
        pretrain(with_run(job, checkpoint_every=50, report_every=20), trace.train)
    of_ranks = [record for record in trace.read_trace(tmp_path / "soak") if record["step"] > 21]
    for rank in (0, 1):
        check_flat(f"rank {rank}", [record for record in of_ranks if record["rank"] == rank])
    begin, end = of_ranks[0]["time"], of_ranks[-1]["time"]
    check_flat("job", [sample for sample in of_job if begin <= sample["time"] <= end])


@contextlib.contextmanager
def sampled_every(seconds: float) -> Iterator[list[dict[str, Any]]]:
    """Memory and open files of this process while the block runs."""
    samples: list[dict[str, Any]] = []
    process, done = psutil.Process(), threading.Event()

    def sample() -> None:
        while not done.wait(seconds):
            used = {"memory": process.memory_info().rss, "files": process.num_fds()}
            samples.append({"time": time.time(), **used})

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def check_flat(who: str, used: list[dict[str, Any]]) -> None:
    """Memory and open files of one process in quarters of its records, told and compared."""
    quarter = len(used) // 4
    assert quarter >= 5, f"{len(used)} records of {who} are too few"
    print(f"\n{who}, {len(used)} records in {used[-1]['time'] - used[0]['time']:.0f} s", end="")
    for name, unit, most in (("memory", _MB, 40 * _MB), ("files", 1, 8)):
        starts = (0, quarter, len(used) - quarter)
        first, second, last = (statistics.median(r[name] for r in used[i : i + quarter]) for i in starts)
        print(f"; {name} in quarters 1, 2, 4: {first / unit:.0f}, {second / unit:.0f}, {last / unit:.0f}", end="")
        assert last - second <= most, f"{name} of {who} grew by {last - second:g}"
