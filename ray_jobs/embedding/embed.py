"""Representations of new clips by a pretrained run: what `ray_jobs.embed` does."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from conclugen.common import paths, uris
from conclugen.common.atomic import atomic_path
from conclugen.common.locks import bytes_in, check_room, folder_held
from conclugen.common.names import file_name
from conclugen.common.options import JobFailedError
from conclugen.encoders import EncoderError
from conclugen.encoders.encoder import differences
from conclugen.reach import FAR
from ray_jobs import figure_style
from ray_jobs.embedding import arrays
from ray_jobs.embedding import timeline as embed_timeline
from ray_jobs.embedding.clips import Embedded, Windows, embed_files
from ray_jobs.embedding.corpus import RowEmbedder, embed_clips, embed_features, part_of
from ray_jobs.embedding.model import RunModel
from ray_jobs.extraction.extract import choices_of, connect, resources_of
from ray_jobs.extraction.plan import Extraction, recipe_of, short
from ray_jobs.options.embed import EmbedJob
from ray_jobs.provenance import stamp_of
from ray_jobs.run_folder import RunFolder
from shards import Manifest
from shards.access import LOCAL_RESULT, LOCAL_SOURCE, SHARED_FOLDER, refuse_url
from shards.clips.reader import ClipManifest
from shards.output_folder import Ownership, describe_differences
from shards.quarantine import COMPLETE, QUARANTINED
from shards.tools.check_stored import warn_of_stored
from shards.verification.clips import open_manifest

_ROWS_FILE = "embeddings.parquet"
_METADATA = b"conclugen.embeddings"
_STAMPED = b"conclugen.stamp"
_KEPT_COLUMNS = {
    "path": pa.types.is_string,
    "start": pa.types.is_floating,
    "end": pa.types.is_floating,
    "whole": pa.types.is_boolean,
    "embedding": lambda kind: pa.types.is_list(kind) and kind.value_type == pa.float32(),
}
# Not a name that `*.parquet`, which is one table, would take in.
_OWNERSHIP = Ownership("corpus of embeddings", "_embedding.json", ("*.parquet", arrays.NAME))


def embed_paths(model: RunModel, job: EmbedJob, out: Path) -> int:
    """Embed video files; writes `embeddings.parquet` and a picture for each clip of two windows or more."""
    if (out / _OWNERSHIP.record).exists():
        raise ValueError(
            f"embeddings: {out} holds the embeddings of a corpus, which --overwrite would remove together with those "
            "of files; choose another folder"
        )
    encoders = [choice.create("cpu") for choice in choices_of(model.encoder_names, job, model.provided)]
    model.check([encoder.info for encoder in encoders])
    kept = _kept(out / _ROWS_FILE, model.identity(job.fusion), job.overwrite)
    windows = Windows(job.window, job.stride)
    tables, failed = [], 0
    stems = Counter(Path(path).stem for path in job.files)
    pictures = {path: file_name(Path(path).stem if stems[Path(path).stem] == 1 else path) for path in job.files}
    classes = model.probe.classes if model.probe is not None else ()
    texts = [job.text] * len(job.files)
    for result in embed_files(model, encoders, job.files, job.fusion, windows, texts):
        if not isinstance(result, Embedded):
            path, error = result
            failed += 1
            print(f"{path}: {error.reason}: {uris.scrub(error)}", file=sys.stderr)
            continue
        tables.append(_rows(result, classes))
        print(_line(result, classes, windows), flush=True)
        far = {name: float(share[0]) for name, share in result.nearer.items() if share[0] > FAR}
        if far:
            told = ", ".join(f"{name} lies farther than {share:.1%} of them" for name, share in far.items())
            print(f"  warning: unlike the clips that the model was checked on, so its numbers say little here: {told}")
        if len(result.stretches) > 2:
            shown = None if result.probabilities is None else result.probabilities[1:]
            picture = out / f"timeline-{pictures[result.path]}.png"
            title = f"{Path(result.path).name}, windows of {windows.length:g} s"
            with figure_style.stamped(stamp_of(model.embedder.info)):
                embed_timeline.draw(result.stretches[1:], result.embeddings[1:], shown, classes, picture, title)
            print(f"  timeline: {picture}")
    if tables:
        out.mkdir(parents=True, exist_ok=True)
        if kept is not None:
            named = pa.array([table["path"][0].as_py() for table in tables])
            tables = [kept.filter(pc.invert(pc.is_in(kept["path"], named))), *tables]
        table = pa.concat_tables(tables, promote_options="permissive")
        # The arrays follow the table; where that is interrupted, none are better than those of another call.
        (out / arrays.NAME).unlink(missing_ok=True)
        stamp = stamp_of(model.embedder.info)
        metadata = {_METADATA: json.dumps(model.identity(job.fusion), sort_keys=True)}
        metadata |= {_STAMPED: stamp} if stamp else {}
        with atomic_path(out / _ROWS_FILE) as temporary:  # what an earlier call wrote stays whole until this one is
            pq.write_table(table.replace_schema_metadata(metadata), temporary)
        arrays.write_files(table, out / arrays.NAME)
        width, held = model.embedder.width(job.fusion), pc.sum(table["whole"]).as_py()
        print(
            f"{len(job.files) - failed} of {len(job.files)} clips, {width} numbers each ({job.fusion}); {held} in "
            f"{out / _ROWS_FILE}"
        )
    return QUARANTINED if failed else COMPLETE


def _kept(path: Path, identity: Mapping[str, Any], overwrite: bool) -> pa.Table | None:
    """The rows of earlier calls; None where there are none. ValueError where they are of another model or probe."""
    if overwrite or not path.exists():
        return None
    try:
        kept = pq.read_table(path)
        of = _identity_of(kept.schema)
    except (OSError, pa.ArrowException, KeyError, ValueError, RecursionError) as error:
        raise ValueError(
            f"embeddings: {path} does not say whose embeddings it holds ({error!r}); choose another folder, or replace "
            "it with --overwrite"
        ) from None
    differing = describe_differences(of, identity)
    if differing:
        raise ValueError(
            f"embeddings: {path} holds embeddings that differ in {differing}; choose another folder, or replace them "
            "with --overwrite"
        )
    return kept


def _identity_of(schema: pa.Schema) -> dict[str, Any]:
    """Whose embeddings a table holds. KeyError or ValueError for one that this job has not written."""
    of = json.loads((schema.metadata or {})[_METADATA])
    if not isinstance(of, dict):
        raise ValueError(f"{_METADATA.decode()} is {type(of).__name__}, not a mapping")
    for name, check in _KEPT_COLUMNS.items():
        if schema.names.count(name) != 1:
            raise ValueError(f"{schema.names.count(name)} columns {name!r}, where there should be one")
        if not check(schema.field(name).type):
            raise ValueError(f"column {name!r} is of {schema.field(name).type}")
    return of


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
    columns |= {f"present.{name}": there for name, there in result.present.items()}
    return pa.table(columns | {f"nearer.{name}": share for name, share in result.nearer.items()})


def _line(result: Embedded, classes: Sequence[str], windows: Windows) -> str:
    """windows: into which it was cut; a clip that is hardly longer than one has none."""
    there = [name for name, present in result.present.items() if present[0]]
    count, each = len(result.stretches) - 1, f"{windows.length:g} s"
    cut = f"as a whole and in {count} windows of {each}" if count else f"as a whole (too short for windows of {each})"
    line = f"{result.path}: {result.stretches[0][1]:.2f} s, {', '.join(there)}, {cut}"
    if result.probabilities is None:
        return line
    best = np.argsort(-result.probabilities[0])[:3]
    return f"{line}; " + ", ".join(f"{classes[i]} {result.probabilities[0][i]:.2f}" for i in best)


def embed_corpus(model: RunModel, job: EmbedJob, data: str, out: Path) -> int:
    """Embed clip shards or feature shards."""
    rows = RowEmbedder(str(model.folder), model.evaluation, job.fusion)
    manifest = open_manifest(data)
    _refuse_rows_of_files(out / _ROWS_FILE)
    warn_of_stored(manifest)
    _OWNERSHIP.acquire(out, model.identity(job.fusion) | {"data": manifest.digest}, job.overwrite)
    least = 2 * model.embedder.width(job.fusion) * manifest.rows  # of 4 bytes each, which Parquet may press together
    check_room("--embeddings", out, least - bytes_in(out), "the embeddings of all rows")
    if not isinstance(manifest, ClipManifest):
        _check_features(model, manifest)
        resources = resources_of(job, ["model"])
        connect(resources)
        count, without = embed_features(manifest, rows, resources, out)
    else:
        choices = choices_of(model.encoder_names, job, model.provided)
        assert model.recipe is not None
        plan = Extraction.make(manifest, out, choices, decoding=model.recipe.decoding)
        model.check(plan.infos)
        resources = resources_of(job, [*(choice.name for choice in choices), "model"])
        connect(resources)
        count, without = embed_clips(plan, rows, resources, out)
    parts = {n: part_of(out, manifest.entry(n).name) for n, rows_in in enumerate(manifest.counts) if rows_in}
    arrays.write_corpus(manifest, parts, model.embedder.width(job.fusion), out)
    print(f"{count} clips = {count - without} with an embedding + {without} without (see the column reason): {out}")
    print(f"an embedding is {model.embedder.width(job.fusion)} numbers ({job.fusion})")
    return QUARANTINED if without else COMPLETE


def _refuse_rows_of_files(path: Path) -> None:
    """ValueError where the folder of a corpus also holds embeddings of files, which --overwrite would remove. A shard's
    own file may have the same name; it does not say whose embeddings it holds."""
    try:
        of_files = _METADATA in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return  # not there, or not whole: a shard's file that is made again
    if of_files:
        raise ValueError(f"embeddings: {path} holds embeddings of files; choose another folder, or move it elsewhere")


def _check_features(model: RunModel, manifest: Manifest) -> None:
    """Refuse features of other encoders than the model's own."""
    theirs = recipe_of(manifest.info)
    if model.recipe is None or theirs is None:
        print("note: how the features were made is not known, so it cannot be compared with the run's", file=sys.stderr)
        return
    made = {item["column"]: item for item in theirs.encoders}
    used = model.encoder_names
    for wanted in model.recipe.encoders:
        if wanted["name"] not in used:
            continue
        found = made.get(wanted["column"])
        if found is None:
            raise ValueError(
                f"{manifest.folder}: column {wanted['column']!r} is missing; the run {model.name!r} was trained on it "
                f"(encoder {wanted['name']})"
            )
        for name, value, trained_on in differences(found, wanted):
            raise ValueError(
                f"{manifest.folder}: column {wanted['column']!r} was made by {found['name']}, whose {name} is "
                f"{short(value)}; the run {model.name!r} was trained on features of {wanted['name']} with "
                f"{short(trained_on)} only"
            )
    if theirs.decoding != model.recipe.decoding:
        raise ValueError(
            f"{manifest.folder}: clips were decoded by {theirs.decoding}, the run's by {model.recipe.decoding}"
        )


