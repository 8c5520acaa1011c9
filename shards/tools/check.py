"""`python -m shards check`: a data set as it is understood (rows, files, classes, speakers, parts, encodings), and what
is doubtful in it. Nothing is written; of clips' files the heads and first pictures are read.

`pack`, `index` and the job `build_shards` look at the same before they start, and refuse and warn in the same words.
"""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from conclugen.common.commands import tell_next
from shards.access import LOCAL_SOURCE, refuse_url
from shards.adapters import read_clips
from shards.adapters.files import VIDEO_SUFFIXES
from shards.adapters.folder import table_labels
from shards.doubts import Samples, classes_of, of_names
from shards.format.manifest import MANIFEST_NAME, TAR_SUFFIX
from shards.format.tables import SUFFIXES, read_table
from shards.names import suffix
from shards.options import CheckJob
from shards.packing.inputs import PackOptions, read_input
from shards.packing.labels import LabelSpec
from shards.packing.pooling import Pooling
from shards.packing.source import open_source
from shards.tools.check_clips import describe_clips, doubt_clips, example_clips
from shards.tools.check_files import open_files
from shards.tools.check_stored import stored_lines, stored_samples
from shards.verification.clips import open_manifest
from shards.webdataset_import.command import read_folder
from shards.webdataset_import.mapping import MemberMapping

_SHOWN_VALUES = 8
KINDS = ("clips", "features", "archives", "table", "shards")


@dataclass(frozen=True)
class Checked:
    """lines: to print; doubts: what may be meant otherwise; refused: clips that can't be used; incomplete: whether
    clips of the table are missing."""

    lines: list[str]
    doubts: list[str]
    refused: int = 0
    incomplete: bool = False


def run(job: CheckJob) -> int:
    """Print; returns the exit status."""
    for name in ("source", "table", "folds", "unpack"):
        refuse_url(name, getattr(job, name), LOCAL_SOURCE)
    kind = job.kind or kind_of(job.source)
    _refuse_other_options(job, kind)
    found = {
        "clips": _clips, "features": _features, "archives": _archives, "table": _table,
        "shards": _shards,
    }[kind](job)  # fmt: skip
    print("\n".join(found.lines))
    for doubt in found.doubts:
        print(f"warning: {doubt}")
    quarantined = f"; clips that will be quarantined: {found.refused}" if found.refused else ""
    print(f"checked as {kind}; warnings: {len(found.doubts)}{quarantined}; nothing was written")
    tell_next(_next(job, kind) + (" --allow-incomplete" if found.incomplete else ""))
    return 1 if found.doubts or found.refused else 0


def _next(job: CheckJob, kind: str) -> str:
    """What would be typed to work on what was checked: archives are indexed first."""
    source = shlex.quote(str(job.source))
    if kind in ("archives", "table"):
        return f"index {source}" if kind == "archives" else f"run FOLDER --labels {source}"
    if job.adapter != "folder":  # `run` reads folders of videos and tables alone
        return _next_build(job, source)
    words = ["run", source] + (["--labels", shlex.quote(str(job.table))] if job.table is not None else [])
    given = {"--label": job.label, "--group": (job.group,), "--key": (job.key,), "--text": (job.text,)}
    given["--encoding"] = (job.encoding,)
    for option, values in given.items():
        words += [word for value in values if value is not None for word in (option, shlex.quote(value))]
    words += [word for name, column in job.field.items() for word in ("--field", shlex.quote(f"{name}={column}"))]
    return " ".join(words)


def _next_build(job: CheckJob, source: str) -> str:
    words = ["build", source, "--adapter", shlex.quote(job.adapter), "--output", "data/clips"]
    given = {"--table": job.table, "--folds": job.folds, "--unpack": job.unpack, "--encoding": job.encoding}
    words += [
        word for option, value in given.items() if value is not None for word in (option, shlex.quote(str(value)))
    ]
    words += [word for text in job.label for word in ("--label", shlex.quote(text))]
    fields = {**job.field, **{name: x for name, x in (("group", job.group), ("text", job.text)) if x is not None}}
    return " ".join([*words, *(w for n, x in fields.items() for w in ("--field", shlex.quote(f"{n}={x}")))])


