"""What the losses see: the rows of this rank, and who is present in the global batch.

Shape suffixes: M modalities, B rows of this rank, N = W B rows of all ranks.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from conclugen import distributed
from conclugen.batch import Batch


@dataclass(frozen=True)
class Presence:
    """Who is there. Row i of this rank is row offset + i of the gathered rows; rows beyond the global batch are
    padding.

    local (M, B) bool; all (M, N) bool; row (B,) int64; all_group (N,) int64 or None.
    """

    local: Tensor
    all: Tensor
    row: Tensor
    all_group: Tensor | None
    offset: int

    @classmethod
    def of(
        cls, batch: Batch, modalities: tuple[str, ...], with_group: bool = False, together: bool = False
    ) -> "Presence":
        """Gather presence (and groups, where a loss needs them) of all ranks in one collective. together: where one
        of the modalities is missing, all of them count as missing."""
        local_MB = torch.stack([batch.present[m] & (batch.row >= 0) for m in modalities])
        if together:
            local_MB = local_MB.all(0).repeat(len(modalities), 1)
        columns = [local_MB.T.long()]
        if with_group:
            group_B = torch.full_like(batch.row, -1) if batch.group is None else batch.group
            columns.append(group_B.unsqueeze(1))
        gathered = distributed.gather(torch.cat(columns, dim=1))
        count = len(modalities)
        return cls(
            local=local_MB,
            all=gathered[:, :count].T.bool(),
            row=batch.row,
            all_group=gathered[:, count].contiguous() if with_group else None,
            offset=distributed.rank() * batch.rows,
        )

    def part(self, rows: slice) -> "Presence":
        """Of some of this rank's rows; `all` and `all_group` stay whole, so counts stay those of the global batch."""
        return replace(self, local=self.local[:, rows], row=self.row[rows], offset=self.offset + (rows.start or 0))


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
