"""Presence and roles of all ranks' rows travel as bytes in one collective."""

import pytest
import torch

from conclugen.batch import Batch
from conclugen.latents import Presence, pack_bits, unpack_bits


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("modalities", [1, 3, 8, 9])
@pytest.mark.parametrize("with_group", [False, True])
@pytest.mark.parametrize("with_corpus", [False, True])
def test_what_travelled_is_what_was_there(rows: int, modalities: int, with_group: bool, with_corpus: bool) -> None:
    random = torch.Generator().manual_seed(rows * 10 + modalities)
    names = tuple(f"m{n}" for n in range(modalities))
    present = torch.rand(modalities, rows, generator=random) > 0.5
    group, corpus = (torch.randint(-1, 2**40, (rows,), generator=random) for _ in range(2))
    batch = Batch(
        features={name: torch.zeros(rows, 2) for name in names},
        present=dict(zip(names, present, strict=True)),
        row=torch.arange(rows),
        group=group if with_group else None,
        corpus=corpus if with_corpus else None,
    )
    found = Presence.asked(batch, names, with_group)()
    assert torch.equal(found.all, present) and torch.equal(found.local, present)
    for told, wanted, there in ((found.all_group, group, with_group), (found.all_corpus, corpus, with_corpus)):
        assert torch.equal(told, wanted) if there and told is not None else told is None and not there


def test_bits_are_packed_lowest_first() -> None:
    flags = torch.tensor([[True, False, True, False, False, False, False, False, True]])
    assert pack_bits(flags).tolist() == [[5, 1]]
    assert torch.equal(unpack_bits(torch.tensor([[5, 1]], dtype=torch.uint8), 9), flags)
