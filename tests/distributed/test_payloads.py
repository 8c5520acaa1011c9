"""On real ranks rows that are kept, on the device or in shared memory, train to the same bits as rows that are read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conclugen import Pretrainer, distributed, presets
from ray_jobs.mixture import open_source
from ray_jobs.run_config import DataConfig
from ray_jobs.training import payloads
from ray_jobs.training.payloads import DEVICE, HOST, Node, Room
from ray_jobs.training.rank_meeting import RankMeeting
from shards.format.manifest import TAR_SUFFIX, Manifest
from shards.format.schema import Column, Sample, Schema
from shards.format.writer import ShardWriter
from shards.planning.plan import Cursor
from shards.reading import resident
from shards.reading.stream import stream
from tests.distributed.pool import Pool
from tests.shards.small_data import flip_bit

WIDTHS = {"video": 9, "audio": 7, "text": 5}
BATCH, STEPS = 10, 14  # more than an epoch; three ranks have four rows each, two of them padding
READ = "read as wanted"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows in several shards, some without a modality, one damaged."""
    return damaged(written(tmp_path_factory.mktemp("kept") / "data", missing=0.2))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows that lack nothing."""
    return written(tmp_path_factory.mktemp("complete") / "data", missing=0.0)


def written(place: Path, missing: float) -> str:
    schema = Schema(tuple(Column(m, d) for m, d in WIDTHS.items()), {m: (m,) for m in WIDTHS}, grouped=True)
    rng = np.random.default_rng(3)
    with ShardWriter(place, schema, max_shard_bytes=122_880) as writer:
        for i in range(93):
            columns = {m: None if rng.random() < missing else rng.standard_normal(d) for m, d in WIDTHS.items()}
            writer.append(Sample(f"k{i}", columns, group=f"g{i % 5}", text="z" * 40))
    assert writer.manifest is not None and len(writer.manifest.counts) > 2
    return str(place)


def damaged(folder: str) -> str:
    """The same folder, of whose third row a bit is flipped."""
    first = Manifest.open(folder).entry(0)
    flip_bit(Path(folder) / (first.name + TAR_SUFFIX), 2 * first.stride + 700)
    return folder


def trained(
    folder: str | list[str],
    payload: str,
    rows_in: str,
    negatives: str = "same_group",
    remainder: str = "drop",
) -> dict[str, Any]:
    """What one rank has after some steps: their losses, its model's checksum, damage that it met, and how many bytes
    a row it told the others of its rows' presence and groups, by step. Several folders: of each rank its own, on a node
    of its own."""
    resident._BLOCK_BYTES = 11 * 4 * sum(WIDTHS.values())  # blocks of 11 rows, over all ranks
    torch.set_num_threads(1)
    rank, world = distributed.rank(), distributed.world_size()
    node, whose = (Node(rank, world), "") if isinstance(folder, str) else (Node(0, 1), f"-{rank}")
    folder = folder if isinstance(folder, str) else folder[rank]
    config = presets.build(
        "conclugen",
        "improved",
        global_batch=BATCH,
        model={"representation_dim": 16, "projection_dim": 8, "reconstruction_hidden_dim": 8},
        tasks={"clustering": {"clusters": 3, "start_epoch": 0}, "contrastive": {"negatives": negatives}},
    )
    read = payload == READ
    data = DataConfig(
        folder=folder,
        view="everything",
        validation_view=None,
        payload="worker" if read else payload,  # type: ignore[arg-type]
        rows_in=rows_in,  # type: ignore[arg-type]
        remainder=remainder,  # type: ignore[arg-type]
        max_corrupt_share=1.0,
    )
    met: list[int] = []
    source = open_source(data, config, lambda sample: met.append(sample.row))
    lines: list[str] = []
    beats: list[None] = []
    moments = {m: (np.zeros(d), np.ones(d)) for m, d in WIDTHS.items()}
    pretrainer = Pretrainer(config, WIDTHS, source.steps_per_epoch, moments)
    whole = Room(10**9, 10**9, "here")
    prepared = payloads.prepare(
        source, node, whole, torch.device("cpu"), f"test-{Path(folder).parent.name}-{payload}{whose}",
        RankMeeting(rank, world, 60.0), lines.append, lambda: beats.append(None),
    )  # fmt: skip
    assert prepared.all_read == (not read) and bool(lines) == (not read) and bool(beats) == (not read)
    losses = []
    opened = (
        stream(source.reader, source.plan, rank, world, Cursor(0, 2), STEPS)
        if read
        else prepared.stream(rank, world, Cursor(0, 2), STEPS)
    )
    told: list[list[int]] = []

    def gather_behind(x: torch.Tensor) -> Any:
        told[-1] += [x.shape[1]] if x.dtype == torch.uint8 else []
        return gathered_behind(x)

    gathered_behind = distributed.gather_behind
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distributed, "gather_behind", gather_behind)
        for batch in prepared.on_device(opened, torch.device("cpu")):
            told.append([])
            losses.append({name: float(value) for name, value in pretrainer.step(batch).items()})
    if not read:
        assert opened.counters.asked >= STEPS  # type: ignore[union-attr]
        opened.__exit__(None, None, None)  # type: ignore[union-attr]
    assert len(losses) == STEPS
    assert all(each == told[0] for each in told)
    return {"losses": losses, "checksum": pretrainer.checksum(), "met": met, "lines": lines, "told": told[0]}


@pytest.mark.parametrize("world", [1, 3])
def test_losses_are_those_of_rows_that_are_read(workers: Pool, folder: str, world: int) -> None:
    read = workers.run(world, trained, folder, READ, "stored")
    assert {row for rank in read for row in rank["met"]} == {2}
    for payload in (DEVICE, HOST):
        kept = workers.run(world, trained, folder, payload, "stored")
        assert [r["losses"] for r in kept] == [r["losses"] for r in read], payload
        assert [r["checksum"] for r in kept] == [r["checksum"] for r in read], payload
        assert sorted(row for rank in kept for row in rank["met"]) == [2], "once, on the rank that read it"
        assert f"data.payload={payload}" in kept[0]["lines"][0]
    left = [
        path
        for path in payloads._shared_folder().glob("conclugen-rows-test-*")
        if Path(folder).parent.name in path.name
    ]
    assert left == [], "shared memory outlives its ranks"


@pytest.mark.parametrize(
    ("world", "negatives", "groups"),
    [
        (2, "all", 0),
        (3, "same_group", 8),
        pytest.param(2, "same_group", 8, marks=pytest.mark.slow),
        pytest.param(3, "all", 0, marks=pytest.mark.slow),
    ],
)
def test_presence_of_kept_rows_that_lack_nothing_does_not_travel(
    workers: Pool, complete: str, world: int, negatives: str, groups: int
) -> None:
    """To the same bits, the last batch of an epoch included: three rows, so that the third of three ranks has none."""
    read = workers.run(world, trained, complete, READ, "stored", negatives, "pad")
    assert [r["told"] for r in read] == [[1 + groups]] * world
    for payload in (DEVICE, HOST):
        kept = workers.run(world, trained, complete, payload, "stored", negatives, "pad")
        assert [r["told"] for r in kept] == [[groups] if groups else []] * world, payload
        assert [r["losses"] for r in kept] == [r["losses"] for r in read], payload
        assert [r["checksum"] for r in kept] == [r["checksum"] for r in read], payload


def test_a_row_that_one_node_alone_finds_corrupt_is_told_to_the_others(
    workers: Pool, complete: str, tmp_path: Path
) -> None:
    """Though the manifest lacks nothing, and the other node's copy does not either."""
    other = damaged(str(shutil.copytree(complete, tmp_path / "data")))
    (whole, _) = workers.run(2, trained, complete, HOST, "stored", "all")
    losses = []
    for folders in ([complete, other], [other, complete]):
        read = workers.run(2, trained, folders, READ, "stored", "all")
        kept = workers.run(2, trained, folders, HOST, "stored", "all")
        assert sorted(map(len, (r["met"] for r in kept))) == [0, 1]
        assert [r["told"] for r in kept] == [[1], [1]]
        assert [r["losses"] for r in kept] == [r["losses"] for r in read]
        assert [r["checksum"] for r in kept] == [r["checksum"] for r in read]
        losses.append(kept[0]["losses"])
    assert any(each != whole["losses"] for each in losses), "neither of them was dealt the corrupt row"
    both = workers.run(2, trained, [complete, other], DEVICE, "stored", "all")
    assert both[0]["told"] == both[1]["told"] and both[0]["checksum"] == both[1]["checksum"]


def test_rows_in_float16_train_alike_on_both(workers: Pool, folder: str) -> None:
    """Both round the same; and the first losses differ from those of the stored rows by the rounding alone: features of
    11 bits, through a few maps."""
    exact = workers.run(2, trained, folder, READ, "stored")[0]["losses"]
    device, host = (workers.run(2, trained, folder, payload, "float16")[0]["losses"] for payload in (DEVICE, HOST))
    assert device == host
    first, rounded = exact[0]["loss"], device[0]["loss"]
    assert 0 < abs(rounded - first) < 2e-3 * abs(first)
