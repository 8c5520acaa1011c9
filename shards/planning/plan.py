"""The order of samples: a pure function of (rows per shard, seed, epoch), the same for any number of workers.

The unit is a chunk: up to `chunk_rows` consecutive selected rows of one shard. The borders of a shard's chunks are
shifted by a phase that depends on (seed, epoch, shard), so rows at a distance below `chunk_rows` are sometimes in one
chunk and sometimes not. Epoch e is a permutation of all chunks drawn from (seed, e); global batch k is the k-th run of
`global_batch` rows of it, and rank r of W takes the r-th part of ceil(global_batch / W) rows of that.

The permutation is our own and named (`ALGORITHM`), so that no version of a library can change it: numbers come from
splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) under a key that
BLAKE2b makes of (seed, epoch, purpose); chunks are ordered by the upper bits of their number, equal ones by place.

A table for one epoch costs 12 bytes a chunk and is built by one sort; seeking to any step then is a binary search.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conclugen.common.names import did_you_mean

ALGORITHM = "chunks-phase-splitmix64-rank-v1"
REMAINDERS = ("drop", "pad", "carry")
_GAMMA = 0x9E3779B97F4A7C15
_WORD = 0xFFFFFFFFFFFFFFFF
_TABLES_KEPT = 2  # a stream crosses one epoch border at a time
_MOST_CHUNKS = 1 << 32
_BLOCK = 1 << 20  # elements worked on at once, so that temporaries stay small

Int64 = NDArray[np.int64]


class Range(NamedTuple):
    """Rows `start` to `stop` (exclusive) of the selection of one shard."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True)
class Cursor:
    """The position of a stream: the next batch to be read is `step` of `epoch`."""

    epoch: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        for name, value in (("epoch", self.epoch), ("step", self.step)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"Cursor.{name} is {value!r}; expected an integer >= 0.")

    def to_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "step": self.step}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Cursor:
        """The cursor that `to_dict` wrote. ValueError when a field is missing, unknown or no integer >= 0."""
        if set(state) != {"epoch", "step"}:
            raise ValueError(f"A cursor has the fields epoch and step; found {sorted(state)}.")
        return cls(epoch=state["epoch"], step=state["step"])


@dataclass(frozen=True)
class Window:
    """One rank's part of some consecutive steps, as arrays: piece i is rows `start[i]` to `stop[i]` of the selection
    of shard `shard[i]` and belongs to the `step[i]`-th step of the window; pieces are in the order of the rows.

    shard, start, stop, step: (pieces,) int64.  filled: (steps,) int64, rows in each step; the rest up to `local_batch`
    is padding.
    """

    shard: Int64
    start: Int64
    stop: Int64
    step: Int64
    filled: Int64
    local_batch: int

    def ranges(self, step: int) -> list[Range]:
        """The pieces of one step of the window."""
        lo, hi = np.searchsorted(self.step, [step, step + 1])
        columns = (self.shard[lo:hi].tolist(), self.start[lo:hi].tolist(), self.stop[lo:hi].tolist())
        return [Range(*piece) for piece in zip(*columns, strict=True)]


@dataclass(frozen=True)
class _EpochTable:
    """order: (chunks,) chunk numbers in the epoch's order.  ends: (chunks,) rows up to and with each of them.
    first_chunk: (shards,) number of the shard's first chunk.  phase: (shards,) rows that this chunk lacks."""

    order: NDArray[np.uint32]
    ends: Int64
    first_chunk: Int64
    phase: Int64


