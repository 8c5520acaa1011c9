"""Gathers the rows of an extraction into feature shards, each with its index and its report, and ends it.

Counts add up, shard by shard and in the end: clips in = rows written + clips quarantined by name with the reason.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from conclugen.common.atomic import atomic_file, write_json
from ray_jobs.extraction.clip_features import ALL_REASONS
from ray_jobs.extraction.plan import OWNERSHIP, REPORTS, SEQUENCES, Extraction
from shards import quarantine
from shards.clips.reader import ClipReader
from shards.format.index import INDEX_SUFFIX
from shards.format.layout import BLOCK, RECORD, padded, tar_header
from shards.format.manifest import TAR_SUFFIX, Manifest, written_entries
from shards.format.schema import Sample
from shards.format.writer import write_shard
from shards.planning.view import FOLDER, View, check_view_name


@dataclass
class ShardReport:
    """The outcome of a shard's clips: clips_in = written + len(quarantined). missing: column -> written rows without
    it; rows: numbers of the written clips within the clip shard; sequence_bytes: of the archive of sequences, 0 for
    none; content: digest of what the shard holds."""

    shard: str
    digest: str
    clips_in: int
    written: int
    bytes: int
    quarantined: list[dict[str, str]]
    missing: dict[str, int]
    rows: list[int]
    sequence_bytes: int = 0
    content: str = ""


class ShardCollector:
    """Takes rows as they come, and writes each shard when its last clip has come."""

    def __init__(self, plan: Extraction) -> None:
        self._plan, self._schema = plan, plan.schema
        self._reader = ClipReader(plan.clips)
        self._waiting: dict[int, dict[int, dict[str, Any]]] = {}
        self.reports: dict[int, ShardReport] = {}
        for shard in range(len(plan.clips)):
            report = load_report(plan, shard)
            if report is not None:
                self.reports[shard] = report
        self.resumed = len(self.reports)

    @property
    def todo(self) -> list[int]:
        """Numbers of the shards that are not done."""
        return [shard for shard in range(len(self._plan.clips)) if shard not in self.reports]

    def add(self, table: pa.Table) -> int:
        """Take rows in; returns how many clips came."""
        for record in table.to_pylist():
            rows = self._waiting.setdefault(record["shard"], {})
            if record["row"] in rows:
                raise RuntimeError(f"clip {record['key']!r} came twice")
            rows[record["row"]] = record
            if len(rows) == int(self._plan.clips.counts[record["shard"]]):
                self._write(record["shard"], self._waiting.pop(record["shard"]))
        return table.num_rows

    def _write(self, shard: int, records: Mapping[int, Mapping[str, Any]]) -> None:
        entry = self._plan.clips.entry(shard)
        index = self._reader.table(shard)
        samples, written, quarantined = [], [], []
        missing: Counter[str] = Counter()
        for row in sorted(records):
            record = records[row]
            values = {name: _vector(record.get(f"out.{name}")) for name in self._plan.columns}
            reason, message = record["reason"], record["message"]
            if reason is None and all(value is None for value in values.values()):
                reason, message = "nothing_to_encode", "nothing of it is what the encoders take"
            if reason is not None:
                source = index["meta.source"][row].as_py() or ""
                quarantined.append(
                    {"shard": entry.name, "key": record["key"], "source": source, "reason": reason, "message": message}
                )
                continue
            missing.update(name for name, value in values.items() if value is None)
            written.append(row)
            samples.append(_sample(index, row, values, [label.name for label in self._plan.clips.labels]))
        out, size, sequence_bytes, content = self._plan.out, 0, 0, ""
        OWNERSHIP.check(out, self._plan.digest)
        if samples and self._plan.sequences:
            kept = [(sample.key, self._sequences(records[row])) for sample, row in zip(samples, written, strict=True)]
            sequence_bytes = write_sequences(out / SEQUENCES / f"{entry.name}{TAR_SUFFIX}", kept)
        if samples:
            made = write_shard(out, entry.name, self._schema, samples)
            size, content = made.bytes, made.digest.hex()
        report = ShardReport(
            entry.name,
            self._plan.digest,
            len(records),
            len(samples),
            size,
            quarantined,
            dict(missing),
            written,
            sequence_bytes,
            content,
        )
        write_json(report_path(out, entry.name), asdict(report), indent=1, sort_keys=False)
        self.reports[shard] = report

    def _sequences(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Column -> (T, step width) of each encoder that had something to encode."""
        found = {info.column: (record.get(f"sequence.{info.column}"), info.step_width) for info in self._plan.infos}
        return {
            column: np.frombuffer(data, np.float32).reshape(-1, width).astype(self._plan.dtype)
            for column, (data, width) in found.items()
            if data is not None
        }


