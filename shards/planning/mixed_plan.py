"""The order of samples of several corpora: a pure function of (their rows, weights by step, seed, step), the same for
any number of workers.

Each corpus is an endless row of epochs, each a permutation of its chunks as `shards.planning.plan` draws them, under a
key of its own. Batch k takes from every corpus as many rows as `shards.planning.shares` deals it of the slots k G to (k
+ 1) G, from where batch k - 1 has left it: a corpus that ends continues with its next epoch. Weights so hold in every
window of batches, up to 2 E < 3.36 rows, and to find the position of a corpus at any step takes a few divisions.

Weights may change at given steps. What a stage has dealt is then counted up to its end, so that a seek costs one
division for each stage before it, and the bound holds within each stage.

In a batch corpora follow each other in the order of their names, each in its own order of rows. Rank r of W takes the
r-th part of ceil(G / W) rows, as in a plan of one corpus.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shards.planning.plan import ALGORITHM as ONE_ALGORITHM
from shards.planning.plan import Cursor, EpochPlan, Int64, Plan, Window, cut_at_borders
from shards.planning.shares import LARGEST_SPAN, LARGEST_TOTAL, Shares

ALGORITHM = "nested-bresenham-huffman-v1"


class MixedPlan(Plan):
    """Which rows of which corpus are in which batch, for all steps and any number of workers.

    counts: corpus -> (shards,) rows selected in each of its shards. weights: corpus -> integer >= 0 (see
    `shards.planning.shares.whole_weights`); or, where they change, the first step of each stage -> such weights, the
    first of step 0. epoch_rows: rows of an epoch of the mixture, by which training counts; by default those of all
    corpora. Its last rows that fill no batch are in the next epoch's: nothing is left out. seed, global_batch,
    chunk_rows: as of an `EpochPlan`.

    A piece's shard is numbered through all corpora, in the order of their names: `first_shard[i]` is the first one of
    corpus `names[i]`.

    Raises ValueError, in one line with the corpus, for weights that are not integers >= 0, a corpus without weight in
    all stages, a corpus smaller than its largest share of a batch (which would hold rows twice), and sizes out of
    range.
    """

    def __init__(
        self,
        counts: Mapping[str, Any],
        weights: Mapping[str, int] | Mapping[int, Mapping[str, int]],
        seed: int,
        global_batch: int,
        chunk_rows: int | None = None,
        epoch_rows: int | None = None,
    ) -> None:
        if not counts:
            raise ValueError("A mixture needs at least one corpus.")
        self.names = tuple(sorted(counts))
        self.global_batch = _size("global_batch", global_batch, LARGEST_SPAN)
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise ValueError(f"seed is {seed!r}; expected an integer.")
        self.seed = int(seed)
        if chunk_rows is None:
            chunk_rows = max(1, min(64, self.global_batch // 16))
        # In batches of 1, which are not used: what is taken of each plan is the order of its epochs.
        self.parts = tuple(_part(name, counts[name], _own_seed(self.seed, name), chunk_rows) for name in self.names)
        self.chunk_rows = self.parts[0].chunk_rows
        self.counts: Int64 = np.concatenate([part.counts for part in self.parts])
        self.first_shard: Int64 = np.cumsum([0, *(len(part.counts) for part in self.parts)], dtype=np.int64)
        self.total_rows = sum(part.total_rows for part in self.parts)
        self.epoch_rows = self.total_rows if epoch_rows is None else _size("epoch_rows", epoch_rows, None)
        self.steps_per_epoch = self.epoch_rows // self.global_batch
        if not self.steps_per_epoch:
            raise ValueError(
                f"{self.epoch_rows} rows in an epoch of the mixture are fewer than one global batch of "
                f"{self.global_batch}: choose global_batch <= {self.epoch_rows}, or more data."
            )
        stages = {0: weights} if any(isinstance(key, str) for key in weights) else dict(weights)
        self.weights = _checked_stages(self.names, stages)  # type: ignore[arg-type]
        self._first_step = sorted(self.weights)
        self._shares = [Shares([self.weights[step][name] for name in self.names]) for step in self._first_step]
        self._dealt = [[0] * len(self.names)]  # rows of each corpus before each stage
        for i, step in enumerate(self._first_step[1:]):
            dealt = self._shares[i].before((step - self._first_step[i]) * self.global_batch)
            self._dealt.append([a + b for a, b in zip(self._dealt[-1], dealt, strict=True)])
        self._refuse_small()

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}: {part.total_rows} rows" for name, part in zip(self.names, self.parts, strict=True))
        return (
            f"MixedPlan({parts}; weights={self.weights}, seed={self.seed}, global_batch={self.global_batch}, "
            f"chunk_rows={self.chunk_rows})"
        )

    @property
    def digest(self) -> str:
        """Identity of the order: equal digests mean equal batches (of the same views of the same data)."""
        return self._digest([[step, [self.weights[step][name] for name in self.names]] for step in self._first_step])

    @property
    def unweighted_digest(self) -> str:
        """Identity of all but the weights: with equal ones, the batches before a step depend on the stages that began
        before it alone."""
        return self._digest([])

    def _digest(self, stages: list[Any]) -> str:
        own = [ALGORITHM, ONE_ALGORITHM, self.seed, self.global_batch, self.chunk_rows, self.epoch_rows]
        digest = hashlib.blake2b(json.dumps([own, stages, self.names]).encode(), digest_size=16)
        for part in self.parts:
            digest.update(part.digest.encode())
        return digest.hexdigest()

    # ---- shares -----------------------------------------------------------------------------------------------------

    def stage_of(self, step: int) -> int:
        """First step of the stage that a step from the very beginning lies in."""
        return self._first_step[bisect_right(self._first_step, step) - 1]

    def shares_at(self, step: int) -> dict[str, float]:
        """Corpus -> share of the rows at a step from the very beginning."""
        shares = self._shares[self._first_step.index(self.stage_of(step))]
        return {name: float(shares.share(i)) for i, name in enumerate(self.names)}

    def error(self, name: str) -> float:
        """Rows by which a corpus misses its share at most in any window of whole steps within one stage: 2 E."""
        owner = self.names.index(name)
        return 2 * float(max(shares.error(owner) for shares in self._shares))

    def rows_before(self, step: int) -> dict[str, int]:
        """Corpus -> rows that it has given before a step from the very beginning."""
        stage = bisect_right(self._first_step, step) - 1
        slot = (step - self._first_step[stage]) * self.global_batch
        dealt = zip(self._dealt[stage], self._shares[stage].before(slot), strict=True)
        return {name: a + b for name, (a, b) in zip(self.names, dealt, strict=True)}

    def _refuse_small(self) -> None:
        for i, (name, part) in enumerate(zip(self.names, self.parts, strict=True)):
            most = max(shares.most(i, self.global_batch) for shares in self._shares)
            if most > part.total_rows:
                raise ValueError(
                    f"corpus {name!r}: found {part.total_rows} rows, expected at least {most}, its largest share of a "
                    f"global batch of {self.global_batch}, which would hold rows of it twice; lower its weight or the "
                    "global batch, or give it more rows"
                )

    # ---- counting ---------------------------------------------------------------------------------------------------

    def start_of_epoch(self, epoch: int) -> int:
        """Steps before the first step of `epoch` of the mixture."""
        return epoch * self.steps_per_epoch

    def cursor_at(self, global_step: int) -> Cursor:
        if global_step < 0:
            raise ValueError(f"global_step is {global_step}; expected >= 0.")
        return Cursor(*divmod(global_step, self.steps_per_epoch))

    # ---- rows -------------------------------------------------------------------------------------------------------

    def window(self, start: Cursor, steps: int, rank: int = 0, world: int = 1) -> Window:
        self._check_window(steps, rank, world)
        local, first = self.local_batch(world), self.global_step(start)
        found, done = [], 0
        while done < steps:
            stage = bisect_right(self._first_step, first + done) - 1
            borders = [*self._first_step[stage + 1 : stage + 2], first + steps]
            number = min(min(borders) - first - done, max(1, LARGEST_SPAN // self.global_batch))
            found.append(self._stretch(stage, first + done, number, rank * local, local, done))
            done += number
        shard, begin, stop, of_step = (np.concatenate([part[i] for part in found]) for i in range(4))
        filled = np.bincount(of_step, weights=stop - begin, minlength=steps).astype(np.int64)
        return Window(shard, begin, stop, of_step, filled, local)

    def _stretch(
        self, stage: int, first: int, steps: int, skip: int, local: int, numbered: int
    ) -> tuple[Int64, Int64, Int64, Int64]:
        """Pieces (shard, start, stop, step) of slots [skip, skip + local) of the batches of steps of one stage, whose
        numbers begin with `numbered`."""
        size = self.global_batch
        begin, end = min(skip, size), min(skip + local, size)
        before, dealt = self._shares[stage].after(
            (first - self._first_step[stage]) * size, np.arange(steps + 1, dtype=np.int64) * size
        )
        quota = np.diff(dealt, axis=1)  # (corpora, steps)
        place = np.cumsum(quota, axis=0) - quota  # of the corpus in the batch
        found = []
        for i, part in enumerate(self.parts):
            base, within = divmod(self._dealt[stage][i] + before[i], part.total_rows)
            taken = within + dealt[i, :-1]
            lo, hi = (taken + np.clip(edge - place[i], 0, quota[i]) for edge in (begin, end))
            epoch, lo, hi, step = cut_at_borders(part.total_rows, lo, hi, np.arange(steps, dtype=np.int64))
            some = hi > lo
            shard, *rest = part.pieces(base, epoch[some], lo[some], hi[some], step[some])
            found.append((shard + self.first_shard[i], *rest))
        shard, start, stop, of_step = (np.concatenate([piece[i] for piece in found]) for i in range(4))
        order = np.argsort(of_step, kind="stable")  # within a step corpora stay in the order of their names
        return shard[order], start[order], stop[order], of_step[order] + numbered


def _own_seed(seed: int, name: str) -> int:
    """Seed of a corpus's own epochs, so that corpora of equal sizes are not permuted alike."""
    text = json.dumps([ALGORITHM, seed, name]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _part(name: str, counts: Any, seed: int, chunk_rows: int) -> EpochPlan:
    try:
        return EpochPlan(counts, seed, 1, chunk_rows, "carry")
    except ValueError as error:
        raise ValueError(f"corpus {name!r}: {error}") from None


def _size(name: str, value: Any, most: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1 or (most and value > most):
        raise ValueError(f"{name} is {value!r}; expected an integer >= 1" + (f" and <= {most}." if most else "."))
    return int(value)


def _checked_stages(names: Sequence[str], stages: Mapping[int, Mapping[str, int]]) -> dict[int, dict[str, int]]:
    if 0 not in stages:
        raise ValueError(f"weights begin at step {min(stages, default=None)}; expected a stage from step 0 on.")
    checked = {}
    for step, weights in sorted(stages.items()):
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"weights: stage {step!r}; expected its first step, an integer >= 0.")
        for name in sorted({*names, *weights}):
            value = weights.get(name)
            if name not in names or isinstance(value, bool) or not isinstance(value, int) or value < 0:
                found = f"a weight of {value!r}" if name in names else "a weight, but no rows"
                raise ValueError(f"corpus {name!r}: found {found} from step {step} on, expected an integer >= 0")
        if not 0 < sum(weights.values()) <= LARGEST_TOTAL:
            raise ValueError(
                f"weights from step {step} on add up to {sum(weights.values())}; expected 1 to 2**30, see whole_weights"
            )
        checked[step] = {name: weights[name] for name in names}
    for name in names:
        if not any(weights[name] for weights in checked.values()):
            raise ValueError(
                f"corpus {name!r}: found a weight of 0, expected one above 0; leave the corpus out, or give it a weight"
            )
    return checked
