"""What tasks read of the whole global batch: whose features take the place of masked ones, and columns to be told."""

from typing import Any

import numpy as np
import pytest
import torch

from conclugen import Batch, prepared
from conclugen.tasks import View

N = 12


def batch(**others: Any) -> Batch:
    g = torch.Generator().manual_seed(3)
    features = {m: torch.randn(N, d, generator=g, dtype=torch.float64) * 3 + 5 for m, d in (("video", 4), ("audio", 3))}
    present = {"video": torch.arange(N) != 7, "audio": torch.arange(N) % 4 != 1}
    group = torch.tensor([5, 9, 5, 9, 5, 9, 5, 9, -1, -1, 2, 9])
    return Batch.of(Batch(features, present, torch.arange(N) + 100, group=group, **others), dtype=torch.float64)


def test_every_other_row_of_the_group_is_drawn_as_often() -> None:
    valid = torch.tensor([True, True, False, True, True, True, True, False, True, True, True, True])
    among = torch.tensor([4, 7, 4, 4, 7, 4, 9, 4, 7, 4, 7, 4])
    draws = [(i + 0.5) / 60 for i in range(60)]
    for offset, rows in ((0, 5), (5, 7)):  # as two ranks of unequal parts see it
        found = [prepared.drawn(torch.full((rows,), u), valid, among, offset) for u in draws]
        for row in range(rows):
            mates = [j for j in range(N) if j != offset + row and valid[j] and among[j] == among[offset + row]]
            has = bool(valid[offset + row]) and bool(mates)
            assert {bool(h[row]) for _, h in found} == {has}
            if has:
                counted = np.bincount([int(p[row]) for p, _ in found], minlength=N)
                assert {int(counted[j]) for j in mates} == {60 // len(mates)} and counted.sum() == 60
    highest, _ = prepared.drawn(torch.full((5,), 1 - 1e-16, dtype=torch.float64), valid, among, 0)
    assert int(highest[0]) != 0, "rounding up to 1 does not lead back to the row itself"


@pytest.mark.parametrize("swap", ["same_group", "all"])
def test_partners_are_other_rows_with_the_modality(swap: str) -> None:
    rows, view = batch(), View("two", "video", "audio", 0.3, "two", swap)
    seen = set()
    for step in range(12):
        found = prepared.with_partners(rows, [view], 127, step)
        assert found.features["audio"] is rows.features["audio"]
        partner, has = found.features["partner in two"], found.present["partner in two"]
        for i in range(N):
            equal = [j for j in range(N) if torch.equal(partner[i], rows.features["audio"][j])]
            mates = [
                j
                for j in range(N)
                if j != i and rows.present["audio"][j] and (swap == "all" or rows.group[j] == rows.group[i] >= 0)
            ]
            assert bool(has[i]) == (bool(rows.present["audio"][i]) and bool(mates))
            assert not bool(has[i]) or (len(equal) == 1 and equal[0] in mates)
            seen.add((i, equal[0] if bool(has[i]) else -1))
    assert len(seen) > N, "another one at another step"


def test_partners_are_of_the_rows_own_corpus() -> None:
    corpus = torch.arange(N) // 6
    rows = batch(corpus=corpus)
    found = prepared.with_partners(rows, [View("two", "audio", "audio", 0.3, "two", "all")], 1, 0)
    for i in range(N):
        if bool(found.present["partner in two"][i]):
            [j] = [j for j in range(N) if torch.equal(found.features["partner in two"][i], rows.features["audio"][j])]
            assert corpus[i] == corpus[j]


def test_targets_have_mean_0_and_deviation_1_over_present_rows() -> None:
    rows = batch()
    rows.features["audio"][:, 1] = rows.features["audio"][0, 1]
    found = prepared.with_targets(rows, ["audio"])
    x = rows.features["audio"][rows.present["audio"]].numpy()
    expected = (x - x.mean(0)) / np.where(x.std(0) > 1e-9, x.std(0), 1)
    np.testing.assert_allclose(found.features["target audio"][rows.present["audio"]].numpy(), expected, atol=1e-12)
    assert (found.features["target audio"][~rows.present["audio"]] == 0).all()
    assert torch.equal(found.present["target audio"], rows.present["audio"])
