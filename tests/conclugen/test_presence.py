"""Presence and roles of all ranks' rows travel as bytes in one collective."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from conclugen import distributed
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


@pytest.mark.parametrize("with_group", [False, True])
def test_of_a_complete_batch_only_numbers_travel(with_group: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two ranks, whose batch of 7 rows is padded to 8; what it has of the other one's rows is put there."""
    names = tuple(f"m{n}" for n in range(9))
    row = torch.tensor([4, 5, 6, -1])
    batch = Batch(
        features={name: torch.zeros(4, 2) for name in names},
        present=dict.fromkeys(names, row >= 0),
        row=row,
        group=torch.tensor([2**40, 7, 7, -1]),
        complete=7,
    )
    travelled: list[torch.Tensor] = []

    def gather_behind(x: torch.Tensor) -> Callable[[], torch.Tensor]:
        travelled.append(x)
        return lambda: torch.cat([x, x])

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "gather_behind", gather_behind)
    told = Presence.asked(batch, names, with_group)()
    unknown = Presence.asked(replace(batch, complete=None), names, with_group)()
    assert torch.equal(told.local, unknown.local) and told.offset == unknown.offset == 4
    assert told.all.tolist() == [[True] * 7 + [False]] * 9
    if with_group:
        assert torch.equal(told.all_group, unknown.all_group)
    assert [x.shape[1] for x in travelled] == ([8, 10] if with_group else [2])


def test_a_part_of_a_complete_batch_and_one_that_is_padded_say_nothing_of_it() -> None:
    batch = Batch({"a": torch.zeros(3, 2)}, {"a": torch.ones(3, dtype=torch.bool)}, torch.arange(3), complete=3)
    assert batch.padded(3).complete == Batch.of(batch).complete == 3
    assert batch.part(slice(0, 2)).complete is batch.padded(4).complete is None


def test_bits_are_packed_lowest_first() -> None:
    flags = torch.tensor([[True, False, True, False, False, False, False, False, True]])
    assert pack_bits(flags).tolist() == [[5, 1]]
    assert torch.equal(unpack_bits(torch.tensor([[5, 1]], dtype=torch.uint8), 9), flags)
