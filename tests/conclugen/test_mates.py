"""How many rows of a batch find others of their speaker, against batches that are drawn and counted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from conclugen.mates import FEWEST_MATES, LARGER_BATCH, OTHER_COLUMNS, batch_with_mates, mates_share, remedies
from conclugen.tasks.contrastive import SHARE, Contrastive
from conclugen.tasks.speaker_clusters import SpeakerClusters

SETS = [([10] * 6, 60), ([25, 13, 8, 4, 1], 60), ([12] * 16, 200)]  # rows of each speaker, all rows


@pytest.mark.parametrize(("sizes", "rows"), SETS)
@pytest.mark.parametrize("batch", [5, 16, 32])
def test_the_share_is_that_of_drawn_batches(sizes: list[int], rows: int, batch: int) -> None:
    rng = np.random.default_rng(0)
    speaker = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), np.full(rows - sum(sizes), -1)])
    found = []
    for _ in range(2000):
        drawn = rng.choice(speaker, batch, replace=False)
        counts = Counter(drawn[drawn >= 0].tolist())
        found.append(np.mean([counts[who] - 1 >= FEWEST_MATES for who in drawn.tolist()]))
    error = np.std(found) / np.sqrt(len(found))
    assert mates_share(sizes, rows, batch) == pytest.approx(np.mean(found), abs=max(5 * float(error), 1e-3))


def test_a_batch_is_named_in_which_most_rows_have_mates() -> None:
    assert mates_share([10] * 6, 60, 16) < 0.5 <= mates_share([10] * 6, 60, 32)
    assert batch_with_mates([10] * 6, 60, 16) == 32
    assert batch_with_mates([5] * 12, 60, 16) == 60  # no power of two: all rows of five are needed
    assert batch_with_mates([4] * 15, 60, 16) == 0  # nobody has four others at all
    assert batch_with_mates([], 60, 16) == 0 and batch_with_mates([20, 1, 1], 40, 16) in (32, 0)
    assert batch_with_mates([600] * 100, 60_000, 256) == 512


def test_the_remedy_is_what_can_be_done() -> None:
    assert remedies({LARGER_BATCH: 32.0, OTHER_COLUMNS: 0.0}).endswith("--batch 32.")
    assert remedies({LARGER_BATCH: 0.0, OTHER_COLUMNS: 0.0}) == ""
    assert "--group" in remedies({LARGER_BATCH: 0.0, OTHER_COLUMNS: 1.0})
    unknown = remedies({})
    assert "--batch" in unknown and "--data.speaker" in unknown


@pytest.mark.parametrize(("task", "metric"), [(Contrastive, SHARE), (SpeakerClusters, "speaker_clusters/counted")])
def test_what_nothing_can_be_done_about_is_not_warned_of(task: type, metric: str) -> None:
    few = {metric: 0.1}
    assert len(task.step_warnings(few)) == 1  # type: ignore[attr-defined]
    assert task.step_warnings(few | {LARGER_BATCH: 0.0, OTHER_COLUMNS: 0.0}) == []  # type: ignore[attr-defined]
    [line] = task.step_warnings(few | {LARGER_BATCH: 64.0, OTHER_COLUMNS: 0.0})  # type: ignore[attr-defined]
    assert "10% of the rows" in line and line.endswith("--batch 64.") and "pretrain.global_batch" not in line
    assert task.step_warnings({metric: 0.9} | {LARGER_BATCH: 64.0}) == []  # type: ignore[attr-defined]
