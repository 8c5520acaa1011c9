"""`python -m shards check`: a data set as it is understood (rows, files, classes, speakers, parts, encodings), and what
is doubtful in it. Nothing is written and no clip is opened.

`pack`, `index` and the job `build_shards` look at the same before they start, and refuse and warn in the same words.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from pathlib import Path

from shards.adapters import ADAPTERS, read_clips
from shards.adapters.files import VIDEO_SUFFIXES
from shards.adapters.folder import table_labels
from shards.check_clips import describe_clips, doubt_clips
from shards.doubts import Samples, classes_of, of_names
from shards.foreign.command import read_folder
from shards.foreign.mapping import MemberMapping, Source, parse_label, split_assignment
from shards.manifest import TAR_SUFFIX
from shards.names import suffix
from shards.packing.command import pairs
from shards.packing.inputs import PackOptions, read_input
from shards.packing.labels import LabelSpec
from shards.packing.source import open_source
from shards.tables import SUFFIXES, read_table

_SHOWN_VALUES = 8
KINDS = ("clips", "features", "archives", "table")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """\
Print a data set as it is understood, and what is doubtful in it; write nothing. SOURCE is

  clips      a folder of videos, with --table or laid out as an --adapter knows it; options as of
             python -m ray_jobs.build_shards
  features   arrays (.npz, a folder of .npy files) and a --table; options as of python -m shards pack
  archives   a folder of .tar files that other tools wrote; options as of python -m shards index
  table      a table by itself

Exit status: 0 nothing is doubtful; 1 something is, or clips will be quarantined; 2 it would be refused."""
    parser.epilog = """\
examples:
  python -m shards check videos --table labels.csv --label emotion:class --field group=person
  python -m shards check features.npz --table labels.csv --table-key id --key ids --label emotion:class --group speaker
  python -m shards check labels.csv"""
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="folder, .npz file, or table")
    add("--kind", choices=KINDS, help="what SOURCE is (default: by what is in it)")
    add("--table", type=Path, metavar="FILE", help="CSV, TSV, JSONL or Parquet file with a row for each clip or sample")
    add("--encoding", metavar="NAME", help="of tables and texts that are not UTF-8, such as cp1252 (default: utf-8)")
    add("--label", action="append", default=[], metavar="NAME[=FIELD]:KIND[:CLASS,...]", help="a label (repeatable)")
    add("--adapter", default="folder", metavar="NAME", help=f"clips: {', '.join(ADAPTERS)} (default: folder)")
    add("--field", action="append", default=[], metavar="NAME=COLUMN", help="clips: name of a column in the table")
    add("--unpack", type=Path, metavar="FOLDER", help="webdataset: where the videos are unpacked")
    add("--folds", type=Path, metavar="FILE", help="clips: official folds of mosei (.json, or the SDK's .py)")
    add("--column", action="append", default=[], metavar="NAME[=ARRAY]", help="features, archives: a column to store")
    add("--key", metavar="FIELD", help="features: names of the samples")
    add("--table-key", metavar="FIELD", help="features: the table's column with the samples' keys")
    add("--group", metavar="FIELD", help="features, archives: whose sample it is (speaker)")
    add("--text", metavar="FIELD", help="features, archives: transcript")
    add("--meta", action="append", default=[], metavar="NAME[=FIELD]", help="features, archives: a further text")
    add("--view-by", metavar="NAME", help="features: the --meta field whose values name views (default: split)")
    add("--nan-row-missing", choices=("all", "any"), default="all",
        help="features, archives: how many NaN make a row missing (default: all)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print; returns the exit status."""
    kind = args.kind or kind_of(args.source)
    _refuse_other_options(args, kind)
    lines, doubts, refused = {
        "clips": _clips, "features": _features, "archives": _archives, "table": _table
    }[kind](args)  # fmt: skip
    print("\n".join(lines))
    for doubt in doubts:
        print(f"warning: {doubt}")
    quarantined = f"; clips that will be quarantined: {refused}" if refused else ""
    print(f"checked as {kind}; warnings: {len(doubts)}{quarantined}; nothing was written")
    return 1 if doubts or refused else 0


def kind_of(source: Path) -> str:
    """What a source is, by what is in it. Raises ValueError where it does not exist."""
    if not source.exists():
        raise ValueError(f"{source} does not exist")
    if source.is_file():
        return "table" if suffix(source) in SUFFIXES else "features"
    tars = False
    for path in source.iterdir():
        if path.suffix == ".npy" or (path.is_dir() and any(itertools.chain(path.glob("*.npy"), path.glob("*/*.npy")))):
            return "features"
        if suffix(path) in VIDEO_SUFFIXES:
            return "clips"
        tars = tars or path.name.endswith(TAR_SUFFIX)
    return "archives" if tars else "clips"


