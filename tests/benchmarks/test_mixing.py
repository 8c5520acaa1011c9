"""The benchmark of mixing, run small: what it says of shares and of restarts, not how long things take."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks import mixing


def test_the_mixed_plan_keeps_its_shares_and_goes_on(tmp_path: Path) -> None:
    options = argparse.Namespace(
        rows=[60, 40, 30], weights=[3, 2, 5], batch=20, steps=8, repeats=1, ray=False, archive_mb=64.0
    )
    found = mixing.measure(options, tmp_path)
    assert found["mixed"]["goes_on"] == found["plain"]["goes_on"] == "the same rows"
    assert found["webdataset"]["goes_on"] == "other rows"
    for length in (1, 4):
        mixed, drawn = (found[name][f"worst_of_{length}"] for name in ("mixed", "webdataset"))
        assert isinstance(mixed, float) and isinstance(drawn, float) and mixed < 3.36 and mixed < drawn
    with pytest.raises(ValueError, match="--weights: found 3, expected one for each of the 2"):
        mixing.measure(argparse.Namespace(**{**vars(options), "rows": [60, 40]}), tmp_path / "other")


def test_the_worst_window_is_found() -> None:
    """Batches of 4 rows of two corpora of equal weight, the rows of the second from 10 on."""
    batches = [np.array(rows) for rows in ([1, 2, 11, 12], [1, 2, 3, 11], [1, 2, 3, 12], [1, 11, 12, 13])]
    assert mixing.worst(batches, np.array([10]), [1, 1], 1) == 1
    assert mixing.worst(batches, np.array([10]), [1, 1], 2) == 2
    assert mixing.worst(batches, np.array([10]), [1, 1], 4) == 1
