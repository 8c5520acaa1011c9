"""Which payload a run takes, what it says of it, and what it says where rows do not fit."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import ray.train
import ray.train.torch
import torch

from conclugen import presets
from conclugen.training.prefetch import pinned
from ray_jobs.mixture import open_source
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import Journal, metric_history
from ray_jobs.training import far_folder, payloads, worker
from ray_jobs.training.payloads import AUTO, DEVICE, HOST, STORE, Node, Room, choose, line
from ray_jobs.training.worker import Attempt
from shards import Cursor
from shards.format.schema import Column, Sample, Schema
from shards.format.writer import ShardWriter
from shards.reading import ray_source, resident
from tests.ray_jobs.training.test_other_nodes import NearHome

WIDTHS = {"video": 9, "audio": 7, "text": 5}
GB = 10**9
L4 = Room(14 * GB, 60 * GB, "NVIDIA L4 (23.7 GB) on node 10.0.0.3")
H100 = Room(70 * GB, 900 * GB, "NVIDIA H100 (85.0 GB) on node 10.0.0.4")
BARE = Room(70 * GB, 64 * 2**20, "NVIDIA H100 (85.0 GB) on node 10.0.0.5")  # a container's /dev/shm


@pytest.mark.parametrize(
    ("needed", "rooms", "expected"),
    [
        (25 * GB, [H100, H100], DEVICE),
        (55 * GB, [H100], DEVICE),
        (57 * GB, [H100], HOST),  # above four fifths of what is free
        (25 * GB, [H100, L4], HOST),  # the smallest device counts, and no rank differs from the others
        (25 * GB, [BARE, L4], STORE),
        (31 * GB, [L4], STORE),  # above half of the node's shared memory
        (11 * GB, [BARE, L4], DEVICE),
    ],
)
def test_rows_are_kept_where_they_fit(needed: int, rooms: list[Room], expected: str) -> None:
    assert choose(AUTO, needed, 10**6, rooms, needed // 2) == expected


def test_what_was_asked_for_is_taken_or_refused_with_figures() -> None:
    assert choose(DEVICE, 14 * GB, 10**6, [L4], None) == DEVICE
    assert choose(HOST, 60 * GB, 10**6, [L4], None) == HOST
    with pytest.raises(ValueError, match=r"^data.payload=device: 1,000,000 rows are 25.00 GB, and NVIDIA L4") as told:
        choose(DEVICE, 25 * GB, 10**6, [H100, L4], 25 * GB // 2)
    for part in (L4.where, "has 14.00 GB", "data.rows_in=float16 (12.50 GB)", "data.payload=host", "object_store"):
        assert part in str(told.value)
    with pytest.raises(ValueError, match=r"data\.payload=device") as told:
        choose(DEVICE, 80 * GB, 10**6, [BARE], 80 * GB)  # float16 would not help, nor would the host
    assert "float16" not in str(told.value) and "host" not in str(told.value)
    with pytest.raises(ValueError, match=r"^data.payload=host: 7 rows are 1.00 GB, and .* has 0.07 GB free") as told:
        choose(HOST, GB, 7, [H100, BARE], None)
    assert "--shm-size" in str(told.value) and BARE.where in str(told.value)


def test_what_is_kept_is_told_in_a_line() -> None:
    assert line(STORE, GB, 10, AUTO) is None
    asked = line(DEVICE, 2_350_000_000, 100_000, DEVICE)
    assert asked == "100,000 rows (2.35 GB) are kept on each device (data.payload=device)"
    chosen = line(HOST, 2_350_000_000, 100_000, AUTO)
    assert chosen is not None and "once in the memory of each node (data.payload=host; chosen because" in chosen


def test_rounded_rows_are_asked_for_together_with_what_keeps_them() -> None:
    for payload in ("auto", "object_store", "worker"):
        with pytest.raises(ValueError, match=r"data\.rows_in: float16 .* give data\.payload=device or host"):
            DataConfig(folder="x", rows_in="float16", payload=payload)
    assert DataConfig(folder="x", rows_in="float16", payload="host").rows_in == "float16"


def test_shared_memory_is_reserved_and_leaves_with_its_maker(tmp_path: Path) -> None:
    left = tmp_path / "conclugen-rows-of-a-killed-process"
    left.write_bytes(b"x" * 100)
    with payloads._made(tmp_path / "conclugen-rows-a", 5000):
        assert not left.exists(), "nobody holds it"
        made = tmp_path / "conclugen-rows-a"
        assert made.stat().st_blocks * 512 >= 5000 and made.stat().st_mode & 0o077 == 0
        with payloads._made(tmp_path / "conclugen-rows-b", 100):
            assert made.exists(), "another's, which is in use"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError), payloads._made(tmp_path / "conclugen-rows-c", 1 << 60):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("payload", [STORE, "worker", HOST])
def test_for_a_gpu_batches_are_read_into_pinned_memory(payload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every payload that brings them from the host."""
    given: list[Any] = []
    source: Any = SimpleNamespace(
        data=SimpleNamespace(payload=payload, rows_in="stored", prefetch=2, read_tasks=1),
        reader=SimpleNamespace(counts=np.array([3])),
        plan=None,
    )
    monkeypatch.setattr(resident, "nbytes", lambda *_: 10)
    for module in (resident, ray_source):
        monkeypatch.setattr(module, "stream", lambda *arguments: given.append(arguments[-1]))
    monkeypatch.setattr(payloads, "_shared", lambda *_: object.__new__(resident.Resident))
    meeting: Any = SimpleNamespace(exchange=lambda told: [told])
    for device, expected in (("cuda", pinned), ("cpu", None)):
        found = payloads.prepare(
            source, Node(0, 1), H100, torch.device(device), "a", meeting, lambda line: None, lambda: None
        )
        found.stream(0, 1, Cursor(), 1)
        assert given.pop() is expected


