"""`python -m shards pack`: feature arrays and labels to shards, checked completely before anything is written."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conclugen.common.durations import clock
from shards.foreign.mapping import split_assignment
from shards.manifest import Manifest
from shards.packing.inputs import PackInput, PackOptions, read_input
from shards.packing.labels import LabelSpec
from shards.packing.pooling import POOLS, Pooling
from shards.schema import FLOAT_DTYPES, LABEL_KINDS
from shards.split import make_views
from shards.writer import ShardWriter, shuffled_order

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
    data = read_input(options)
    tell(data)
    order = np.arange(data.count) if options.shuffle_seed is None else shuffled_order(data.count, options.shuffle_seed)
    info = {"source": options.source.name, "shuffle_seed": options.shuffle_seed}
    with ShardWriter(
        options.out,
        data.schema,
        max_shard_bytes=options.max_shard_bytes,
        overwrite=options.overwrite,
        info=info,
    ) as writer:
        for done, number in enumerate(order.tolist()):
            writer.append(data.sample(number))
            progress(done + 1, data.count)
    assert writer.manifest is not None
    return writer.manifest, writer.notes


# Command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """\
Pack feature arrays and labels into shards.

A source is one of
  FILE.npz                       arrays with one row for each sample
  FOLDER with ARRAY.npy          the same, a file for each array
  FOLDER with COLUMN/KEY.npy     a file for each sample and column, or COLUMN/SPLIT/KEY.npy
                                 (the field `split` then says which)
  FOLDER with COLUMN/KEY.csv     per-clip files of OpenFace or openSMILE, a row for every frame
                                 (FOLDER/KEY.csv: the one column is named `csv`)
  FOLDER with KEY.npz            a file for each sample, an array for each column
  FILE.h5 (.hdf5, .csd)          arrays with a row for each sample, or a group for each sample
Where a sample has a sequence (T, D), --pool says how it becomes one vector.
A FIELD is an array of the source with one value for each sample, or a column of --table.
A row of NaN is a missing one. The input is checked completely before anything is written."""
    parser.epilog = """\
