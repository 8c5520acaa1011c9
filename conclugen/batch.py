"""The batch: the one object that data and learning share."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from conclugen.common.names import nearest


@dataclass(frozen=True)
class Batch:
    """B rows of frozen features.

    features: modality -> (B, D_m) floating; exactly 0 where the modality is not present, never NaN.
    present:  modality -> (B,) bool.
    row:      (B,) int64 global row number; -1 is padding, whose `present` is False everywhere.
    labels:   label -> (B,) int64 class (-1 missing), (B,) float (NaN missing) or (B, L) float.
    group:    (B,) int64 stable hash of the row's group (a speaker, a video), or None where the data has no groups.
    corpus:   (B,) int64 number of the row's corpus in `CorporaConfig.names` (-1: padding, or none of them), or None
              where the data is not a mixture.
    complete: rows of the global batch, where every rank knows that none of them lacks a modality: then presence is not
              asked of the other ranks. None: not known. Equal on all ranks, whose padding is behind all rows.
    """

    features: dict[str, Tensor]
    present: dict[str, Tensor]
    row: Tensor
    labels: dict[str, Tensor] = field(default_factory=dict)
    group: Tensor | None = None
    corpus: Tensor | None = None
    complete: int | None = None

    @classmethod
    def of(cls, rows: Any, device: str | torch.device = "cpu", dtype: torch.dtype | None = torch.float32) -> "Batch":
        """Batch of any object with these attributes, in numpy arrays or tensors; features get `dtype`, or keep theirs.

        `present` may lack modalities (taken as present everywhere), as may the object `labels`, `group`, `corpus` and
        `complete`.
        Features of rows that are not present may be anything; here they become 0.
        Raises ValueError where a shape does not fit the number of rows, or `present` names an unknown modality.
        """
        row = _tensor(rows.row, device).to(torch.int64)
        features = {m: _tensor(x, device) for m, x in rows.features.items()}
        if dtype is not None:
            features = {m: x.to(dtype) for m, x in features.items()}
        masks: Mapping[str, Any] = rows.present
        for m in masks:
            if m not in features:
                raise ValueError(
                    f"batch features: modality {m!r} is missing, found {', '.join(features)}, but `present` names it"
                    f"{nearest(m, list(features))}"
                )
        present = {m: _tensor(masks[m], device).to(torch.bool) if m in masks else row >= 0 for m in features}
        labels = {name: _tensor(x, device) for name, x in (getattr(rows, "labels", None) or {}).items()}
        group, corpus = (
            None if numbers is None else _tensor(numbers, device).to(torch.int64)
            for numbers in (getattr(rows, "group", None), getattr(rows, "corpus", None))
        )
        for kind, arrays in (("features", features), ("present", present), ("labels", labels)):
            for name, x in arrays.items():
                _check_rows(f"{kind}[{name!r}]", x, row)
        for name, numbers in (("group", group), ("corpus", corpus)):
            if numbers is not None:
                _check_rows(name, numbers, row)
        for name, x in features.items():
            if x.dim() != 2:
                raise ValueError(f"batch features[{name!r}]: found shape {tuple(x.shape)}, expected (rows, width)")
        # Where a row lacks a modality, or is padding, the values there are not features, NaN least of all.
        present = {m: x & (row >= 0) for m, x in present.items()}
        features = {m: x.masked_fill(~present[m].unsqueeze(1), 0) for m, x in features.items()}
        return cls(features, present, row, labels, group, corpus, getattr(rows, "complete", None))

    @property
    def rows(self) -> int:
        return self.row.shape[0]

    def part(self, rows: slice) -> "Batch":
        """Some of the rows, which are no rank's batch: `complete` is not told of them."""
        return Batch(
            features={m: x[rows] for m, x in self.features.items()},
            present={m: x[rows] for m, x in self.present.items()},
            row=self.row[rows],
            labels={name: x[rows] for name, x in self.labels.items()},
            group=None if self.group is None else self.group[rows],
            corpus=None if self.corpus is None else self.corpus[rows],
        )

    def padded(self, rows: int) -> "Batch":
        """This batch with padding rows behind it, `rows` rows in all."""
        missing = rows - self.rows
        if missing <= 0:
            return self
        return replace(
            self,
            features={m: functional.pad(x, (0, 0, 0, missing)) for m, x in self.features.items()},
            present={m: functional.pad(x, (0, missing), value=False) for m, x in self.present.items()},
            row=functional.pad(self.row, (0, missing), value=-1),
            labels={},
            group=None if self.group is None else functional.pad(self.group, (0, missing), value=-1),
            corpus=None if self.corpus is None else functional.pad(self.corpus, (0, missing), value=-1),
            complete=None,
        )


def _check_rows(name: str, x: Tensor, row: Tensor) -> None:
    if x.shape[:1] != row.shape:
        found = x.shape[0] if x.dim() else "no"
        raise ValueError(f"batch {name}: found {found} rows, expected {row.shape[0]}, as in `row`")


def _tensor(x: Any, device: str | torch.device) -> Tensor:
    return torch.as_tensor(x).to(device, non_blocking=True)
