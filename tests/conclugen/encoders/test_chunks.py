"""Frozen encoders compute in pieces, smaller ones where a GPU's memory does not hold them, and say whose weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conclugen.encoders import weights
from conclugen.encoders.encoder import FrozenEncoder


def computing(holds: int, sizes: list[int]) -> Callable[[Sequence[int]], torch.Tensor]:
    """On a GPU that holds so many items."""

    def compute(items: Sequence[int]) -> torch.Tensor:
        assert items, "nothing is computed of nothing"
        sizes.append(len(items))
        if len(items) > holds:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return torch.tensor([[float(item)] for item in items])

    return compute


def test_pieces_are_halved_until_they_fit_and_stay_so() -> None:
    encoder: Any = SimpleNamespace(chunk=8)
    sizes: list[int] = []
    found = FrozenEncoder.in_chunks(encoder, range(9), computing(3, sizes))
    np.testing.assert_array_equal(found, np.arange(9.0)[:, None])
    assert sizes == [8, 4, 2, 2, 2, 2, 1] and encoder.chunk == 2


def test_one_item_that_does_not_fit_ends_it() -> None:
    encoder: Any = SimpleNamespace(chunk=2)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        FrozenEncoder.in_chunks(encoder, range(3), computing(0, []))


def test_weights_are_known_by_the_digest_of_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(range(256)) * 9000)
    assert weights.file_digest(tmp_path / "w") == hashlib.sha256(bytes(range(256)) * 9000).hexdigest()
