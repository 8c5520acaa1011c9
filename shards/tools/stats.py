"""`python -m shards stats`: what a data set holds, and the moments that standardisation is fitted on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc

from conclugen.common.atomic import write_text
from shards.format.manifest import Manifest
from shards.format.writer import shuffled_start
from shards.options import StatsJob, by_name
from shards.planning.view import View
from shards.reading.reader import Reader
from shards.tools import mixture_stats

_CHUNK = 64


def column_moments(
    reader: Reader, max_rows: int | None = None, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Modality -> (mean, std), each (D_m,) float64, over the reader's rows in which the modality is present.

    max_rows: at most about so many, in chunks of 64 consecutive rows drawn by `seed` (default: all). Population
    deviation (divided by n). Chunks are merged by the pairwise update of Chan, Golub and LeVeque (1983), in float64 and
    in the order of the shards, so the result depends on the arguments only. Raises ValueError for a modality that no
    row has.
    """
    moments = running_moments(reader, max_rows, seed)
    for modality, accumulator in moments.items():
        if not accumulator.count:
            raise ValueError(
                f"modality {modality!r} is missing in every row that was read; leave it out, or give rows that have it"
            )
    return {modality: (accumulator.mean, accumulator.std) for modality, accumulator in moments.items()}


def running_moments(reader: Reader, max_rows: int | None = None, seed: int = 0) -> dict[str, Moments]:
    """As `column_moments`, with the rows that each modality was found in, also where these are none."""
    moments = {modality: Moments(width) for modality, width in reader.widths.items()}
    for shard, start, stop in _chunks(reader.counts, max_rows, seed):
        rows = reader.read(shard, start, stop)
        for modality, accumulator in moments.items():
            accumulator.read += len(rows)
            accumulator.add(rows.features[modality][rows.present[modality]])
    return moments


def absent_modalities(reader: Reader) -> tuple[str, ...]:
    """The modalities that no row of the reader's selection has. Indexes are read until each modality was seen."""
    lacking = dict(reader.modalities)
    for shard in np.flatnonzero(reader.counts).tolist():
        table = reader.metadata(shard)
        rows = np.arange(len(table)) if reader.view is None else reader.view.indices(shard)
        for modality, columns in list(lacking.items()):
            if np.logical_and.reduce([table[f"present.{name}"].to_numpy()[rows] for name in columns]).any():
                del lacking[modality]
        if not lacking:
            break
    return tuple(lacking)


def check_present(reader: Reader) -> None:
    """Raise ValueError where there are such modalities, naming all of them."""
    if lacking := absent_modalities(reader):
        names = ", ".join(map(repr, lacking))
        what, them = (f"modality {names} is", "it") if len(lacking) == 1 else (f"modalities {names} are", "them")
        raise ValueError(f"{what} missing in all {len(reader)} rows; leave {them} out, or give rows that have {them}")


class Moments:
    """Running mean and sum of squared deviations of (n, width) batches; `count` rows of the `read` ones have them."""

    def __init__(self, width: int) -> None:
        self.count = self.read = 0
        self.mean = np.zeros(width)
        self._squares = np.zeros(width)

    def add(self, values: np.ndarray) -> None:
        count = len(values)
        if not count:
            return
        wide = values.astype(np.float64)
        mean = wide.mean(axis=0)
        total = self.count + count
        delta = mean - self.mean
        self._squares += ((wide - mean) ** 2).sum(axis=0) + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    @property
    def share(self) -> float:
        """Of the rows read, those that have the modality."""
        return self.count / max(self.read, 1)

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(self._squares / max(self.count, 1))


