"""Which payload a run takes, what it says of it, and what it says where rows do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.run_config import DataConfig
from ray_jobs.training import payloads
from ray_jobs.training.payloads import AUTO, DEVICE, HOST, STORE, Room, choose, line

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