class Plan(ABC):
    """An order of rows in batches: an `EpochPlan`, or the `MixedPlan` of several corpora."""

    counts: Int64
    global_batch: int
    chunk_rows: int
    total_rows: int

    @abstractmethod
    def start_of_epoch(self, epoch: int) -> int:
        """Steps before the first step of `epoch`."""

    @abstractmethod
    def cursor_at(self, global_step: int) -> Cursor:
        """The cursor that is `global_step` steps from the very beginning."""

    @abstractmethod
    def window(self, start: Cursor, steps: int, rank: int = 0, world: int = 1) -> Window:
        """This rank's part of `steps` consecutive steps from `start` on, over all borders.

        Memory grows with the pieces (about local rows / chunk_rows a step, and one for each corpus): keep windows
        bounded."""

    def steps_in(self, epoch: int) -> int:
        return self.start_of_epoch(epoch + 1) - self.start_of_epoch(epoch)

    def global_step(self, cursor: Cursor) -> int:
        """Steps from the very beginning to the cursor."""
        return self.start_of_epoch(cursor.epoch) + cursor.step

    def advance(self, cursor: Cursor, steps: int) -> Cursor:
        """The cursor `steps` steps further on (over epoch borders; backwards with a negative number)."""
        return self.cursor_at(self.global_step(cursor) + steps)

    def batch_rows(self, cursor: Cursor) -> int:
        """Rows of the global batch at the cursor; padding, behind them, makes it up to the size of all batches."""
        return self.global_batch

    def local_batch(self, world: int) -> int:
        """Rows of one rank's batch: ceil(global_batch / world)."""
        return -(-self.global_batch // world)

    def rows(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> list[Range]:
        """This rank's part of one global batch. Rows missing from the local batch's size are padding at its tail.

        Raises ValueError for a step that the epoch does not have, or a rank outside [0, world)."""
        if not 0 <= step < self.steps_in(epoch):
            raise ValueError(f"step is {step}; epoch {epoch} has steps 0 to {self.steps_in(epoch) - 1}.")
        return self.window(Cursor(epoch, step), 1, rank, world).ranges(0)

    @staticmethod
    def _check_window(steps: int, rank: int, world: int) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank}; expected 0 <= rank < world, with world={world}.")
        if steps < 1:
            raise ValueError(f"steps is {steps}; expected >= 1.")


class EpochPlan(Plan):
    """Which rows are in which batch, for all epochs and any number of workers.

    counts: (shards,) rows selected in each shard.  seed: any integer.  global_batch: rows in a batch over all workers.
    chunk_rows: longest run of neighbouring rows; by default 1/16 of the batch, at least 1 and at most 64: neighbours
        meet in most epochs, so chunks as long as the batch would repeat the same negatives for ever.
    remainder: how the rows are handled that do not fill a batch at an epoch's end.
        "drop": they are left out of that epoch.  "pad": they make a short batch, filled up with padding rows.
        "carry": they open the next epoch's first batch (which may then hold a sample of both epochs twice); the
        number of steps differs by one between epochs, and `steps_per_epoch` is the fraction rows / global_batch.

    Raises ValueError for counts that are not integers >= 0, for sizes below 1, for an unknown remainder, and, except
    for "pad", when there are fewer rows than one global batch.
    """

    def __init__(
        self,
        counts: Any,
        seed: int,
        global_batch: int,
        chunk_rows: int | None = None,
        remainder: str = "drop",
    ) -> None:
        self.counts = _checked_counts(counts)
        self.seed = _checked_int("seed", seed, minimum=None)
        self.global_batch = _checked_int("global_batch", global_batch, minimum=1, maximum=1 << 40)
        if chunk_rows is None:
            chunk_rows = max(1, min(64, self.global_batch // 16))
        self.chunk_rows = _checked_int("chunk_rows", chunk_rows, minimum=1, maximum=(1 << 31) - 1)
        if remainder not in REMAINDERS:
            raise ValueError(f"remainder is {remainder!r}; {did_you_mean(remainder, REMAINDERS)}")
        self.remainder = remainder
        self.total_rows = int(self.counts.sum())
        if self.total_rows == 0:
            raise ValueError("The plan has no rows: every shard's count is 0. Check the view.")
        if self.total_rows < self.global_batch and remainder != "pad":
            raise ValueError(
                f"{self.total_rows} rows are fewer than one global batch of {self.global_batch} "
                f"(remainder={remainder!r}): choose global_batch <= {self.total_rows}, more data, or remainder='pad'."
            )
        self._tables: dict[int, _EpochTable] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}  # tables are rebuilt where they are needed: cheaper than to send

    def __repr__(self) -> str:
        return (
            f"EpochPlan({len(self.counts)} shards, {self.total_rows} rows, seed={self.seed}, "
            f"global_batch={self.global_batch}, chunk_rows={self.chunk_rows}, remainder={self.remainder!r})"
        )

    @property
    def digest(self) -> str:
        """Identity of the order: equal digests mean equal batches (of the same view of the same data)."""
        head = f"{ALGORITHM}|{self.seed}|{self.global_batch}|{self.chunk_rows}|{self.remainder}|".encode()
        return hashlib.blake2b(head + self.counts.astype("<i8").tobytes(), digest_size=16).hexdigest()

    # ---- counting -----------------------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int | Fraction:
        """An integer for "drop" and "pad"; rows / global_batch for "carry" (see `steps_in` for those of one epoch)."""
        if self.remainder == "carry":
            return Fraction(self.total_rows, self.global_batch)
        return self.start_of_epoch(1)

    def start_of_epoch(self, epoch: int) -> int:
        """Steps before the first step of `epoch`. With "carry" that step may open with the rest of the epoch before."""
        if self.remainder == "carry":
            return epoch * self.total_rows // self.global_batch
        if self.remainder == "drop":
            return epoch * (self.total_rows // self.global_batch)
        return epoch * -(-self.total_rows // self.global_batch)

    def cursor_at(self, global_step: int) -> Cursor:
        if global_step < 0:
            raise ValueError(f"global_step is {global_step}; expected >= 0.")
        if self.remainder == "carry":  # a batch counts to the epoch of its last row
            epoch = ((global_step + 1) * self.global_batch - 1) // self.total_rows
        else:
            epoch = global_step // self.start_of_epoch(1)
        return Cursor(epoch, global_step - self.start_of_epoch(epoch))

    def batch_rows(self, cursor: Cursor) -> int:
        if self.remainder != "pad":
            return self.global_batch
        return min(self.global_batch, self.total_rows - cursor.step * self.global_batch)

    # ---- rows ---------------------------------------------------------------------------------------------------

    def window(self, start: Cursor, steps: int, rank: int = 0, world: int = 1) -> Window:
        self._check_window(steps, rank, world)
        local = self.local_batch(world)
        shard, begin, stop, of_step = self.pieces(*self._spans(self.global_step(start), steps, rank * local, local))
        # Spans were cut at epoch borders in the order of rows, and epochs only grow, so pieces are in order of step.
        filled = np.bincount(of_step, weights=stop - begin, minlength=steps).astype(np.int64)
        return Window(shard, begin, stop, of_step, filled, local)

    def _spans(self, first: int, steps: int, skip: int, local: int) -> tuple[int, Int64, Int64, Int64, Int64]:
        """The rank's rows as positions [lo, hi) in an epoch's order: (base, epoch - base, lo, hi, step)."""
        size, total = self.global_batch, self.total_rows
        step = np.arange(steps, dtype=np.int64)
        begin, end = min(skip, size), min(skip + local, size)
        if self.remainder != "carry":
            per_epoch = self.start_of_epoch(1)
            base, within = divmod(first, per_epoch)
            epoch = (within + step) // per_epoch
            origin = (within + step) % per_epoch * size
            lo, hi = np.minimum(origin + begin, total), np.minimum(origin + end, total)
        else:
            base, within = divmod(first * size, total)
            absolute = within + step * size
            # one batch crosses one border at most: total >= size
            epoch, lo, hi, step = cut_at_borders(total, absolute + begin, absolute + end, step)
        some = hi > lo
        return base, epoch[some], lo[some], hi[some], step[some]

    def pieces(self, base: int, epoch: Int64, lo: Int64, hi: Int64, step: Int64) -> tuple[Int64, Int64, Int64, Int64]:
        """Spans of positions, span i being [lo, hi) of the order of epoch base + epoch[i], cut into pieces of chunks:
        (shard, start, stop, step) of each piece. Epochs must not fall."""
        found = [
            self._pieces(base + int(e), lo[epoch == e], hi[epoch == e], step[epoch == e]) for e in np.unique(epoch)
        ]
        shard, start, stop, of_step = (
            np.concatenate([np.empty(0, np.int64), *(piece[i] for piece in found)]) for i in range(4)
        )
        return shard, start, stop, of_step

    def _pieces(self, epoch: int, lo: Int64, hi: Int64, step: Int64) -> tuple[Int64, Int64, Int64, Int64]:
        """Cut spans of positions into pieces of chunks: (shard, start, stop, step) of each."""
        table, c = self._table(epoch), self.chunk_rows
        first = np.searchsorted(table.ends, lo, side="right")
        last = np.searchsorted(table.ends, hi, side="left")
        number = last - first + 1
        span = np.repeat(np.arange(len(lo)), number)
        place = np.arange(len(span)) - np.repeat(np.cumsum(number) - number, number) + first[span]
        chunk = table.order[place].astype(np.int64)
        # With equal first chunks (empty shards before a full one) "right" finds the last of them, the full one.
        shard = np.searchsorted(table.first_chunk, chunk, side="right") - 1
        from_phase = (chunk - table.first_chunk[shard]) * c - table.phase[shard]
        start, stop = np.maximum(from_phase, 0), np.minimum(from_phase + c, self.counts[shard])
        chunk_end = table.ends[place]
        cut_head = np.maximum(lo[span] - (chunk_end - (stop - start)), 0)
        cut_tail = np.maximum(chunk_end - hi[span], 0)
        return shard.astype(np.int64), start + cut_head, stop - cut_tail, step[span]

    def _table(self, epoch: int) -> _EpochTable:
        table = self._tables.get(epoch)
        if table is None:
            table = self._build_table(epoch)
            kept = list(self._tables.items())[-(_TABLES_KEPT - 1) :]
            self._tables = {**dict(kept), epoch: table}  # one assignment: threads never see a half-made cache
        return table

    def _build_table(self, epoch: int) -> _EpochTable:
        c, counts = self.chunk_rows, self.counts
        phase_key = _key(self.seed, epoch, "phase")
        phase = (_numbers(phase_key, len(counts)) % np.uint64(c)).astype(np.int64)
        chunks = np.where(counts > 0, -(-(counts + phase) // c), 0)
        chunks_total = int(chunks.sum())
        if chunks_total > _MOST_CHUNKS:
            raise ValueError(f"{self.total_rows} rows in chunks of {c} are {chunks_total} chunks; raise chunk_rows.")
        first_chunk = np.cumsum(chunks) - chunks
        order = _permutation(_key(self.seed, epoch, "order"), chunks_total)
        sizes = np.full(chunks_total, c, dtype=np.int32)
        used = np.flatnonzero(counts)
        sizes[first_chunk[used]] -= phase[used].astype(np.int32)
        overhang = chunks * c - phase - counts
        sizes[first_chunk[used] + chunks[used] - 1] -= overhang[used].astype(np.int32)
        ends, so_far = np.empty(chunks_total, dtype=np.int64), 0
        for at in range(0, chunks_total, _BLOCK):
            block = slice(at, at + _BLOCK)
            np.cumsum(sizes[order[block]], out=ends[block])
            ends[block] += so_far
            so_far = int(ends[block][-1])
        return _EpochTable(order, ends, first_chunk, phase)


def cut_at_borders(total: int, lo: Int64, hi: Int64, step: Int64) -> tuple[Int64, Int64, Int64, Int64]:
    """Spans [lo, hi) of positions in an endless row of epochs of `total` rows, each cut where an epoch ends, which it
    may cross once: (epoch, lo, hi, step), the positions within the epoch. Parts may be empty."""
    border = (lo // total + 1) * total
    lo = np.stack([lo, border], axis=1).ravel()
    hi = np.stack([np.minimum(hi, border), hi], axis=1).ravel()
    epoch = lo // total
    return epoch, lo - epoch * total, hi - epoch * total, np.repeat(step, 2)


def _key(seed: int, epoch: int, purpose: str) -> int:
    text = f"{ALGORITHM}|{seed}|{epoch}|{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _numbers(key: int, count: int) -> NDArray[np.uint64]:
    """The first `count` numbers of splitmix64 with state `key`: distinct 64-bit words."""
    out = np.arange(1, count + 1, dtype=np.uint64)
    for at in range(0, count, _BLOCK):
        z = out[at : at + _BLOCK]
        z *= np.uint64(_GAMMA)
        z += np.uint64(key)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return out


def _permutation(key: int, count: int) -> NDArray[np.uint32]:
    """Numbers 0 to count - 1 ordered by the upper bits of `_numbers(key, count)`, equal ones by size.

    Each word carries its own place in its lower bits: one plain sort in place, faster and smaller than an argsort,
    and no sorting algorithm can change the result because all words differ."""
    low = np.uint64((1 << max(count - 1, 1).bit_length()) - 1)
    words = _numbers(key, count)
    for at in range(0, count, _BLOCK):
        block = words[at : at + _BLOCK]
        block &= ~low
        block |= np.arange(at, at + len(block), dtype=np.uint64)
    words.sort()
    words &= low
    return words.astype(np.uint32)


def _checked_counts(counts: Any) -> Int64:
    array = np.asarray(counts)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"counts has shape {array.shape} and dtype {array.dtype}; expected one integer a shard.")
    if array.size and (int(array.min()) < 0 or int(array.max()) > 1 << 62):
        raise ValueError(f"counts reach from {array.min()} to {array.max()}; expected 0 to 2**62.")
    if float(array.sum(dtype=np.float64)) > 1 << 62:
        raise ValueError("counts add up to more than 2**62 rows, which 64-bit positions do not hold.")
    return array.astype(np.int64)


def _checked_int(name: str, value: Any, minimum: int | None, maximum: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} is {value!r}; expected an integer.")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} is {value}; expected an integer >= {minimum}.")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name} is {value}; expected an integer <= {maximum}.")
    return int(value)
