"""The batch as the data plane hands it out: plain numpy arrays, one row per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from shards.format.index import NO_GROUP
from shards.planning.plan import Cursor

PADDING_ROW = NO_CORPUS = -1
_ALIGNMENT = 64  # a cache line; columns begin at multiples of it

# Given a number of bytes, (bytes,) uint8 of memory for them, with any content. Such memory may be of a kind that numpy
# does not know: pinned, from which a GPU takes rows without a copy.
Memory = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Rows:
    """B samples: the fields of `conclugen.Batch`, which documents them, as numpy arrays.

    A modality that is not present is exactly 0; a padding or quarantined row has nothing present. labels are int64 or
    float64; group is -1 for a row without one (`group_id`). cursor: of the plan's step that a stream read, else None.

    raw: (B, pitch) uint8, or None where features have memory of their own. Where it is given, it holds whole samples
    as they lie in a shard, and every feature is a view on it: (B, D_m) with contiguous rows that are `pitch` bytes
    apart. torch.from_numpy, matrix products and arithmetic take it as it is; `.view(-1)` needs a copy first.
    """

    features: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
    row: np.ndarray
    labels: dict[str, np.ndarray]
    group: np.ndarray | None
    corpus: np.ndarray | None = field(default=None, kw_only=True)
    complete: int | None = field(default=None, kw_only=True)
    cursor: Cursor | None = field(default=None, kw_only=True)
    raw: np.ndarray | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.row)

    def part(self, start: int, stop: int) -> Rows:
        """Rows [start, stop) as views on the same memory: what is written into the part is written here."""
        return replace(
            self,
            features={name: array[start:stop] for name, array in self.features.items()},
            present={name: array[start:stop] for name, array in self.present.items()},
            row=self.row[start:stop],
            labels={name: array[start:stop] for name, array in self.labels.items()},
            group=None if self.group is None else self.group[start:stop],
            corpus=None if self.corpus is None else self.corpus[start:stop],
            complete=None,  # said of a whole batch
            raw=None if self.raw is None else self.raw[start:stop],
        )

    def clear(self) -> None:
        """Turn every row into padding, in place."""
        for array in self.features.values():
            array[...] = 0
        for array in self.present.values():
            array[...] = False
        self.row[...] = PADDING_ROW
        for array in self.labels.values():
            array[...] = -1 if array.dtype.kind == "i" else np.nan
        if self.group is not None:
            self.group[...] = NO_GROUP
        if self.corpus is not None:
            self.corpus[...] = NO_CORPUS

    @classmethod
    def uninitialised(
        cls,
        size: int,
        widths: Mapping[str, int],
        dtypes: Mapping[str, np.dtype],
        label_shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        grouped: bool,
        pitch: int = 0,
        places: Mapping[str, int] | None = None,
        memory: Memory | None = None,
    ) -> Rows:
        """Memory for `size` rows, of any content; the caller fills or clears every row.

        With a pitch, features are views on samples of so many bytes, from byte `places[name]` of each on. memory: where
        all arrays lie; by default numpy's.
        """

        def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            if memory is None:
                return np.empty(shape, dtype)
            return memory(int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)

        flags, numbers = np.dtype(bool), np.dtype(np.int64)
        raw = None
        if pitch:
            assert places is not None
            whole = empty((size * pitch + _ALIGNMENT,), np.dtype(np.uint8))
            start = -whole.ctypes.data % _ALIGNMENT
            raw = whole[start : start + size * pitch].reshape(size, pitch)
            features = {
                name: raw[:, places[name] : places[name] + width * dtypes[name].itemsize].view(dtypes[name])
                for name, width in widths.items()
            }
        else:
            features = {name: empty((size, width), dtypes[name]) for name, width in widths.items()}
        return cls(
            features,
            {name: empty((size,), flags) for name in widths},
            empty((size,), numbers),
            {name: empty((size, *shape), dtype) for name, (shape, dtype) in label_shapes.items()},
            empty((size,), numbers) if grouped else None,
            raw=raw,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """The parts one after another, copied. All must have the same modalities and labels."""
        first = parts[0]
        return cls(
            {name: np.concatenate([part.features[name] for part in parts]) for name in first.features},
            {name: np.concatenate([part.present[name] for part in parts]) for name in first.present},
            np.concatenate([part.row for part in parts]),
            {name: np.concatenate([part.labels[name] for part in parts]) for name in first.labels},
            None if first.group is None else np.concatenate([part.group for part in parts if part.group is not None]),
            corpus=None if first.corpus is None else np.concatenate([p.corpus for p in parts if p.corpus is not None]),
        )