_OPTIONS = {
    "clips": {"table", "label", "adapter", "field", "folds"},
    "features": {"table", "label", "column", "key", "table_key", "group", "text", "meta", "view_by", "nan_row_missing"},
    "archives": {"label", "column", "group", "text", "meta", "nan_row_missing"},
    "table": {"label"},
}


def _refuse_other_options(args: argparse.Namespace, kind: str) -> None:
    defaults = {"adapter": "folder", "nan_row_missing": "all"}
    for name in sorted(set().union(*_OPTIONS.values()) - _OPTIONS[kind]):
        if getattr(args, name) not in (None, [], defaults.get(name)):
            raise ValueError(
                f"--{name.replace('_', '-')} says nothing of {kind}, as which {args.source} is read; leave it out, or "
                f"say what it is with --kind ({', '.join(KINDS)})"
            )


def _clips(args: argparse.Namespace) -> tuple[list[str], list[str], int]:
    clips = read_clips(
        args.adapter,
        args.source,
        True,
        table=args.table,
        fields=dict(split_assignment("--field", text) for text in args.field),
        labels=tuple(LabelSpec.parse(text) for text in args.label),
        folds=args.folds,
        encoding=args.encoding,
        unpack=args.unpack,
    )
    doubts = doubt_clips(clips)
    if not clips.complete:
        doubts.append("the set is not complete: build_shards refuses it without --allow-incomplete")
    return describe_clips(clips), doubts, len(clips.rejected)


def _features(args: argparse.Namespace) -> tuple[list[str], list[str], int]:
    columns = pairs("--column", args.column) or _all_columns(args.source)
    options = PackOptions(
        source=args.source,
        out=Path(),
        columns=columns,
        labels=[LabelSpec.parse(text) for text in args.label],
        key=args.key,
        group=args.group,
        text=args.text,
        meta=pairs("--meta", args.meta),
        table=args.table,
        table_key=args.table_key,
        encoding=args.encoding,
        nan=args.nan_row_missing,
        allow_empty_class=True,
        view_by=args.view_by,
    )
    data = read_input(options)
    return data.lines(), data.doubts(), 0


def _all_columns(path: Path) -> dict[str, str]:
    """Everything in the source that can be a column, under its own name."""
    source = open_source(path)
    columns = {}
    for name in source.names:
        try:
            source.column(name)
        except ValueError:
            continue
        columns[name] = name
    if not columns:
        raise ValueError(f"{path} holds nothing that can be a column: {', '.join(source.names)}")
    return columns


def _archives(args: argparse.Namespace) -> tuple[list[str], list[str], int]:
    mapping = MemberMapping(
        columns=dict(split_assignment("--column", text) for text in args.column),
        labels=tuple(parse_label(text) for text in args.label),
        group=None if args.group is None else Source.parse(args.group),
        text=None if args.text is None else Source.parse(args.text),
        meta={name: Source.parse(s) for name, s in (split_assignment("--meta", text) for text in args.meta)},
        nan=args.nan_row_missing,
        encoding=args.encoding,
    )
    contents = read_folder(args.source.absolute(), mapping)
    return contents.lines(), contents.doubts(), 0


def _table(args: argparse.Namespace) -> tuple[list[str], list[str], int]:
    table = read_table(args.source, args.encoding)
    labels = table_labels(table, [LabelSpec.parse(text) for text in args.label])
    classes = {item.label.name: classes_of(item.label, item.values) for item in labels if item.label.classes}
    samples = Samples(len(table), [item.label for item in labels], classes)
    lines = [f"{table.path.name}: {len(table)} rows, {table.how}"]
    doubts = list(table.doubts)
    for name, values in table.columns.items():
        counts = Counter(str(value) for value in values if value is not None)
        shown = ", ".join(f"{value[:30]} {count}" for value, count in counts.most_common(_SHOWN_VALUES))
        more = ", ..." if len(counts) > _SHOWN_VALUES else ""
        lines.append(f"column {name}: {counts.total()} of {len(table)} rows, {len(counts)} different: {shown}{more}")
        # Free text is never alike by mistake; names of few values are.
        if len(counts) <= max(20, len(table) // 4):
            doubts += of_names(f"column {name}:", counts)
    twice = len(table) - len(table.once([table.row(i) for i in range(len(table))])[0])
    if twice:
        doubts.append(f"rows given again, identically: {twice}")
    return lines + samples.lines(), doubts + samples.doubts(), 0