def _chunks(counts: np.ndarray, max_rows: int | None, seed: int) -> Iterator[tuple[int, int, int]]:
    """(shard, start, stop) of at most 64 rows each, ascending; a seeded choice where they hold too many rows.

    counts: (S,) rows of each shard. Memory grows with S and `max_rows`, not with the number of chunks.
    """
    if max_rows is None or int(counts.sum()) <= max_rows:
        for shard in np.flatnonzero(counts).tolist():
            count = int(counts[shard])
            yield from ((shard, start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))
        return
    sizes = -(-counts // _CHUNK)
    before = np.cumsum(sizes) - sizes  # (S,) chunks of the shards before each

    def located(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shards = np.searchsorted(before, numbers, side="right") - 1
        starts = (numbers - before[shards]) * _CHUNK
        return shards, starts, np.minimum(starts + _CHUNK, counts[shards])

    # A chunk has one row at least, so that many suffice: from the start of the order, as long as their rows fit.
    order = shuffled_start(int(sizes.sum()), seed, max(max_rows, 0) + 1)
    _, starts, stops = located(order)
    fitting = int(np.searchsorted(np.cumsum(stops - starts), max_rows, side="right"))
    chosen = located(np.sort(order[: max(fitting, 1)]))
    yield from zip(*(part.tolist() for part in chosen), strict=True)


def describe(
    manifest: Manifest, view: View | None = None, max_rows: int | None = 100_000, seed: int = 0
) -> dict[str, Any]:
    """JSON-able summary: rows, shards, bytes, digest, columns with presence and moments, labels, groups."""
    view = view or View.everything(manifest)
    schema = manifest.schema
    present = np.zeros(len(schema.columns), np.int64)
    labels: dict[str, Any] = {label.name: Counter() for label in schema.labels if label.kind == "class"}
    numbers: dict[str, list[np.ndarray]] = {label.name: [] for label in schema.labels if label.kind != "class"}
    groups: Counter[str | None] = Counter()
    metadata = Reader(manifest)
    for shard in np.flatnonzero(view.counts).tolist():
        table = metadata.metadata(shard).take(view.indices(shard))
        present += [int(pc.sum(table[f"present.{name}"]).as_py() or 0) for name in schema.column_names]
        for label in schema.labels:
            column = table[f"label.{label.name}"]
            if label.kind == "class":
                labels[label.name].update(column.to_pylist())
            else:
                flat = (pc.list_flatten(column) if label.shape else column).to_numpy()
                numbers[label.name].append(flat.reshape(len(table), -1))
        groups.update(table["group"].to_pylist())
    # Each column by itself, whatever modalities it belongs to; a corrupt sample does not stop a description.
    own = {name: (name,) for name, count in zip(schema.column_names, present, strict=True) if count}
    reader = Reader(manifest, view, own or None, (), max_corrupt_share=1.0)
    moments = column_moments(reader, max_rows, seed) if view.rows and present.any() else {}
    return {
        "folder": manifest.folder,
        "digest": manifest.digest,
        "view": view.name,
        "rows": view.rows,
        "shards": len(manifest),
        "bytes": int(manifest.shards["bytes"].to_numpy().sum()),
        "columns": {
            column.name: {
                "width": column.width,
                "dtype": column.dtype,
                "present": int(count),
                **_summary_of(moments.get(column.name)),
            }
            for column, count in zip(schema.columns, present, strict=True)
        },
        "modalities": {name: list(members) for name, members in schema.modalities.items()},
        "labels": {
            label.name: _classes(label.classes, labels[label.name])
            if label.kind == "class"
            else _numbers(np.concatenate(numbers[label.name]) if numbers[label.name] else np.empty((0, label.width)))
            for label in schema.labels
        },
        "groups": _groups(groups) if schema.grouped else None,
        "damaged": len(reader.corrupt),
    }


def _summary_of(moments: tuple[np.ndarray, np.ndarray] | None) -> dict[str, float]:
    if moments is None:
        return {}
    mean, std = moments
    return {
        "mean_min": float(mean.min()),
        "mean_max": float(mean.max()),
        "std_min": float(std.min()),
        "std_max": float(std.max()),
        "constant": int((std == 0).sum()),
    }


def _classes(names: tuple[str, ...], counts: Counter[int]) -> dict[str, Any]:
    return {"classes": {name: counts.get(i, 0) for i, name in enumerate(names)}, "missing": counts.get(-1, 0)}


def _numbers(values: np.ndarray) -> dict[str, Any]:
    known = values[~np.isnan(values).any(axis=1)]
    summary: dict[str, Any] = {"present": len(known), "missing": len(values) - len(known)}
    if len(known):
        summary |= {name: getattr(known, name)(axis=0).tolist() for name in ("mean", "std", "min", "max")}
    return summary


def _groups(counts: Counter[str | None]) -> dict[str, Any]:
    sizes = [count for name, count in counts.items() if name is not None]
    return {
        "count": len(sizes),
        "smallest": min(sizes, default=0),
        "largest": max(sizes, default=0),
        "missing": counts.get(None, 0),
    }


def run(job: StatsJob) -> int:
    """Print the summary; returns the exit status."""
    folders = by_name(job.data)
    mixed = len(folders) > 1
    if mixed:
        summary = mixture_stats.describe(folders, job.view, job.weight, job.global_batch, job.speaker, job.modalities)
    else:
        (folder,) = folders.values()
        manifest = Manifest.open(folder)
        view = None if job.view is None else View.open(manifest, job.view)
        summary = describe(manifest, view, job.max_rows, job.seed)
    text = json.dumps(summary, indent=2)
    if job.json == "-":
        print(text)
        return 0
    if job.json:
        write_text(job.json, text + "\n")
    print("\n".join(mixture_stats.lines(summary) if mixed else _lines(summary)))
    return 0


def _lines(summary: dict[str, Any]) -> list[str]:
    rows = summary["rows"]
    lines = [
        f"{summary['folder']}  digest {summary['digest']}  view {summary['view']}",
        f"{rows} rows in {summary['shards']} shards, {summary['bytes'] / 1e6:.1f} MB",
        "",
        f"{'column':<20} {'width':>6} {'dtype':<8} {'present':>8}  {'mean':>22}  {'std':>22}",
    ]
    for name, column in summary["columns"].items():
        line = f"{name:<20} {column['width']:>6} {column['dtype']:<8} {column['present'] / max(rows, 1):>8.1%}"
        if "mean_min" in column:
            line += "".join(f"  {column[f'{m}_min']:>10.3g} ..{column[f'{m}_max']:>9.3g}" for m in ("mean", "std"))
            line += f"  {column['constant']} constant" if column["constant"] else ""
        lines.append(line)
    lines.append("")
    lines += [f"modality {name} = {' + '.join(members)}" for name, members in summary["modalities"].items()]
    for name, label in summary["labels"].items():
        if "classes" in label:
            text = ", ".join(f"{c} {n}" for c, n in label["classes"].items())
        else:
            text = ", ".join(f"{k} {v}" for k, v in label.items() if k != "missing")
        lines.append(f"label {name}: {text} (missing {label['missing']})")
    if summary["groups"]:
        groups = summary["groups"]
        lines.append(f"groups: {groups['count']} of {groups['smallest']} to {groups['largest']} rows "
                     f"(no group: {groups['missing']})")  # fmt: skip
    if summary["damaged"]:
        lines.append(f"{summary['damaged']} corrupt samples were left out: run `conclugen verify`")
    return lines
