"""`python -m shards pack`: feature arrays and labels to shards, checked completely before anything is written."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from conclugen.common.locks import check_room
from conclugen.common.screen import Progress, clock
from shards.format import publication
from shards.format.layout import least_bytes
from shards.format.manifest import Manifest
from shards.format.writer import ShardWriter, shuffled_order
from shards.options import PackJob
from shards.packing.inputs import PackInput, PackOptions, read_input
from shards.packing.labels import LabelSpec
from shards.packing.pooling import Pooling
from shards.planning.split import make_views

_SHOWN_NOTES = 20


def pack(
    options: PackOptions,
    progress: Callable[[int, int], None] = lambda done, count: None,
    tell: Callable[[PackInput], None] = lambda data: None,
) -> tuple[Manifest, list[str]]:
    """Write the data set; the manifest, and notes on keys that were renamed. `tell` sees the checked input first.

    Raises ValueError that lists all that is wrong with the input, before anything is written: arrays that are missing
    or not numeric, differing numbers of rows, rows that are partly NaN or infinite, a column or modality that is
    missing everywhere, labels that don't fit, classes without samples, values of `view_by` that can't name views.
    """
    of = {"pack": work_of(options)}
    if publication.finish_same(options.out, of):
        print("the same pack was stopped while it published its shards, which is done now", flush=True)
        return Manifest.open(options.out), []
    data = read_input(options)
    tell(data)
    order = np.arange(data.count) if options.shuffle_seed is None else shuffled_order(data.count, options.shuffle_seed)
    check_room("--output", options.out, least_bytes(data.schema.columns, data.count), f"{data.count} samples")
    info = {"source": options.source.name, "shuffle_seed": options.shuffle_seed}
    with ShardWriter(
        options.out,
        data.schema,
        max_shard_bytes=options.max_shard_bytes,
        overwrite=options.overwrite,
        info=info,
        of=of,
        views=lambda staged: _save_views(options, staged),
    ) as writer:
        for done, number in enumerate(order.tolist()):
            writer.append(data.sample(number))
            progress(done + 1, data.count)
    assert writer.manifest is not None
    return writer.manifest, writer.notes


def _save_views(options: PackOptions, manifest: Manifest) -> None:
    if options.view_by is not None:
        for view in make_views(manifest, by=f"meta.{options.view_by}")[0]:
            view.save()


def work_of(options: PackOptions) -> str:
    """Digest of what decides the data set: the options, and names, sizes and times of the files that are read."""
    digest = xxhash.xxh3_128(repr(replace(options, overwrite=False, out=Path())).encode())
    for place in (options.source, *([options.table] if options.table is not None else [])):
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and not _is_result(path, options.out):
                status = path.stat()
                digest.update(f"{path}|{status.st_size}|{status.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _is_result(path: Path, out: Path) -> bool:
    """Whether a file belongs to what is written, where that lies in a folder that is read, or around it."""
    path, out = path.absolute(), out.resolve()
    # Links within the source are its own business; those of the way to it are not.
    path = path.parent.resolve() / path.name
    return out in path.parents and publication.is_part(path.relative_to(out))


def run(job: PackJob) -> int:
    """Pack; returns the exit status."""
    options = options_of(job)
    began, shown = time.monotonic(), Progress(job.quiet, sys.stderr)

    def progress(done: int, count: int) -> None:
        if shown.due() or done == count:
            speed = done / max(time.monotonic() - began, 1e-9)
            line = f"{done} of {count} samples, {speed:,.0f}/s, left {clock((count - done) / max(speed, 1e-9))}"
            shown.show(line, done / max(count, 1), last=done == count)

    def tell(data: PackInput) -> None:
        for doubt in data.doubts():
            print(f"warning: {doubt}", flush=True)

    manifest, notes = pack(options, progress, tell)
    for note in notes[:_SHOWN_NOTES]:
        print(f"note: {note}")
    if len(notes) > _SHOWN_NOTES:
        print(f"note: and {len(notes) - _SHOWN_NOTES} more; each sample's JSON keeps its original name")
    if job.view_by is not None:
        print("\n".join(make_views(manifest, by=f"meta.{job.view_by}")[1]))
    print(f"{manifest.folder}: {manifest.rows} samples in {len(manifest)} shards, digest {manifest.digest}")
    return 0


def options_of(job: PackJob) -> PackOptions:
    """ValueError for a label that cannot be understood."""
    meta = dict(job.meta)
    if job.view_by is not None:
        meta.setdefault(job.view_by, job.view_by)
    return PackOptions(
        source=job.source,
        out=job.output,
        columns=job.column,
        modalities=job.modality,
        labels=[LabelSpec.parse(text) for text in job.label],
        key=job.key,
        group=job.group,
        text=job.text,
        meta=meta,
        table=job.table,
        table_key=job.table_key,
        encoding=job.encoding,
        dtype=job.dtype,
        nan=job.nan_row_missing,
        shuffle_seed=job.shuffle_seed,
        max_shard_bytes=int(job.max_shard_mb * 1024**2),
        overwrite=job.overwrite,
        allow_empty_class=job.allow_empty_class,
        view_by=job.view_by,
        pooling=Pooling(job.pool, job.zero_padding),
        csv_columns=job.csv_columns,
    )
