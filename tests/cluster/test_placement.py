"""On several nodes rows are read where they are used: none on another node, none on a head without CPUs."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.data import ReadTask
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shards.format.manifest import Manifest
from shards.planning.plan import Cursor, EpochPlan
from shards.reading import ray_source
from shards.reading.ray_source import PAYLOADS, Execution
from shards.reading.reader import Reader
from tests.cluster.test_ray_source import write

ROWS, BATCH, STEPS = 211, 20, 20


@pytest.fixture(scope="module")
def cluster(short_folder_of_module: str) -> Iterator[list[str]]:
    """A head without CPUs and two nodes; the ids of the two."""
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "temp_dir": short_folder_of_module},
        )
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=2)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
            head = ray.get_runtime_context().get_node_id()
            yield [node["NodeID"] for node in ray.nodes() if node["NodeID"] != head]
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture(scope="module")
def short_folder_of_module() -> Iterator[str]:  # socket paths must be short
    with tempfile.TemporaryDirectory(prefix="rp", ignore_cleanup_errors=True) as folder:
        yield folder


@ray.remote(num_cpus=1)
class Consumer:
    """A rank on the node where it is placed."""

    def consume(self, shards: str, notes: str, rank: int, world: int, payload: str) -> tuple[str, int]:
        """Its node, and the rows that it got. Each task that reads for it notes its node, and the rows."""
        node = ray.get_runtime_context().get_node_id()
        manifest = Manifest.open(shards)
        plan = EpochPlan(manifest.counts, seed=1, global_batch=BATCH)
        made = ray_source._Stream._task

        def noted(stream: Any, pieces: Any) -> ReadTask:
            task = made(stream, pieces)
            rows = int((pieces[:, 2] - pieces[:, 1]).sum())
            return ReadTask(_Noting(task.read_fn, notes, node, rows), task.metadata)

        ray_source._Stream._task = noted  # type: ignore[method-assign, assignment]
        try:
            small = Execution(task_bytes=7 * 32, window_tasks=9)
            steps = ray_source.stream(Reader(manifest), plan, rank, world, Cursor(), STEPS, payload, small)
            return node, sum(len(step.row) for step in steps)
        finally:
            ray_source._Stream._task = made  # type: ignore[method-assign]


class _Noting:
    """What a task reads, noted with the node of its consumer and its own."""

    def __init__(self, read: Any, notes: str, consumer: str, rows: int) -> None:
        self.read, self.notes, self.consumer, self.rows = read, notes, consumer, rows

    def __call__(self) -> Iterable[Any]:
        here = ray.get_runtime_context().get_node_id()
        with Path(self.notes).open("a") as file:
            file.write(json.dumps([self.consumer, here, self.rows]) + "\n")
        return self.read()


@pytest.mark.slow
@pytest.mark.parametrize("payload", PAYLOADS)
def test_every_row_is_read_on_the_node_of_its_consumer(cluster: list[str], tmp_path: Path, payload: str) -> None:
    write(tmp_path / "shards")
    notes = tmp_path / "notes.jsonl"
    consumers = [
        Consumer.options(  # type: ignore[attr-defined]
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote()
        for node in cluster
    ]
    arguments = (str(tmp_path / "shards"), str(notes))
    got = ray.get([c.consume.remote(*arguments, rank, 2, payload) for rank, c in enumerate(consumers)])
    for consumer in consumers:
        ray.kill(consumer)
    assert got == [(node, STEPS * BATCH // 2) for node in cluster]
    read = [json.loads(line) for line in notes.read_text().splitlines()]
    for node in cluster:
        assert sum(rows for consumer, _, rows in read if consumer == node) == STEPS * BATCH // 2
    elsewhere = [(consumer, here, rows) for consumer, here, rows in read if here != consumer]
    assert elsewhere == [], "rows that crossed the network"
