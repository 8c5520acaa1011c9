"""The first stages of a run: from what there is to feature shards with views."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conclugen.common import commands
from conclugen.common.options import JobFailedError
from conclugen.common.paths import absolute
from ray_jobs import building
from ray_jobs.build_shards import BuildJob
from ray_jobs.extract_features import ExtractJob
from ray_jobs.extraction import extract
from shards import Manifest, View
from shards.clips.reader import ClipManifest
from shards.options import PackJob
from shards.packing import command as packing
from shards.packing.pooling import Pooling
from shards.packing.source import open_source
from shards.planning.split import make_views, save_views
from shards.planning.view import IndexValues
from shards.tools.check import columns_of, kind_of
from shards.verification.clips import open_manifest
from tuning.run import sizes
from tuning.run.done import Stages
from tuning.run.job import RunJob

_VALIDATION = ("valid", "validation", "val", "dev")
# A modality is what its columns' names say, in this order; what says nothing is a modality of its own name.
_SAYS = {
    "text": ("text", "word", "glove", "bert", "minilm", "transcript", "language"),
    "audio": ("audio", "acoustic", "voice", "speech", "sound", "mfcc", "egemaps", "opensmile", "covarep", "wav"),
    "video": ("video", "visual", "vision", "face", "facet", "openface", "frame", "image", "au"),
}


@dataclass(frozen=True)
class Views:
    """Which view is learned from, which is held out (None: none), and which is tested on (None: nothing is)."""

    train: str
    valid: str | None
    test: str | None


def feature_shards(job: RunJob, stages: Stages) -> tuple[Manifest, bool]:
    """Feature shards of the source, made where they are not there, and whether all of the source is in them.

    Raises ValueError for a source that holds nothing that can be learned from.
    """
    kind = kind_of(job.source)
    place = job.folder / "data"
    if kind == "shards":
        manifest = open_manifest(str(job.source))
        return _extracted(job, str(job.source), place) if isinstance(manifest, ClipManifest) else (manifest, True)
    if kind == "features":
        return _packed(job, stages, place), True
    if kind != "clips":
        raise ValueError(
            f"source: {job.source} is a table; give the folder of its clips, and the table by --labels"
            if kind == "table"
            else f"source: {job.source} holds archives of other tools; make them readable first: "
            f"{commands.typed(['index', str(job.source)])} (--help lists its options)"
        )
    clips = place / "clips"
    fields = job.columns
    if job.labels is None and (fields or job.label):
        raise ValueError("labels: must be given with label, group, text and field: they are columns of that table")
    status = building.run(
        BuildJob(
            source=absolute(job.source, "source"),
            output=clips,
            table=job.labels,
            field=fields,
            label=job.label,
            encoding=job.encoding,
            allow_incomplete=job.allow_incomplete,
            overwrite=job.overwrite,
            quiet=job.quiet,
        )
    )
    manifest, whole = _extracted(job, str(clips), place)
    return manifest, whole and not status


def _extracted(job: RunJob, clips: str, place: Path) -> tuple[Manifest, bool]:
    given = {name: getattr(job, name) for name in ("plugin", "weights", "mirror", "gpus", "actors", "cpus")}
    status = extract.run(
        ExtractJob(
            data=clips,
            output=place / "features",
            encoders=job.encoders,
            overwrite=job.overwrite,
            quiet=job.quiet,
            clips_per_task=job.clips_per_task,
            block_mib=job.block_mib,
            **given,
        )
    )
    if not (place / "features" / "manifest.parquet").is_file():
        raise JobFailedError(f"none of the clips of {clips} can be used; their reasons: {place}/*/quarantine.jsonl")
    return Manifest.open(place / "features"), not status


def _packed(job: RunJob, stages: Stages, place: Path) -> Manifest:
    columns = columns_of(job.source, Pooling(), ())
    composed: dict[str, list[str]] = {}
    for name in columns:
        composed.setdefault(modality_of(name), []).append(name)
    names = open_source(absolute(job.source, "source"), Pooling(), ()).names
    pack = PackJob(
        source=absolute(job.source, "source"),
        output=place / "features",
        column=columns,
        modality={name: tuple(own) for name, own in composed.items()},
        label=job.label,
        key=job.key,
        group=job.group,
        text=job.text,
        table=job.labels,
        table_key=job.key if job.labels is not None else None,
        encoding=job.encoding,
        view_by="split" if "split" in names else None,
        allow_empty_class=True,
        overwrite=job.overwrite,
        quiet=job.quiet,
    )
    inputs = {"pack": packing.work_of(packing.options_of(pack))}
    if stages.done("pack", inputs) and (place / "features" / "manifest.parquet").is_file():
        stages.again()
        print(f"packed already: {place / 'features'}", flush=True)
    else:
        packing.run(pack)
        stages.end("pack", inputs)
    return Manifest.open(place / "features")


def modality_of(column: str) -> str:
    """The modality that a column's name says."""
    words = "".join(c if c.isalpha() else " " for c in column.lower()).split()
    for modality, says in _SAYS.items():
        if any(word in says or any(word.startswith(one) for one in says if len(one) > 2) for word in words):
            return modality
    return column if column.isidentifier() else "_".join(words) or "features"


def views_of(job: RunJob, manifest: Manifest) -> tuple[Views, list[str]]:
    """The views of a run, made where the data has none, and lines about them."""
    names = set(View.names(manifest))
    labelled = bool(job.label)
    if "train" in names:
        valid = next((name for name in _VALIDATION if name in names), None)
        test = "test" if "test" in names else valid
        if labelled and test is None:
            raise ValueError(
                f"label: {manifest.folder} has a view 'train' and none to test on; make one: "
                f"{commands.typed(['split', str(manifest.folder)])} --by group --parts train=0.7,test=0.3 --overwrite"
            )
        lines = [f"views that the data has: {', '.join(sorted(names))}"]
        return Views("train", valid, test if labelled else None), lines
    groups = IndexValues.read(manifest, "group")
    chosen = sizes.parts(manifest.rows, len(groups.names), labelled)
    if chosen.shares is None:
        return Views("everything", None, None), [f"{manifest.rows} rows are few: all of them are learned from"]
    views, lines = make_views(manifest, chosen.by, chosen.shares, seed=job.seed, allow_leak=True)
    save_views(manifest, views)
    if chosen.by == "row":
        who = f"{len(groups.names)} speaker(s) are known" if groups.names else "no speakers are known"
        lines.append(
            f"warning: {who}, so rows are divided one by one: a speaker may be on both sides, and scores tell in part "
            "how well speakers are known; name them with --group COLUMN"
        )
    have = chosen.shares
    return Views("train", "valid" if "valid" in have else None, "test" if "test" in have else None), lines


def present(manifest: Manifest, view: str) -> dict[str, int]:
    """Modality -> rows of the view that have all of its columns."""
    opened = View.open(manifest, view)
    mask = np.concatenate([opened.mask(shard) for shard in range(len(manifest))])
    there = {column.name: _flags(IndexValues.read(manifest, f"present.{column.name}")) for column in manifest.columns}
    return {
        name: int((mask & np.all([there[column] for column in columns], axis=0)).sum())
        for name, columns in manifest.modalities.items()
    }


def _flags(values: IndexValues) -> np.ndarray:
    true = [number for number, name in enumerate(values.names) if name == "True"]
    return np.isin(values.codes, true)