def load_report(plan: Extraction, shard: int) -> ShardReport | None:
    """The report of a finished shard of this very extraction whose files are there; None where it must be made."""
    entry = plan.clips.entry(shard)
    try:
        report = ShardReport(**json.loads(report_path(plan.out, entry.name).read_bytes()))
        agrees = report.digest == plan.digest and report.clips_in == entry.count
        if not agrees or report.written + len(report.quarantined) != entry.count:
            return None
    except (OSError, ValueError, TypeError):
        return None
    if not report.written:
        return report
    sizes = {plan.out / f"{entry.name}{TAR_SUFFIX}": report.bytes}
    if plan.sequences:
        sizes[plan.out / SEQUENCES / f"{entry.name}{TAR_SUFFIX}"] = report.sequence_bytes
    there = all(path.is_file() and path.stat().st_size == size for path, size in sizes.items())
    return report if there and (plan.out / f"{entry.name}{INDEX_SUFFIX}").is_file() else None


@dataclass(frozen=True)
class ExtractionSummary:
    """clips = written + sum(quarantined); missing: column -> written rows without it; resumed: shards of an earlier
    start; seconds: of this one."""

    clips: int
    written: int
    shards: int
    bytes: int
    quarantined: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    views: dict[str, int] = field(default_factory=dict)
    resumed: int = 0
    seconds: float = 0.0

    @property
    def exit_status(self) -> int:
        return quarantine.exit_status(self.quarantined)

    def lines(self, out: Path) -> list[str]:
        """For people."""
        refused = sum(self.quarantined.values())
        lines = [f"{self.clips} clips = {self.written} with features + {refused} quarantined"]
        lines += quarantine.lines(out, self.quarantined, ALL_REASONS)
        lines += [f"  {count:>8} rows without {column}" for column, count in sorted(self.missing.items())]
        lines += [f"  {count:>8} rows in view {name}" for name, count in sorted(self.views.items())]
        size = f"{self.bytes / 2**20:.1f} MiB in {self.shards} shard(s)"
        return [*lines, f"{out}: {size}" + (f", {self.resumed} from an earlier start" if self.resumed else "")]


def finish(plan: Extraction, collector: ShardCollector, began: float) -> ExtractionSummary:
    """Write `quarantine.jsonl`, `manifest.parquet` (only if there are rows), views and, last, `summary.json`.

    began: `time.monotonic()` at the start. Raises RuntimeError where the counts do not add up: a clip was lost.
    """
    if collector.todo:
        raise RuntimeError(f"{len(collector.todo)} shard(s) were not finished")
    reports = [collector.reports[shard] for shard in range(len(plan.clips))]
    entries = [item for report in reports for item in report.quarantined]
    written = sum(report.written for report in reports)
    if written + len(entries) != plan.clips.rows:
        raise RuntimeError(f"{plan.clips.rows} clips came in, but {written} were written, {len(entries)} quarantined")
    quarantined = quarantine.write_list(plan.out, entries)
    names = [report.shard for report in reports if report.written]
    views: dict[str, int] = {}
    if names:
        OWNERSHIP.check(plan.out, plan.digest)
        written_as = {report.shard: report.content for report in reports}
        manifest = Manifest.assemble(plan.out, written_entries(Manifest, plan.out, names, written_as), plan.info)
        if manifest.rows != written:
            raise RuntimeError(f"{written} rows were written, but the shards hold {manifest.rows}")
        views = _carry_views(plan, manifest, reports)
    missing: Counter[str] = Counter()
    for report in reports:
        missing.update(report.missing)
    summary = ExtractionSummary(
        plan.clips.rows,
        written,
        len(names),
        sum(report.bytes for report in reports),
        quarantined,
        dict(missing),
        views,
        collector.resumed,
        round(time.monotonic() - began, 3),
    )
    quarantine.write_summary(plan.out, asdict(summary))
    return summary


