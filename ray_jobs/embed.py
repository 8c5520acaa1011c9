"""Job: representations of new clips by a pretrained run. `python -m ray_jobs.embed --help`.

    python -m ray_jobs.embed CLIP... --run NAME              video files: embeddings, class probabilities, timelines
    python -m ray_jobs.embed --clips FOLDER --run NAME       clip shards, through Ray Data
    python -m ray_jobs.embed --features FOLDER --run NAME    feature shards, through Ray Data

Clips go through the very encoders that made the run's features; other weights are refused. Probabilities are those of a
probe of one of the run's evaluations (`ray_jobs.evaluate`). Results are Parquet files in --out.

Exit status: 0 everything has an embedding; 3 some clips have none, by name with the reason; 2 wrong input; 1 the job
itself failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray.exceptions import RayError

from ray_jobs import ray_cluster
from ray_jobs.embedding import timeline as embed_timeline
from ray_jobs.embedding.clips import Embedded, Windows, embed_files
from ray_jobs.embedding.corpus import RowEmbedder, embed_clips, embed_features
from ray_jobs.embedding.model import RunModel
from ray_jobs.extract_features import choices_of, encoder_arguments, resources_of
from ray_jobs.extraction.plan import Extraction, recipe_of
from ray_jobs.run_config import DEFAULT_OUTPUT
from ray_jobs.run_folder import RunFolder
from shards import Manifest
from shards.access import LOCAL_RESULT, LOCAL_SOURCE, SHARED_FOLDER, refuse_url
from shards.clips.reader import ClipManifest
from shards.quarantine import COMPLETE, QUARANTINED

_ROWS_FILE = "embeddings.parquet"


def embed_paths(model: RunModel, args: argparse.Namespace, out: Path) -> int:
    """Embed video files; writes `embeddings.parquet` and a picture for each clip of two windows or more."""
    encoders = [choice.create("cpu") for choice in choices_of(model.encoder_names, args.weights, args.mirror)]
    model.check([encoder.info for encoder in encoders])
    windows = Windows(args.window, args.stride)
    tables, failed = [], 0
    classes = model.probe.classes if model.probe is not None else ()
    for result in embed_files(model, encoders, args.videos, args.fusion, windows, args.text):
        if not isinstance(result, Embedded):
            path, error = result
            failed += 1
            print(f"{path}: {error.reason}: {error}", file=sys.stderr)
            continue
        tables.append(_rows(result, classes))
        print(_line(result, classes), flush=True)
        if len(result.stretches) > 2:
            shown = None if result.probabilities is None else result.probabilities[1:]
            picture = out / f"timeline-{Path(result.path).stem}.png"
            title = f"{Path(result.path).name}, windows of {windows.length:g} s"
            embed_timeline.draw(result.stretches[1:], result.embeddings[1:], shown, classes, picture, title)
            print(f"  timeline: {picture}")
    if tables:
        out.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), out / _ROWS_FILE)
        print(f"{len(tables)} of {len(args.videos)} clips: {out / _ROWS_FILE}")
    return QUARANTINED if failed else COMPLETE


def _rows(result: Embedded, classes: Sequence[str]) -> pa.Table:
    count = len(result.stretches)
    columns: dict[str, Any] = {
        "path": [result.path] * count,
        "start": [start for start, _ in result.stretches],
        "end": [end for _, end in result.stretches],
        "whole": [True] + [False] * (count - 1),
        "embedding": pa.array(list(result.embeddings), pa.list_(pa.float32())),
    }
    if result.probabilities is not None:
        columns |= {f"p.{name}": result.probabilities[:, i] for i, name in enumerate(classes)}
    return pa.table(columns | {f"present.{name}": there for name, there in result.present.items()})


def _line(result: Embedded, classes: Sequence[str]) -> str:
    there = [name for name, present in result.present.items() if present[0]]
    line = f"{result.path}: {result.stretches[0][1]:.2f} s, {', '.join(there)}, {len(result.stretches) - 1} windows"
    if result.probabilities is None:
        return line
    best = np.argsort(-result.probabilities[0])[:3]
    return f"{line}; " + ", ".join(f"{classes[i]} {result.probabilities[0][i]:.2f}" for i in best)


def embed_corpus(model: RunModel, args: argparse.Namespace, out: Path) -> int:
    """Embed clip shards or feature shards."""
    rows = RowEmbedder(str(model.folder), args.label, args.fusion)
    if args.features is not None:
        manifest = Manifest.open(args.features)
        _check_features(model, manifest)
        resources = resources_of(args, ["model"])
        ray_cluster.connect(1)
        count, without = embed_features(manifest, rows, resources, out)
    else:
        choices = choices_of(model.encoder_names, args.weights, args.mirror)
        assert model.recipe is not None
        clips = ClipManifest.open(args.clips)
        plan = Extraction.make(clips, out, choices, decoding=model.recipe.decoding)
        model.check(plan.infos)
        resources = resources_of(args, [*(choice.name for choice in choices), "model"])
        ray_cluster.connect(len(choices) + 1)
        count, without = embed_clips(plan, rows, resources, out)
    print(f"{count} clips = {count - without} with an embedding + {without} without (see the column reason): {out}")
    return QUARANTINED if without else COMPLETE


def _check_features(model: RunModel, manifest: Manifest) -> None:
    """Refuse features of other encoders than the model's own."""
    theirs = recipe_of(manifest.info)
    if model.recipe is None or theirs is None:
        print("note: how the features were made is not known, so it cannot be compared with the run's", file=sys.stderr)
        return
    made = {item["column"]: item for item in theirs.encoders}
    for wanted in model.recipe.encoders:
        found = made.get(wanted["column"])
        if wanted["name"] in model.encoder_names and (found is None or found["digest"] != wanted["digest"]):
            raise ValueError(
                f"{manifest.folder}: column {wanted['column']!r} "
                + ("is missing" if found is None else f"was made by other weights of {found['name']}")
                + f"; the run {model.name!r} knows those of {wanted['name']} only (digest {wanted['digest'][:12]}...)"
            )
    if theirs.decoding != model.recipe.decoding:
        raise ValueError(
            f"{manifest.folder}: clips were decoded by {theirs.decoding}, the run's by {model.recipe.decoding}"
        )


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m ray_jobs.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("videos", nargs="*", metavar="CLIP", help="video files")
    add("--clips", metavar="FOLDER|URL", help="clip shards in the place of files")
    add("--features", metavar="FOLDER|URL", help="feature shards in the place of files")
    add("--run", required=True, metavar="NAME", help="a finished pretraining run")
    add("--output", default=DEFAULT_OUTPUT, metavar="FOLDER", help="folder of all runs (default: %(default)s)")
    add("--out", type=Path, metavar="FOLDER", help="where results go (default: embeddings/ in the run's folder)")
    add("--label", metavar="NAME", help="evaluated label whose probe gives probabilities (default: the only one)")
    add("--fusion", default="concat", help="concat (default), mean, or one modality")
    add("--window", type=float, default=Windows.length, metavar="SECONDS", help="of the timeline (default: 2)")
    add("--stride", type=float, default=Windows.stride, metavar="SECONDS", help="between windows (default: 0.5)")
    add("--text", metavar="WORDS", help="what is said in the clip (of the clip as a whole)")
    encoder_arguments(add)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit status."""
    args = arguments().parse_args(argv)
    try:
        sources = [bool(args.videos), args.clips is not None, args.features is not None]
        if sum(sources) != 1:
            raise ValueError("expected video files, or --clips, or --features")
        if args.text is not None and len(args.videos) != 1:
            raise ValueError("--text is what one clip says; give one clip")
        refuse_url("--output", args.output, SHARED_FOLDER)
        refuse_url("--out", args.out, LOCAL_RESULT)
        for video in args.videos:
            refuse_url("CLIP", video, LOCAL_SOURCE)
        folder = RunFolder(Path(args.output).expanduser().absolute() / args.run)
        model = RunModel.open(folder, args.label)
        if args.fusion not in ("concat", "mean", *model.embedder.modalities):
            known = ", ".join(("concat", "mean", *model.embedder.modalities))
            raise ValueError(f"--fusion {args.fusion!r} is unknown, allowed: {known}")
        out = args.out.expanduser().absolute() if args.out else folder.path / "embeddings"
        if not args.videos and out.exists() and any(out.iterdir()):
            raise ValueError(f"--out {out} is not empty; choose another folder")
        return embed_paths(model, args, out) if args.videos else embed_corpus(model, args, out)
    except RayError:
        raise  # also where a worker's ValueError is its cause: the job failed
    except (ValueError, FileNotFoundError) as error:
        print(f"python -m ray_jobs.embed: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