example:
  python -m shards pack --source ravdess_features.npz --out shards/ravdess \\
    --column video=visual_au35 --column audio_egemaps=audio_egemaps88 --column audio_mfcc=audio_mfcc259 \\
    --modality video=video --modality audio=audio_egemaps,audio_mfcc \\
    --label emotion:class:names=emotion_names --group actor --key ids --text text"""
    add = parser.add_argument
    add("--source", required=True, type=Path, metavar="PATH", help=".npz file, or folder of .npy files")
    add("--out", required=True, type=Path, metavar="FOLDER", help="where the shards are written")
    add("--column", action="append", default=[], metavar="NAME[=ARRAY]", help="a column to store (repeatable)")
    add("--modality", action="append", default=[], metavar="NAME=COLUMN[,COLUMN]",
        help="columns that make a modality when it is read (default: each column is one)")  # fmt: skip
    add("--label", action="append", default=[], metavar="NAME[=FIELD[,FIELD]]:KIND[:CLASS,CLASS|:names=ARRAY]",
        help=f"KIND: {', '.join(LABEL_KINDS)}; classes are listed, named by an array, or found")  # fmt: skip
    add("--key", metavar="FIELD", help="names of the samples (default: file names, or row numbers)")
    add("--group", metavar="FIELD", help="whose sample it is (speaker)")
    add("--text", metavar="FIELD", help="transcript")
    add("--meta", action="append", default=[], metavar="NAME[=FIELD]", help="a further text to keep (repeatable)")
    add("--table", type=Path, metavar="FILE", help="CSV, TSV, JSONL or Parquet file with a row for each sample")
    add(
        "--pool", metavar="HOW", help=f"how a sequence (T, D) becomes a vector, over its valid rows: {', '.join(POOLS)}"
    )
    add("--zero-padding", action="store_true", help="with --pool: rows of zeros alone are padding, not counted")
    add(
        "--csv-columns",
        metavar="PATTERN[,PATTERN]",
        help="features of per-clip CSV files, such as AU*_r (default: all)",
    )
    add("--table-key", metavar="FIELD", help="its column with the samples' keys (default: rows in the same order)")
    add("--encoding", metavar="NAME",
        help="of a table that is not UTF-8, such as cp1252 (default: utf-8)")  # fmt: skip
    add("--dtype", choices=FLOAT_DTYPES, help="float type to store (default: the source's)")
    add("--nan-row-missing", choices=("all", "any"), default="all",
        help="how many NaN make a row missing (default: all; rows with fewer are refused)")  # fmt: skip
    add("--shuffle-seed", default="0", metavar="SEED", help="of the global order, or `none` to keep it (default: 0)")
    add("--max-shard-mb", type=float, default=256, metavar="MB", help="size of a shard (default: 256)")
    add("--view-by", metavar="NAME", help="a view for each value of this --meta field, such as split")
    add("--allow-empty-class", action="store_true", help="accept classes that no sample has")
    add("--overwrite", action="store_true", help="replace the data set that --out holds")
    add("--quiet", action="store_true", help="no progress line")


def run(args: argparse.Namespace) -> int:
    """Pack; returns the exit status."""
    options = options_of(args)
    began, shown = time.monotonic(), 0.0

    def progress(done: int, count: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if not args.quiet and (now - shown > 0.5 or done == count):
            shown = now
            speed = done / max(now - began, 1e-9)
            print(f"\r{done} of {count} samples, {speed:,.0f}/s, left {clock((count - done) / speed)} ", end="",
                  file=sys.stderr, flush=True)  # fmt: skip

    def tell(data: PackInput) -> None:
        for doubt in data.doubts():
            print(f"warning: {doubt}", flush=True)

    manifest, notes = pack(options, progress, tell)
    if not args.quiet:
        print(file=sys.stderr)
    for note in notes[:_SHOWN_NOTES]:
        print(f"note: {note}")
    if len(notes) > _SHOWN_NOTES:
        print(f"note: and {len(notes) - _SHOWN_NOTES} more; each sample's JSON keeps its original name")
    if args.view_by is not None:
        views, lines = make_views(manifest, by=f"meta.{args.view_by}")
        for view in views:
            view.save()
        print("\n".join(lines))
    print(f"{manifest.folder}: {manifest.rows} samples in {len(manifest)} shards, digest {manifest.digest}")
    return 0


def options_of(args: argparse.Namespace) -> PackOptions:
    """Options of parsed arguments; ValueError for one that cannot be understood."""
    return PackOptions(
        source=args.source,
        out=args.out,
        columns=pairs("--column", args.column),
        modalities={
            name: tuple(v.split(",")) for name, v in (split_assignment("--modality", t) for t in args.modality)
        },
        labels=[LabelSpec.parse(text) for text in args.label],
        key=args.key,
        group=args.group,
        text=args.text,
        meta=pairs("--meta", args.meta),
        table=args.table,
        table_key=args.table_key,
        encoding=args.encoding,
        dtype=args.dtype,
        nan=args.nan_row_missing,
        shuffle_seed=_seed(args.shuffle_seed),
        max_shard_bytes=int(args.max_shard_mb * 1024**2),
        overwrite=args.overwrite,
        allow_empty_class=args.allow_empty_class,
        view_by=args.view_by,
        pooling=Pooling(args.pool, args.zero_padding),
        csv_columns=tuple(args.csv_columns.split(",")) if args.csv_columns else (),
    )


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """NAME or NAME=VALUE, each name once."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, value = split_assignment(option, text) if "=" in text else (text, text)
        if name in pairs:
            raise ValueError(f"{option} {name} is given twice")
        pairs[name] = value
    return pairs


def _seed(text: Any) -> int | None:
    if str(text).lower() == "none":
        return None
    if not str(text).isdecimal():
        raise ValueError(f"--shuffle-seed {text!r}: expected a number that is not negative, or none")
    return int(text)
