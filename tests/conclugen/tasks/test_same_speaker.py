"""The share of rows whose negatives were of the same speaker, against a count row by row."""

from collections import Counter

import pytest
import torch

from conclugen.latents import Latents, Presence
from conclugen.tasks.contrastive import FEWEST_MATES, SHARE, Contrastive, ContrastiveConfig

B = 60
NAMES = ("video", "audio", "text")


def latents() -> tuple[Latents, torch.Tensor, torch.Tensor]:
    """Speakers of 1 to 20 rows and some rows without one; a quarter of each modality is missing."""
    g = torch.Generator().manual_seed(3)
    group = torch.randint(0, 12, (B,), generator=g).square() // 12 - 1
    there = torch.rand(3, B, generator=g) > 0.25
    z = torch.randn(3, B, 6, generator=g, dtype=torch.float64)
    return Latents(NAMES, {}, {}, z, Presence(there, there, torch.arange(B), group, 0), 0, 0), group, there


def by_hand(group: list[int], there: list[list[bool]]) -> float:
    shares = []
    for a, b in ((0, 1), (1, 2), (2, 0)):
        rows = [i for i in range(B) if there[a][i] and there[b][i]]
        sizes = Counter(group[i] for i in rows)
        found = [i for i in rows if group[i] >= 0 and sizes[group[i]] - 1 >= FEWEST_MATES]
        shares.append(len(found) / len(rows))
    return sum(shares) / len(shares)


def test_the_share_is_a_count_of_rows() -> None:
    given, group, there = latents()
    task = Contrastive(ContrastiveConfig(temperature=0.3, negatives="same_group"))
    task(given)
    expected = by_hand(group.tolist(), there.tolist())
    assert 0.1 < expected < 0.9
    assert task.metrics()[SHARE].item() == pytest.approx(expected, abs=1e-7)
    everyone = Contrastive(ContrastiveConfig(temperature=0.3))
    everyone(given)
    assert SHARE not in everyone.metrics()