def kind_of(source: Path) -> str:
    """What a source is, by what is in it. Raises ValueError where it does not exist."""
    if not source.exists():
        raise ValueError(f"{source} does not exist")
    if source.is_file():
        return "table" if suffix(source) in SUFFIXES else "features"
    if (source / MANIFEST_NAME).exists():
        return "shards"
    tars = False
    for path in source.iterdir():
        if path.suffix == ".npy" or (path.is_dir() and any(itertools.chain(path.glob("*.npy"), path.glob("*/*.npy")))):
            return "features"
        if suffix(path) in VIDEO_SUFFIXES:
            return "clips"
        tars = tars or path.name.endswith(TAR_SUFFIX)
    return "archives" if tars else "clips"


_OPTIONS = {
    "clips": {"table", "label", "group", "text", "adapter", "field", "unpack", "folds", "look"},
    "features": {
        *("table", "label", "column", "key", "table_key", "group", "text", "meta", "view_by", "nan_row_missing"),
        *("pool", "zero_padding", "csv_columns"),
    },
    "archives": {"label", "column", "group", "text", "meta", "nan_row_missing"},
    "table": {"label"},
    "shards": set(),
}


def _refuse_other_options(job: CheckJob, kind: str) -> None:
    defaults = {"adapter": "folder", "nan_row_missing": "all", "look": CheckJob.look}
    for name in sorted(set().union(*_OPTIONS.values()) - _OPTIONS[kind]):
        if getattr(job, name) != defaults.get(name) and getattr(job, name) not in (None, (), {}, False):
            raise ValueError(
                f"--{name.replace('_', '-')} says nothing of {kind}, as which {job.source} is read; leave it out, or "
                f"say what it is with --kind ({', '.join(KINDS)})"
            )


def _clips(job: CheckJob) -> Checked:
    fields = dict(job.field)
    for name, column in (("group", job.group), ("text", job.text)):
        if column is not None:
            fields.setdefault(name, column)
    clips = read_clips(
        job.adapter,
        job.source,
        True,
        table=job.table,
        fields=fields,
        labels=tuple(LabelSpec.parse(text) for text in job.label),
        folds=job.folds,
        encoding=job.encoding,
        unpack=job.unpack,
    )
    doubts = doubt_clips(clips)
    if not clips.complete:
        doubts.append("the set is not complete: `run` and `build` refuse it without --allow-incomplete")
    opened = open_files(clips, job.look)
    lines = [*describe_clips(clips), *opened.lines, *example_clips(clips)]
    return Checked(lines, doubts, len(clips.rejected) + len(opened.refused), not clips.complete)


def _features(job: CheckJob) -> Checked:
    pooling = Pooling(job.pool, job.zero_padding)
    columns = job.column or columns_of(job.source, pooling, job.csv_columns)
    options = PackOptions(
        source=job.source,
        out=Path(),
        columns=columns,
        labels=[LabelSpec.parse(text) for text in job.label],
        key=job.key,
        group=job.group,
        text=job.text,
        meta=job.meta,
        table=job.table,
        table_key=job.table_key,
        encoding=job.encoding,
        nan=job.nan_row_missing,
        allow_empty_class=True,
        view_by=job.view_by,
        pooling=pooling,
        csv_columns=job.csv_columns,
    )
    data = read_input(options)
    return Checked(data.lines(), data.doubts())


def columns_of(path: Path, pooling: Pooling, csv_columns: tuple[str, ...]) -> dict[str, str]:
    """Everything in the source that can be a column, under its own name."""
    source = open_source(path, pooling, csv_columns)
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


def _archives(job: CheckJob) -> Checked:
    contents = read_folder(job.source.absolute(), MemberMapping.of(job))
    return Checked(contents.lines(), contents.doubts())


def _shards(job: CheckJob) -> Checked:
    manifest = open_manifest(str(job.source))
    samples = stored_samples(manifest)
    return Checked(stored_lines(manifest) + samples.lines(), samples.doubts())


def _table(job: CheckJob) -> Checked:
    table = read_table(job.source, job.encoding)
    labels = table_labels(table, [LabelSpec.parse(text) for text in job.label])
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
    return Checked(lines + samples.lines(), doubts + samples.doubts())
