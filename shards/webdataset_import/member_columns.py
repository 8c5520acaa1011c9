"""Columns of imported shards: each member where the index found it, its npy header parsed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xxhash

from shards.errors import CHECKSUM_DIFFERS, PRESENCE_DIFFERS, ShardError
from shards.format.index import ShardIndex, read_table
from shards.format.index_store import read_index_bytes
from shards.format.manifest import Manifest, ShardEntry
from shards.format.storage import Storage, consecutive
from shards.webdataset_import.member import MemberError, parse_npy


class MemberColumns:
    """Reads rows of shards whose members lie anywhere, one sample after another."""

    def __init__(self, manifest: Manifest, modalities: Mapping[str, Sequence[str]]) -> None:
        self._manifest, self._modalities = manifest, modalities

    def read(
        self,
        storage: Storage,
        entry: ShardEntry,
        index: ShardIndex,
        rows: np.ndarray | slice,
        features: Mapping[str, np.ndarray],
        wrong: np.ndarray,
    ) -> None:
        """The rows' columns into `features` (n, D_m), and into `wrong` (n,) what is damaged about each.

        Raises ShardError where a member has another width or dtype than the manifest says.
        """
        assert index.members is not None
        numbers = range(rows.start, rows.stop) if isinstance(rows, slice) else rows.tolist()
        for i, row in enumerate(numbers):
            places = [(int(offset), int(size)) for offset, size in index.members[row] if offset >= 0]
            buffer = memoryview(bytearray(sum(size for _, size in places)))
            storage.read_into(entry, consecutive(places, buffer))
            if xxhash.xxh3_64_intdigest(buffer) != int(index.checksums[row]):
                wrong[i] = CHECKSUM_DIFFERS
                continue
            arrays = self._parse(entry, index, row, buffer)
            if any(
                array is not None and np.isfinite(array).all() != there
                for array, there in zip(arrays.values(), index.present[row], strict=True)
            ):
                wrong[i] = PRESENCE_DIFFERS
            stored = zip(arrays.items(), index.present[row].tolist(), strict=True)
            there = {name: array for (name, array), present in stored if present and array is not None}
            for modality, members in self._modalities.items():
                if all(name in there for name in members):
                    np.concatenate([there[name] for name in members], out=features[modality][i], casting="same_kind")

    def _parse(
        self, entry: ShardEntry, index: ShardIndex, row: int, buffer: memoryview
    ) -> dict[str, np.ndarray | None]:
        """Each column's array, None where the sample has no such member."""
        assert index.members is not None
        arrays: dict[str, np.ndarray | None] = {}
        at = 0
        for number, column in enumerate(self._manifest.columns):
            size = int(index.members[row, number, 1])
            arrays[column.name] = None
            if size < 0:
                continue
            try:
                arrays[column.name] = parse_npy(buffer[at : at + size], column)
            except MemberError as error:
                keys = read_table(entry.name, read_index_bytes(self._manifest, entry), ["key"])["key"]
                raise ShardError(
                    entry.name,
                    f"column {column.name!r}: {error}",
                    sample=keys[row].as_py(),
                    expected=f"{column.dtype} ({column.width},)",
                    remedy="Run `conclugen index` on the folder again",
                ) from None
            at += size
        return arrays
