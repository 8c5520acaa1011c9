"""All rows of a data set on one device: a batch is one index, and nothing is copied from the host at a step."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conclugen import distributed
from conclugen.batch import Batch


class DeviceRows:
    """Memory for `rows` rows on a device, filled by `write` and read by `batch`.

    widths, dtypes: modality -> features of a row, and their numpy type. grouped, mixed: whether rows have a group, a
    corpus.
    """

    def __init__(
        self,
        rows: int,
        widths: Mapping[str, int],
        dtypes: Mapping[str, np.dtype],
        device: str | torch.device,
        grouped: bool = False,
        mixed: bool = False,
    ) -> None:
        def numbers() -> Tensor:
            return torch.empty(rows, dtype=torch.int64, device=device)

        kinds = {m: torch.from_numpy(np.empty(0, dtype)).dtype for m, dtype in dtypes.items()}
        self._features = {m: torch.empty(rows, d, dtype=kinds[m], device=device) for m, d in widths.items()}
        self._present = {m: torch.empty(rows, dtype=torch.uint8, device=device) for m in widths}
        self._row = numbers()
        self._group = numbers() if grouped else None
        self._corpus = numbers() if mixed else None
        self.device = self._row.device

    def __len__(self) -> int:
        return len(self._row)

    @property
    def nbytes(self) -> int:
        """Of the device's memory."""
        return sum(x.nbytes for x in self._columns())

    @property
    def complete(self) -> bool:
        """Whether every row has every modality; the same on every rank. Waits for the device."""
        return all(bool(x.all()) for x in self._present.values())

    def write(self, start: int, rows: Any, corpus: np.ndarray | None = None) -> None:
        """Rows from `start` on, of all ranks at once: rank r has the r-th B of them, and all get those of all.

        rows: any object with a Batch's attributes, in numpy arrays on the host; corpus: (B,), of a mixture. Every rank
        calls it with as many rows; what would lie behind the last row is dropped.
        """
        stop = min(start + distributed.world_size() * len(rows.row), len(self))
        for column, values in zip(self._columns(), self._values(rows, corpus), strict=True):
            column[start:stop] = distributed.gather(torch.from_numpy(values).to(self.device))[: stop - start]

    def batch(self, position: np.ndarray, complete: int | None = None) -> Batch:
        """The rows at (B,) int64 positions; a position below 0 is a row of padding. complete: of the `Batch`."""
        at_B = torch.from_numpy(position).to(self.device, non_blocking=True)
        there_B = at_B >= 0
        index_B = at_B.clamp(min=0)

        def chosen(numbers: Tensor | None) -> Tensor | None:
            return None if numbers is None else torch.where(there_B, numbers.index_select(0, index_B), -1)

        row_B = chosen(self._row)
        assert row_B is not None
        return Batch(
            {m: x.index_select(0, index_B) for m, x in self._features.items()},
            {m: x.index_select(0, index_B).bool() & there_B for m, x in self._present.items()},
            row_B,
            group=chosen(self._group),
            corpus=chosen(self._corpus),
            complete=complete,
        )

    def _columns(self) -> list[Tensor]:
        numbers = (x for x in (self._row, self._group, self._corpus) if x is not None)
        return [*self._features.values(), *self._present.values(), *numbers]

    def _values(self, rows: Any, corpus: np.ndarray | None) -> list[np.ndarray]:
        """In the order of `_columns`, without gaps."""
        found = [rows.features[m].astype(_numpy(x.dtype), copy=False) for m, x in self._features.items()]
        found += [rows.present[m].view(np.uint8) for m in self._present]
        numbers = [rows.row]
        numbers += [] if self._group is None else [rows.group]
        numbers += [] if self._corpus is None else [corpus]
        return [np.ascontiguousarray(values) for values in (*found, *numbers)]


def _numpy(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype
