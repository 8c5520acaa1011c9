"""Rows of several corpora as those of one data set: what a `MixedPlan` names, read by the corpora's own readers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from shards.errors import CorruptionError, CorruptionLog, CorruptSample, ShardError
from shards.format.index import group_id
from shards.reading.reader import Reader, Reading
from shards.reading.rows import NO_GROUP, PADDING_ROW, Memory, Rows


class MixedReader:
    """The part of a `Reader` that streams need, over corpora in the order of their names.

    readers: corpus -> its reader, each with the modalities that it has; labels are not read. speakers: corpus -> a name
    that corpora which share speakers have in common; by default each corpus has speakers of its own, so that a name
    that two of them use is two speakers. max_corrupt_share, quarantine: as of `Reader`, of all corpora together.

    The modalities are those that any corpus has; one that a corpus lacks is missing in its rows. Shards and rows are
    numbered through all corpora; `Rows.group` of a row depends on its group's name and its corpus. Corrupt
    samples and errors name shards `CORPUS/SHARD`.

    Raises ValueError, in one line with corpus, found, expected and remedy, where a modality has not the same width in
    all corpora that have it.
    """

    def __init__(
        self,
        readers: Mapping[str, Reader],
        speakers: Mapping[str, str] | None = None,
        max_corrupt_share: float = 0.001,
        quarantine: Callable[[CorruptSample], None] | None = None,
    ) -> None:
        self._options = (dict(readers), dict(speakers or {}), max_corrupt_share, quarantine)
        self.names = tuple(sorted(readers))
        self.readers = tuple(readers[name] for name in self.names)
        self._keys = [np.int64(group_id(f"corpus {(speakers or {}).get(name, name)}")) for name in self.names]
        modalities = list(dict.fromkeys(m for reader in self.readers for m in reader.modalities))
        self.widths, self.dtypes = {}, {}
        for modality in modalities:
            having = [(n, r) for n, r in zip(self.names, self.readers, strict=True) if modality in r.modalities]
            self.widths[modality] = _common_width(modality, having)
            self.dtypes[modality] = np.result_type(*(reader.dtypes[modality] for _, reader in having))
        self.modalities = {m: tuple(self._columns(m)) for m in modalities}
        self.counts = np.concatenate([reader.counts for reader in self.readers])
        self.first_shard = np.cumsum([0, *(len(reader.counts) for reader in self.readers)])
        self.first_row = np.cumsum([0, *(reader.manifest.rows for reader in self.readers)], dtype=np.int64)
        self.labels: tuple[str, ...] = ()
        self.pitch = self._share_pitch()
        self.corrupt = CorruptionLog(int(self.counts.sum()), max_corrupt_share, quarantine)
        self._log_lock = threading.Lock()
        for i, reader in enumerate(self.readers):
            reader.corrupt = _PassedOn(self, i)

    def _columns(self, modality: str) -> Iterator[str]:
        for name, reader in zip(self.names, self.readers, strict=True):
            yield from (f"{name}/{column}" for column in reader.modalities.get(modality, ()))

    def __reduce__(self) -> tuple[Any, ...]:
        readers, speakers, share, quarantine = self._options
        return (MixedReader, (readers, speakers, share, quarantine))

    def __len__(self) -> int:
        return self.corrupt.total_rows

    def for_tasks(self) -> MixedReader:
        """A reader for tasks that run side by side, with no limit on corrupt samples."""
        readers = {name: reader.for_tasks() for name, reader in zip(self.names, self.readers, strict=True)}
        return MixedReader(readers, self._options[1], 1.0)

    @property
    def is_local(self) -> bool:
        return all(reader.is_local for reader in self.readers)

    @property
    def grouped(self) -> bool:
        """Whether rows of any corpus have groups."""
        return any(reader.grouped for reader in self.readers)

    def _share_pitch(self) -> int:
        """As `Reader.pitch`: bytes of a row whose features are views on the whole sample, where samples of all corpora
        are laid out alike; 0 where features are copied."""
        first, *others = self.readers
        alike = all(
            (other.offsets, other.widths, other.dtypes) == (first.offsets, first.widths, first.dtypes)
            for other in others
        )
        if not alike or not all(reader.pitch for reader in self.readers):
            return 0
        pitch = max(reader.pitch for reader in self.readers)
        for reader in self.readers:
            reader.pitch = pitch  # shards differ in stride, and so do corpora
        return pitch

    @property
    def offsets(self) -> dict[str, int]:
        """Byte of a sample at which each modality begins, where features are views."""
        return self.readers[0].offsets if self.pitch else {}

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's features."""
        return sum(width * self.dtypes[name].itemsize for name, width in self.widths.items())

    def corpus_of(self, row: np.ndarray) -> np.ndarray:
        """(B,) int64: number in `names` of the corpus of each global row number, -1 for padding."""
        found = np.searchsorted(self.first_row, row, side="right") - 1
        return np.where(row == PADDING_ROW, -1, found)

    def shard_of(self, row: int) -> str:
        """`CORPUS/SHARD` of a global row number."""
        corpus = int(np.searchsorted(self.first_row, row, side="right")) - 1
        return f"{self.names[corpus]}/{self.readers[corpus].shard_of(row - int(self.first_row[corpus]))}"

    def allocate(self, size: int, views: bool = False, memory: Memory | None = None) -> Rows:
        """Memory for `size` rows, all of them padding. views, memory: as of `Reader.allocate`."""
        pitch = self.pitch if views else 0
        rows = Rows.uninitialised(size, self.widths, self.dtypes, {}, self.grouped, pitch, self.offsets, memory)
        if rows.raw is not None:
            rows.raw[...] = 0
        rows.clear()
        return rows

    def read(self, shard: int, start: int, stop: int, out: Rows | None = None) -> Rows:
        """As `Reader.read`."""
        return self.read_ranges([(shard, start, stop)], out=out)

    def read_ranges(
        self, ranges: Iterable[tuple[int, int, int]], size: int | None = None, out: Rows | None = None
    ) -> Rows:
        """As `Reader.read_ranges`: ranges one after another as one batch, each from its corpus."""
        some = [tuple(piece) for piece in ranges]
        total = sum(stop - start for _, start, stop in some)
        size = len(out) if out is not None else total if size is None else size
        if size < total:
            raise ValueError(f"size is {size}, but the ranges hold {total} rows")
        if out is None:
            out = self.allocate(size)
        readings: list[tuple[int, Reading, Rows]] = []
        parts: list[tuple[int, int, int, int]] = []  # reading, part of it, -, place in the batch
        at = 0
        for corpus, run in groupby(some, key=lambda piece: self._corpus_of_shard(piece[0])):
            first = int(self.first_shard[corpus])
            own = [(shard - first, start, stop) for shard, start, stop in run]
            end = at + sum(stop - start for _, start, stop in own)
            reading, rows = self._begin(corpus, own, out.part(at, end))
            parts += [(len(readings), i, 0, at + part[3]) for i, part in enumerate(reading.parts)]
            readings.append((corpus, reading, rows))
            at = end

        def fetch(some_parts: Sequence[tuple[int, int, int, int]]) -> None:
            for number, i, _, _ in some_parts:
                corpus, reading, _ = readings[number]
                with self._naming(corpus):
                    reading.fetch([reading.parts[i]])

        self.readers[0].side_by_side(fetch, parts, total)
        for corpus, reading, rows in readings:
            with self._naming(corpus):
                reading.finish()
            self._complete(corpus, rows)
        if at < size:
            out.part(at, size).clear()
        with self._log_lock:
            self.corrupt.rows_read += total
        return out

    def still_corrupt(self, samples: Iterable[CorruptSample]) -> list[CorruptSample]:
        """As `Reader.still_corrupt`."""
        by_corpus: dict[int, list[CorruptSample]] = {}
        for sample in samples:
            corpus = int(np.searchsorted(self.first_row, sample.row, side="right")) - 1
            if not 0 <= corpus < len(self.names):
                continue
            by_corpus.setdefault(corpus, []).append(replace(sample, row=sample.row - int(self.first_row[corpus])))
        return [
            self._renamed(corpus, sample)
            for corpus, own in by_corpus.items()
            for sample in self.readers[corpus].still_corrupt(own)
        ]

    # ---- parts of a read --------------------------------------------------------------------------------------------

    def _corpus_of_shard(self, shard: int) -> int:
        if not 0 <= shard < len(self.counts):
            raise IndexError(f"shard number {shard}, expected 0..{len(self.counts) - 1}")
        return int(np.searchsorted(self.first_shard, shard, side="right")) - 1

    def _begin(self, corpus: int, ranges: list[tuple[int, int, int]], out: Rows) -> tuple[Reading, Rows]:
        """A read of rows of one corpus, whose reader knows its own modalities, rows and groups only."""
        reader = self.readers[corpus]
        there = {m: out.features[m] for m in reader.modalities}
        seen = {m: out.present[m] for m in reader.modalities}
        group = out.group if reader.grouped else None
        return reader.begin(ranges, Rows(there, seen, out.row, {}, group, raw=out.raw)), out

    @contextmanager
    def _naming(self, corpus: int) -> Iterator[None]:
        """Errors of the block name the shard by its corpus."""
        try:
            yield
        except CorruptionError:
            raise  # of the whole
        except ShardError as error:
            raise _with_corpus(self.names[corpus], error) from error

    def _complete(self, corpus: int, out: Rows) -> None:
        """What a corpus's reader does not know of its rows: other modalities, numbers through all corpora."""
        reader = self.readers[corpus]
        for modality in self.modalities:
            if modality not in reader.modalities:
                out.features[modality][...] = 0
                out.present[modality][...] = False
        out.row[...] += self.first_row[corpus]
        if out.group is not None and not reader.grouped:
            out.group[...] = NO_GROUP
        elif out.group is not None:
            # Another number for each corpus, which keeps apart whom its own groups keep apart.
            out.group[...] = np.where(out.group == NO_GROUP, NO_GROUP, out.group ^ self._keys[corpus])

    def _renamed(self, corpus: int, sample: CorruptSample) -> CorruptSample:
        shard = f"{self.names[corpus]}/{sample.shard}"
        return replace(sample, shard=shard, row=sample.row + int(self.first_row[corpus]))

    def pass_on(self, corpus: int, sample: CorruptSample) -> None:
        """Log what a corpus's reader has met. Threads read several corpora at once."""
        with self._log_lock:
            self.corrupt.add(self._renamed(corpus, sample))


class _PassedOn(CorruptionLog):
    """The log of one corpus's reader, which hands everything to that of the whole, whatever log that is by then."""

    def __init__(self, whole: MixedReader, corpus: int) -> None:
        super().__init__(len(whole), 1.0)
        self._whole, self._corpus = whole, corpus

    def add(self, sample: CorruptSample) -> None:
        self._whole.pass_on(self._corpus, sample)


def _common_width(modality: str, readers: list[tuple[str, Reader]]) -> int:
    (first, reader), *others = readers
    width = reader.widths[modality]
    for name, other in others:
        if other.widths[modality] != width:
            found, columns = other.widths[modality], " + ".join(other.modalities[modality])
            raise ValueError(
                f"corpus {name!r}: modality {modality!r} ({columns}) has width {found}, expected {width} as in "
                f"{first!r} ({' + '.join(reader.modalities[modality])}); compose it of the same features in both "
                f"(modalities of the source), extract it again with one encoder, or leave it out of {name!r}"
            )
    return width


def _with_corpus(name: str, error: ShardError) -> ShardError:
    """The same error with its shard named by corpus."""
    return type(error)(
        f"{name}/{error.shard}",
        error.problem,
        sample=error.sample,
        expected=error.expected,
        found=error.found,
        remedy=error.remedy,
    )