def _carry_views(plan: Extraction, manifest: Manifest, reports: Sequence[ShardReport]) -> dict[str, int]:
    """The clips' official splits as views of the features, and the views that were made of the clip shards."""
    masks: dict[str, list[np.ndarray]] = {}
    made: dict[str, dict[str, Any]] = {}
    written = [(shard, np.array(report.rows)) for shard, report in enumerate(reports) if report.written]
    reader = ClipReader(plan.clips)
    splits = [np.array(reader.table(shard)["meta.split"].to_pylist(), object)[rows] for shard, rows in written]
    for split in sorted({value for part in splits for value in part if value}):
        name = _view_name(split)
        masks[name] = [part == split for part in splits]
        made[name] = {"by": "meta.split", "values": [split]}
    if plan.clips.is_local:
        for path in sorted((Path(plan.clips.folder) / FOLDER).glob("*.parquet")):
            view = View.open(plan.clips, path.stem)
            masks[view.name] = [view.mask(shard)[rows] for shard, rows in written]
            made[view.name] = dict(view.rule)
    counts = {}
    for name, parts in masks.items():
        view = View.where(manifest, np.concatenate(parts).astype(bool), name, made[name])
        if view.rows:
            view.save()
            counts[name] = view.rows
    return counts


def _view_name(split: str) -> str:
    """The split's own name where a view may have it, else one made of it."""
    try:
        check_view_name(split)
    except ValueError:
        return "split-" + re.sub(r"[^A-Za-z0-9_.+-]", "_", split)[:90]
    return split


def _sample(index: pa.Table, row: int, values: Mapping[str, np.ndarray | None], labels: Sequence[str]) -> Sample:
    return Sample(
        index["key"][row].as_py(),
        values,
        {name: index[f"label.{name}"][row].as_py() for name in labels},
        index["group"][row].as_py(),
        index["text"][row].as_py(),
        meta={n.removeprefix("meta."): index[n][row].as_py() for n in index.column_names if n.startswith("meta.")},
    )


def _vector(data: bytes | None) -> np.ndarray | None:
    return None if data is None else np.frombuffer(data, np.float32)


def report_path(out: Path, shard: str) -> Path:
    return out / REPORTS / f"{shard}.json"


def write_sequences(path: Path, clips: Iterable[tuple[str, Mapping[str, np.ndarray]]]) -> int:
    """Write what features are pooled from, (key, column -> array (T, width)) of each clip, as a plain tar of
    `<key>.<column>.npy` in the order of the feature shard of the same name; `webdataset` and `tar` read it. It appears
    whole or not at all. Returns its size in bytes."""
    with atomic_file(path) as file:
        size = 0
        for key, arrays in clips:
            for column, array in arrays.items():
                data = io.BytesIO()
                np.save(data, array, allow_pickle=False)
                content = data.getvalue()
                file.write(tar_header(f"{key}.{column}.npy", len(content)))
                file.write(content + bytes(padded(len(content)) - len(content)))
                size += BLOCK + padded(len(content))
        total = padded(size + 2 * BLOCK, RECORD)
        file.write(bytes(total - size))
    return total
