"""What a run tells Ray's metrics, scraped from the node as Prometheus does it, beside what its journal says."""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from ray_jobs import pretrain
from ray_jobs.tracking.journal import read_records
from ray_jobs.training.run_metrics import METRICS
from tests.cluster.runs import small_job, with_run

pytestmark = pytest.mark.slow
_PREFIX = "ray_conclugen_"
_ON_A_CPU = set(METRICS) - {"mfu"}


def scraped(run: str) -> dict[str, float]:
    """Metric -> its value for a run, from every node's endpoint."""
    found = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with contextlib.suppress(OSError):
            for family in text_string_to_metric_families(urllib.request.urlopen(url, timeout=5).read().decode()):
                for sample in family.samples:
                    if sample.name.startswith(_PREFIX) and sample.labels.get("run") == run:
                        found[sample.name.removeprefix(_PREFIX)] = sample.value
    return found


def test_a_run_is_seen_by_prometheus_while_it_goes_on(
    shared_ray: None, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = with_run(small_job(shards, tmp_path, "watched", epochs=2), checkpoint_every=5, checkpoint_every_s=None)
    seen: dict[str, set[float]] = {}
    ended = threading.Event()

    def watch() -> None:
        deadline = time.monotonic() + 120
        while not (ended.is_set() and (set(seen) >= _ON_A_CPU or time.monotonic() > deadline)):
            for name, value in scraped("watched").items():
                seen.setdefault(name, set()).add(value)
            time.sleep(0.5)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        result = pretrain.pretrain(job)
    finally:
        ended.set()
        watching.join()
    assert set(seen) == _ON_A_CPU, seen
    assert seen["restarts"] == {0.0}
    reports = [record["values"] for record, _ in read_records(result.folder.journal, 0) if record["kind"] == "metrics"]
    for name in ("step_seconds", "samples_per_second", "data_wait_share"):
        told = [values[name] for values in reports if name in values]
        assert all(any(value == pytest.approx(other, rel=1e-6) for other in told) for value in seen[name]), name
    assert all(0 <= value < 60 for value in seen["checkpoint_seconds"] | seen["checkpoint_blocked_seconds"])
    assert min(seen["checkpoint_seconds"]) > 0
