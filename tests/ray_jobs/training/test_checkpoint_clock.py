"""Checkpoints by time: how seldom training stands still for them, and that no rank's state is kept unseen."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conclugen import Pretrainer
from conclugen.training import checkpoint
from conclugen.training.checkpoint import HostMemory, Snapshot
from ray_jobs.checkpoint_store import CheckpointStore
from ray_jobs.training import worker
from ray_jobs.training.rank_meeting import RankMeeting
from ray_jobs.training.step_recorder import NullRecorder
from ray_jobs.training.worker import CheckpointClock, Checkpointer, RanksDifferError, compare
from shards import Cursor
from tests.clock import Clock

STEP_S, WRITE_S = 0.02, 3.0
WIDTHS = {"video": 3, "audio": 2}


class SlowStore(CheckpointStore):
    """Is done with a checkpoint when the test's clock says so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, keep=2)
        self.done = threading.Event()
        self.written: list[int] = []

    def publish(self, step: int, state: Snapshot) -> None:
        assert self.done.wait(60), "training waits for a write"
        self.done.clear()
        super().publish(step, state)
        self.written.append(step)


@pytest.mark.parametrize(("every_s", "copy_s", "apart_s"), [(2.0, 0.02, WRITE_S), (10.0, 0.05, 10.0), (2.0, 0.2, 20.0)])
def test_training_stands_still_for_a_hundredth_of_the_time(
    pretrainer: Pretrainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every_s: float,
    copy_s: float,
    apart_s: float,
) -> None:
    """Steps of 20 ms, and a store that takes 3 s: longer than the time between checkpoints asked for, in one case."""
    clock, store, taken = Clock(), SlowStore(tmp_path), checkpoint.snapshot

    def snapshot(*arguments: Any, **options: Any) -> Snapshot:
        clock.sleep(copy_s)
        return taken(*arguments, **options)

    monkeypatch.setattr(checkpoint, "snapshot", snapshot)
    monkeypatch.setattr(worker, "RunFolder", lambda folder: SimpleNamespace(store=lambda run: store))
    start: Any = SimpleNamespace(
        folder=str(tmp_path),
        identity={"a": 1},
        job=SimpleNamespace(run=SimpleNamespace(checkpoint_every_s=every_s, name="first")),
    )
    checkpointer = Checkpointer(start, 0, NullRecorder())
    checkpointer._clock = CheckpointClock(every_s, clock.read)
    assert checkpointer._writer is not None

    kept: list[float] = []
    blocked, total = 0.0, 100.0
    while clock.now < total:
        clock.sleep(STEP_S)
        if checkpointer._writer.busy and clock.now >= kept[-1] + WRITE_S:
            store.done.set()
            checkpointer._writer.wait()
        if checkpointer.wants_one:
            begun = clock.now
            checkpointer.keep(pretrainer, Cursor(0, len(kept)), at_once=False)
            blocked += clock.now - begun
            kept.append(clock.now)
    store.done.set()
    checkpointer._writer.finish()
    assert blocked <= 0.01 * clock.now + 1e-9, "but for rounding of the sums of times"
    assert len(kept) >= total / (apart_s + 4 * STEP_S) - 1, "and they are made as often as that allows"
    assert len(store.written) == len(kept)
    newest = store.newest()
    assert newest is not None and newest.cursor == {"epoch": 0, "step": len(kept) - 1}
    assert newest.extra == {"measures": {}, "identity": {"a": 1}}


def test_copies_that_pass_beside_training_count_as_a_pause(clock: Clock) -> None:
    """On a GPU the host is not held by them; the next update may be."""
    times = CheckpointClock(1.0, clock.read)
    with times.keeping():
        clock.sleep(0.001)
    clock.sleep(0.05)
    times.went_on(0.05)
    clock.sleep(4.9)
    assert not times.due(busy=False)
    clock.sleep(0.1)
    assert times.due(busy=False)
    times.went_on(0.0)
    assert times.due(busy=False), "copies that were there at once put nothing off"


def test_without_a_time_none_is_due_and_other_ranks_never_ask(clock: Clock) -> None:
    assert not CheckpointClock(None, clock.read).due(busy=False)
    start: Any = SimpleNamespace(
        folder="", identity={}, job=SimpleNamespace(run=SimpleNamespace(checkpoint_every_s=1e-9, name="first"))
    )
    assert not Checkpointer(start, 1, NullRecorder()).wants_one


def test_snapshots_are_copied_into_the_same_memory(pretrainer: Pretrainer) -> None:
    memory, live = HostMemory(), pretrainer.state()[0]
    first = checkpoint.snapshot(pretrainer, {}, memory=memory).tensors
    places = {name: x.data_ptr() for name, x in first.items()}
    with torch.no_grad():
        for parameter in pretrainer.model.parameters():
            parameter.add_(1)
    second = checkpoint.snapshot(pretrainer, {}, memory=memory).tensors
    assert {name: x.data_ptr() for name, x in second.items()} == places
    assert not {x.data_ptr() for x in live.values()} & set(places.values())
    for name, x in live.items():
        torch.testing.assert_close(second[name], x, rtol=0, atol=0)


def test_a_checksum_sees_a_bit_and_two_numbers_that_changed_places(pretrainer: Pretrainer) -> None:
    before = pretrainer.checksum()
    assert before == pretrainer.checksum() and 0 <= before < 1 << 63
    weight = next(p for p in pretrainer.model.parameters() if p.dim() == 2).detach()
    seen = {before}
    for i, bit in ((0, 0), (3, 22), (5, 31)):
        flat = weight.view(torch.int32).flatten()
        old = int(flat[i])
        flat[i] = old ^ (1 << bit) if bit < 31 else old ^ -(1 << 31)
        seen.add(pretrainer.checksum())
        flat[i] = old
    swapped = weight.flatten()[[1, 0]].clone()
    weight.flatten()[:2] = swapped
    seen.add(pretrainer.checksum())
    assert len(seen) == 5
    weight.flatten()[:2] = swapped[[1, 0]]
    assert pretrainer.checksum() == before


def test_ranks_that_differ_are_named_where_most_agree() -> None:
    compare([7], 1)
    compare([7, 7, 7], 1)
    with pytest.raises(RanksDifferError, match=r"after step 40 the parameters of rank 2 from the others differ"):
        compare([7, 7, 8, 7], 40)
    with pytest.raises(RanksDifferError, match=r"parameters of ranks from each other differ"):
        compare([7, 8], 40)


def test_what_ranks_exchange_between_meetings_moves_none_of_them() -> None:
    meeting = RankMeeting(0, 1, 1.0)
    meeting.hold(1, None)
    assert meeting.exchange({"a": [1]}) == [{"a": [1]}]
    assert meeting.due(2) and meeting.hold(2, "note") == ["note"]
