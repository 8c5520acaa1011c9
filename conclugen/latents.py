"""What the losses see: the rows of this rank, and which rows of the global batch have which modality.

Shape suffixes: M modalities, B rows of this rank, N = W B rows of all ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from conclugen import distributed
from conclugen.batch import Batch


@dataclass(frozen=True)
class Presence:
    """Which rows have which modality. Row i of this rank is row offset + i of the gathered rows; rows beyond the
    global batch are padding.

    local (M, B) bool; all (M, N) bool; row (B,) int64; all_group (N,) int64 or None; corpus (B,), all_corpus (N,) int64
    or None, where the rows are of several.
    """

    local: Tensor
    all: Tensor
    row: Tensor
    all_group: Tensor | None
    offset: int
    corpus: Tensor | None = None
    all_corpus: Tensor | None = None

    @classmethod
    def asked(
        cls, batch: Batch, modalities: tuple[str, ...], with_group: bool = False, together: bool = False
    ) -> Callable[[], "Presence"]:
        """Begin to gather presence (and groups, where a loss needs them) of all ranks in one collective, a bit for each
        modality; what is returned waits for it. together: where one of the modalities is missing, all of them count as
        missing.

        Presence of a batch that is known to be complete is not gathered. A manifest that lacks nothing is not enough
        for that: one rank may find a row corrupt as it reads it, which the others must know."""
        local_MB = torch.stack([batch.present[m] & (batch.row >= 0) for m in modalities])
        if together:
            local_MB = local_MB.all(0).repeat(len(modalities), 1)
        bytes_BC = [] if batch.complete is not None else [pack_bits(local_MB.T)]
        if with_group:
            group_B = torch.full_like(batch.row, -1) if batch.group is None else batch.group
            bytes_BC.append(group_B.contiguous().unsqueeze(1).view(torch.uint8))
        if batch.corpus is not None:
            bytes_BC.append(batch.corpus.contiguous().unsqueeze(1).view(torch.uint8))
        sizes = [x.shape[1] for x in bytes_BC]
        gathered = distributed.gather_behind(torch.cat(bytes_BC, dim=1)) if bytes_BC else None

        def presence() -> Presence:
            told_NC = [] if gathered is None else [*gathered().split(sizes, dim=1)]
            bits_NC = told_NC.pop(0) if batch.complete is None else None
            # Copied even where there is one row, whose bytes would not begin where a number may.
            numbers = [x.clone(memory_format=torch.contiguous_format).view(torch.int64).squeeze(1) for x in told_NC]
            return cls(
                local=local_MB,
                all=present_of_all(batch, len(modalities), bits_NC).T,
                row=batch.row,
                all_group=numbers[0] if with_group else None,
                offset=distributed.rank() * batch.rows,
                corpus=batch.corpus,
                all_corpus=None if batch.corpus is None else numbers[-1],
            )

        return presence

    def part(self, rows: slice) -> "Presence":
        """Of some of this rank's rows; `all` and `all_group` stay whole, so counts stay those of the global batch."""
        corpus = None if self.corpus is None else self.corpus[rows]
        offset = self.offset + (rows.start or 0)
        return replace(self, local=self.local[:, rows], row=self.row[rows], offset=offset, corpus=corpus)


def present_of_all(batch: Batch, modalities: int, bits_NC: Tensor | None) -> Tensor:
    """(N, M) bool, which rows of all ranks have each modality: what was gathered of `pack_bits`, (N, C) uint8, or
    None for a complete batch, of which it is known."""
    if bits_NC is not None:
        return unpack_bits(bits_NC, modalities)
    assert batch.complete is not None
    row_N = torch.arange(distributed.world_size() * batch.rows, device=batch.row.device)
    return (row_N < batch.complete).unsqueeze(1).expand(-1, modalities)


def pack_bits(flags_BM: Tensor) -> Tensor:
    """(B, M) bool to (B, ceil(M / 8)) uint8, the first flag in the lowest bit."""
    rows, count = flags_BM.shape
    padded = functional.pad(flags_BM, (0, -count % 8)).view(rows, -1, 8)
    return (padded * _bits(flags_BM.device)).sum(2, dtype=torch.uint8)


def unpack_bits(bytes_BC: Tensor, count: int) -> Tensor:
    """Inverse of `pack_bits`: (B, count) bool."""
    return (bytes_BC.unsqueeze(2) & _bits(bytes_BC.device)).bool().flatten(1)[:, :count]


@dataclass(frozen=True)
class Latents:
    """One forward pass, as a task sees it.

    modalities: the modalities learned, or the names of the task's own views. targets: modality -> (B, D_m), the
    unmasked inputs; representations: modality -> (B, R); projections: (M, B, P), not normalised, or None where no task
    reads them; presence; step and epoch, 0-based.
    """

    modalities: tuple[str, ...]
    targets: dict[str, Tensor]
    representations: dict[str, Tensor]
    projections: Tensor | None
    presence: Presence
    step: int
    epoch: int


def _bits(device: torch.device) -> Tensor:
    """1, 2, 4 to 128, made where they are used: a copy from the host would make it wait."""
    return 1 << torch.arange(8, dtype=torch.uint8, device=device)
