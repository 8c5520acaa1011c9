"""What tasks read of the global batch as a whole, made before the batch is cut into parts: partners and targets.

A partner is another row, drawn, whose features take the place of masked ones (`View.swap`); a target is a column that
is predicted and never read by a head (`Inputs.targets`). Both are in the batch as features under names of their own,
so that a part of it has its own rows of them.

Shape suffixes: B rows of this rank, N rows of all ranks, D feature width.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from conclugen import distributed, random
from conclugen.batch import Batch
from conclugen.latents import pack_bits, present_of_all
from conclugen.tasks import View

SAME_GROUP = "same_group"
# Deviation, relative to the mean (or to 1), below which a target counts as constant and is centred only.
_CONSTANT = 1e-6


def partner_of(view: View) -> str:
    """Under which the batch holds the features of the partners, present where the row has one."""
    return f"partner in {view.name}"


def target_of(name: str) -> str:
    """Under which the batch holds a target, of mean 0 and deviation 1 over the global batch."""
    return f"target {name}"


def with_partners(batch: Batch, views: Iterable[View], seed: int, step: int) -> Batch:
    """For each of `views` the features of a drawn other row that has the modality: of the same group, where `swap`
    says so, else of the same corpus. Gathers these features from all ranks."""
    views = list(views)
    grouped = any(view.swap == SAME_GROUP for view in views)
    sources = list(dict.fromkeys(view.source for view in views))
    present_BM = torch.stack([batch.present[source] for source in sources], dim=1)
    coming = {source: distributed.gather_behind(batch.features[source]) for source in sources}
    bits_NC = distributed.gather_behind(pack_bits(present_BM))() if batch.complete is None else None
    present_NM = present_of_all(batch, len(sources), bits_NC)
    group_N = None if batch.group is None or not grouped else distributed.gather_behind(batch.group)()
    corpus_N = None if batch.corpus is None else distributed.gather_behind(batch.corpus)()
    features, present = dict(batch.features), dict(batch.present)
    offset = distributed.rank() * batch.rows
    rows = {source: gathered() for source, gathered in coming.items()}
    for view in views:
        among_N = group_N if view.swap == SAME_GROUP else corpus_N
        valid_N = present_NM[:, sources.index(view.source)]
        if among_N is None:
            among_N = torch.zeros_like(valid_N, dtype=torch.int64)
        draw_B = random.uniform(seed, partner_of(view), step, batch.row, 1).squeeze(1)
        partner_B, has_B = drawn(draw_B, valid_N & (among_N >= 0), among_N, offset)
        name = partner_of(view)
        features[name] = torch.where(has_B.unsqueeze(1), rows[view.source][partner_B], 0)
        present[name] = has_B
    return replace(batch, features=features, present=present)


def drawn(draw_B: Tensor, valid_N: Tensor, among_N: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Position (B,) among all rows of another valid one with the same number in `among` (N,), each with the same
    chance, and whether there is one (B,). draw: (B,) in [0, 1); offset: position of this rank's first row."""
    own = slice(offset, offset + len(draw_B))
    key_N = torch.where(valid_N, among_N, torch.iinfo(torch.int64).max)  # what is not valid comes last
    sorted_N, order_N = key_N.sort(stable=True)
    place_N = torch.empty_like(order_N)
    place_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    key_B = key_N[own]
    begin_B, end_B = (torch.searchsorted(sorted_N, key_B, right=right) for right in (False, True))
    count_B = end_B - begin_B
    further_B = 1 + (draw_B * (count_B - 1)).long().minimum(count_B - 2).clamp(min=0)
    partner_B = order_N[begin_B + (place_N[own] - begin_B + further_B) % count_B]
    return partner_B, valid_N[own] & (count_B >= 2)


def with_targets(batch: Batch, names: Iterable[str]) -> Batch:
    """Each of these columns standardised by the moments of its present rows in the global batch."""
    features, present = dict(batch.features), dict(batch.present)
    for name in names:
        x_BD, here_B1 = batch.features[name], batch.present[name].unsqueeze(1)
        count = distributed.all_sum(here_B1.sum().to(x_BD.dtype)).clamp(min=1)
        mean_D = distributed.all_sum(torch.where(here_B1, x_BD, 0).sum(0)) / count
        centred_BD = torch.where(here_B1, x_BD - mean_D, 0)
        deviation_D = (distributed.all_sum(centred_BD.square().sum(0)) / count).sqrt()
        constant_D = deviation_D <= _CONSTANT * mean_D.abs().clamp(min=1)
        features[target_of(name)] = centred_BD / torch.where(constant_D, 1, deviation_D)
        present[target_of(name)] = batch.present[name]
    return replace(batch, features=features, present=present)