def _usual_folder(run: Path, job: EmbedJob) -> Path:
    """`embeddings`; where those of the other kind are there, as after `conclugen run`, one beside it."""
    usual = run / "embeddings"
    corpus, files = (usual / _OWNERSHIP.record).exists(), (usual / _ROWS_FILE).exists()
    if job.data is None:
        return run / "embeddings-of-files" if corpus else usual
    return run / "embeddings-of-shards" if files and not corpus else usual


def run(job: EmbedJob) -> int:
    """Run the job; returns the exit status."""
    if bool(job.files) == (job.data is not None):
        raise ValueError("expected video files, or --data with shards of clips or features")
    if job.text is not None and len(job.files) != 1:
        raise ValueError("text: is what one clip says; give one clip")
    refuse_url("output", job.output, SHARED_FOLDER)
    refuse_url("embeddings", job.embeddings, LOCAL_RESULT)
    for file in job.files:
        refuse_url("files", file, LOCAL_SOURCE)
    folder = RunFolder(paths.absolute(job.output, "output") / job.run)
    model = RunModel.open(folder, job.label, evaluation=job.evaluation)
    if model.evaluation is not None:
        print(f"probabilities by the probe of evaluation {model.evaluation!r}", flush=True)
    elif model.evaluations:
        known = ", ".join(map(repr, model.evaluations))
        print(f"no probabilities: the run has several evaluations, {known}; choose by --evaluation", flush=True)
    if stamp := stamp_of(model.embedder.info):
        print(stamp, flush=True)
    model.embedder.check_fusion(job.fusion)
    out = paths.absolute(job.embeddings, "embeddings") if job.embeddings else _usual_folder(folder.path, job)
    with folder_held(out, "embeddings are being written here", "another --embeddings"):
        if job.data is None:
            return embed_paths(model, job, out)
        try:
            return embed_corpus(model, job, job.data, out)
        except EncoderError as error:  # also as Ray hands it on from an actor
            raise JobFailedError(str(error).splitlines()[-1]) from error