def test_a_rank_trains_whole_without_ray_data_and_without_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One rank from start to end, by either payload, with its run's folder and by way of the job: the same losses, and
    the same checkpoint."""
    schema = Schema(tuple(Column(m, d) for m, d in WIDTHS.items()), {m: (m,) for m in WIDTHS}, grouped=True)
    rng = np.random.default_rng(3)
    with ShardWriter(tmp_path / "data", schema, max_shard_bytes=122_880) as writer:
        for i in range(60):
            writer.append(Sample(f"k{i}", {m: rng.standard_normal(d) for m, d in WIDTHS.items()}, group=f"g{i % 5}"))
    context = SimpleNamespace(
        get_world_rank=lambda: 0, get_world_size=lambda: 1, get_local_rank=lambda: 0, get_local_world_size=lambda: 1
    )
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(far_folder.ray, "get", lambda found: found)
    monkeypatch.setattr(far_folder, "_APPEARS_WITHIN_S", 0.0)
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    sizes = {"representation_dim": 16, "projection_dim": 8, "reconstruction_hidden_dim": 8}
    config = presets.build("contrast_generative", "improved", global_batch=12, model=sizes, epochs=2)
    found = []
    for payload, far in ((HOST, False), (DEVICE, False), (HOST, True)):
        data = DataConfig(folder=str(tmp_path / "data"), view="everything", validation_view=None, payload=payload)  # type: ignore[arg-type]
        store = str(tmp_path / f"store-{payload}-{far}")
        run = RunConfig(name="r", output=str(tmp_path / f"{payload}-{far}"), storage=store, report_every=2)
        job = PretrainJob(config, data, run)
        source = open_source(data, config)
        folder = RunFolder(run.output_folder / run.name)
        folder.acquire(source.identity())
        folder.save_standardization(source.moments())
        Journal(folder.journal, experiment="e", name="r").close()
        attempt = folder.begin_attempt()
        place = tmp_path / "nowhere" / "r" if far else folder.path
        home = NearHome(folder.path) if far else None
        worker.train(Attempt(job, str(place), 10, attempt, source.identity(), home=home))
        assert f"60 rows (0.00 GB) are kept {'on' if payload == DEVICE else 'once in'}" in capsys.readouterr().out
        state = folder.store(run).newest()
        assert state is not None
        found.append((metric_history(folder.journal)["loss"], {k: x.tolist() for k, x in state.tensors.items()}))
    assert len(found[0][0]) == 10 and found[0] == found[1] == found[2]
    assert not (tmp_path / "nowhere").exists()
