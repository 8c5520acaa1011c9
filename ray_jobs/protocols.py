"""Asks evaluation protocols of a pretrained run, beside raw features: what `ray_jobs.evaluate --protocol` does.

Writes into the evaluation's folder, beside its scores: `protocols.json` (every number, the rules and the holes of each
protocol that was ever asked), `protocols.md`, and for each protocol a folder `protocols/NAME` with its tables as CSV
and its charts as PNG.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conclugen.common.atomic import atomic_folder, write_json, write_text
from conclugen.common.ending import resumable
from conclugen.common.names import file_name
from conclugen.common.options import to_plain
from conclugen.common.tables import csv_text
from conclugen.encoders.encoder import stated
from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.config import LAYERS_WEIGHED, SINGLE
from conclugen.evaluation.protocol import Target
from conclugen.evaluation.protocols import registry
from conclugen.evaluation.protocols.base import Cell, Corpus, Material, Outcome, System
from conclugen.evaluation.protocols.registry import Done
from ray_jobs import plots
from ray_jobs.evaluation import Opened, being_written, note_identity, open_run, send, untrained_heads
from ray_jobs.extraction.plan import stored_layers
from ray_jobs.options.evaluate import EvaluateJob
from ray_jobs.protocol_document import DOCUMENT, FOLDER, PAGE, earlier, page, plain
from ray_jobs.roles import GROUP, Units
from ray_jobs.source import open_reader
from shards import Manifest, Rows, View
from shards.planning.view import IndexValues

_RAW: Mapping[str, tuple[str, Callable[[Mapping[str, NDArray[np.float64]]], Blocks], int]] = {
    # Baseline -> name of the system, how a probe may weigh its blocks, fewest modalities.
    "raw": ("raw", Blocks.plain, 1),
    "raw_balanced": ("raw balanced", Blocks.balanced, 2),
    "best_modality": (SINGLE, Blocks.single, 2),
    "block_weights": ("raw, block weights chosen", Blocks.weighted, 2),
}


@dataclass(frozen=True)
class Answers:
    """folder: of the evaluation. done: what was asked. corrupt: samples that were left out."""

    folder: Path
    done: tuple[Done, ...]
    corrupt: int

    @property
    def whole(self) -> bool:
        """Whether every protocol was answered, of all samples."""
        return not self.corrupt and all(one.outcome is not None for one in self.done)


def ask(job: EvaluateJob) -> Answers:
    """Ask the job's protocols one after the other; each is written as soon as it is answered.

    A protocol that the data cannot serve is kept as a hole that names its reason, and the others continue.

    Raises:
        ValueError: as `evaluation.open_run`, or no protocol could be answered.
    """
    names = registry.chosen(job.protocol, job.protocols)
    done: list[Done] = []

    def words() -> str:
        return f"{len(done)} of {len(names)} protocols are answered and kept; the same command asks all again"

    with being_written(job), resumable(words):
        opened = open_run(job, ("probe",))
        asked = material(job, opened)
        for one in registry.run(names, asked, job.protocols):
            done.append(one)
            write(one, job, opened, asked)
            print(_line(one), flush=True)
    if all(one.outcome is None for one in done):
        raise ValueError("; ".join(f"protocol {one.name}: {one.reason}" for one in done))
    track(done, opened)
    return Answers(opened.place, tuple(done), len(opened.read.corrupt))


# ---- what is asked


def material(job: EvaluateJob, opened: Opened) -> Material:
    """The rows of the job's views, the run's heads, the same before training, and raw features beside them."""
    read, manifest = opened.read, Manifest.open(job.data.folder)
    features = with_nan(read.rows)
    return Material(
        opened.protocol,
        features,
        tuple(systems(job, opened, features)),
        job.comparison,
        job.protocols,
        partial(_column, manifest, read.rows.row),
        partial(_corpus, job, manifest, tuple(features)),
    )


def with_nan(rows: Rows) -> dict[str, NDArray[np.float64]]:
    """Modality -> (N, D_m), NaN in rows that lack it."""
    return {m: np.where(rows.present[m][:, None], x, np.nan).astype(np.float64) for m, x in rows.features.items()}


def systems(job: EvaluateJob, opened: Opened, features: Mapping[str, NDArray[np.float64]]) -> list[System]:
    """As the table of systems has them, block by block: which modality each is made of is what protocols need."""
    embedder, wanted = opened.embedder, job.comparison.wanted
    learned = tuple(m for m in embedder.modalities if job.fusion in ("concat", "mean", m))
    heads = embedder.modules["heads"]
    parameters = sum(x.numel() for m in learned for x in heads[m].parameters())  # type: ignore[index]

    def pretrained(arrays: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        found, _ = embedder.represent({m: x for m, x in arrays.items() if m in embedder.widths})
        return {m: found[m].astype(np.float64) for m in learned}

    def both(arrays: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        of_heads = {f"pretrained {m}": x for m, x in pretrained(arrays).items()}
        nothing = {m: np.full((len(next(iter(arrays.values()))), embedder.widths[m]), np.nan) for m in learned}
        return of_heads | {f"raw {m}": {**nothing, **arrays}[m] for m in learned}

    parts = {m: m for m in learned}
    arrange = None if job.fusion == "mean" else partial(_scaled, job.block_scales) if len(learned) > 1 else Blocks.plain
    found = [System("pretrained", pretrained, parts, arrange, parameters=parameters)]
    if job.fusion != "mean":
        blocks = {f"{kind} {m}": m for kind in ("pretrained", "raw") for m in learned}
        raw_blocks = frozenset(f"raw {m}" for m in learned)
        found.append(System("pretrained + raw", both, blocks, halves, raw_blocks, True, parameters))
    if "untrained" in wanted:
        represent = untrained_heads(opened.folder, opened.read.rows)

        def untrained(arrays: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
            of_rows = represent(_rows(arrays, opened.read.rows))
            return {m: of_rows[m].astype(np.float64) for m in learned}

        found.append(System("untrained", untrained, parts, arrange, parameters=parameters))
    for baseline, (name, weigh, least) in _RAW.items():
        if baseline in wanted and len(learned) >= least:
            found.append(System(name, partial(_chosen, learned), parts, weigh, frozenset(learned)))
    layers = stored_layers(Manifest.open(job.data.folder), job.data.modalities, learned)
    if layers and "raw" in wanted:
        weigh = partial(Blocks.layered, layers=layers)
        found.append(System(LAYERS_WEIGHED, partial(_chosen, learned), parts, weigh, frozenset(learned)))
    return found


def halves(arrays: Mapping[str, NDArray[np.float64]]) -> Blocks:
    """Half of the variance to all columns of the heads alike, half to the raw modalities, balanced."""
    of_heads = [name for name in arrays if name.startswith("pretrained ")]
    raw = [name for name in arrays if name not in of_heads]
    width = sum(arrays[name].shape[1] for name in of_heads)
    weights = {name: 0.5 * arrays[name].shape[1] / width for name in of_heads}
    return Blocks(dict(arrays), {"halves": weights | {name: 0.5 / len(raw) for name in raw}})


def _scaled(how: str, arrays: Mapping[str, NDArray[np.float64]]) -> Blocks:
    return Blocks.scaled(arrays, how)


def _chosen(names: Sequence[str], arrays: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    return {name: arrays[name] for name in names if name in arrays}


def _rows(arrays: Mapping[str, NDArray[np.float64]], like: Rows) -> Rows:
    """Rows of these features, NaN a missing modality, as one that is not there at all."""
    count = len(next(iter(arrays.values())))
    features, present = {}, {}
    for name, template in like.features.items():
        values = arrays.get(name, np.full((count, template.shape[1]), np.nan))
        present[name] = np.asarray(np.isfinite(values).all(axis=1))
        features[name] = np.where(present[name][:, None], values, 0.0).astype(template.dtype)
    return Rows(features, present, np.arange(count), {}, None)


def _column(manifest: Manifest, rows: NDArray[np.int64], name: str) -> NDArray[np.str_]:
    """(N,) the value of each row (global number) in a column of the index: a class label by its own name too."""
    labels = {label.name: f"label.{label.name}" for label in manifest.labels if label.kind == "class"}
    texts = {field: f"meta.{field}" for field in manifest.schema.meta}
    values = IndexValues.read(manifest, (texts | labels).get(name, name))
    return np.array([*values.names, ""], dtype=object)[values.codes[rows]].astype(str)


def _corpus(
    job: EvaluateJob, own: Manifest, modalities: Sequence[str], folder: str, label: str, view: str, unit: str | None
) -> Corpus:
    """The rows of another corpus that have the label and one of the modalities that mean the same in both.

    unit: column of its units; None: the job's own, or `group` where the corpus lacks that one.
    """
    data = replace(job.data, folder=folder, view=view)
    manifest = Manifest.open(data.folder)
    name = Path(data.folder).name
    listed = manifest.schema.label(label)
    if listed.kind != "class":
        raise ValueError(f"{name}: label {label!r} is {listed.kind}, and classes are transferred; choose a class label")
    unlike, same = {}, {}
    for modality in modalities:
        why = unlikeness(own, manifest, data.modalities, modality)
        if why:
            unlike[modality] = why
        else:
            same[modality] = own.schema.resolve(data.modalities)[modality]
    target = Target(label, "class", np.empty(0, np.int64), listed.classes)
    if not same:
        return Corpus(name, target, np.empty(0, np.int64), {}, unlike, "")
    reader = open_reader(data, manifest, View.open(manifest, view), tuple(same), (label,))
    rows = reader.read_ranges([(shard, 0, int(count)) for shard, count in enumerate(reader.counts) if count])
    values = rows.labels[label]
    kept = np.flatnonzero((values >= 0) & np.any([rows.present[m] for m in same], axis=0))
    column = job.interval_unit or data.split_unit
    field = column.removeprefix("meta.")
    lacking = unit is None and field != column and field not in manifest.schema.meta
    units = Units.read(manifest, unit or (GROUP if lacking else column), "protocols.transfer.unit")
    features = {m: x[kept] for m, x in with_nan(rows).items()}
    told = (
        "compared by the encoders that made them"
        if _made(own) and _made(manifest)
        else ("compared by name and width alone, for not both corpora tell how they were made")
    )
    if reader.corrupt:
        told += f"; {len(reader.corrupt)} corrupt sample(s) of {name} are left out"
    if lacking:
        told += f"; {name} has no column {column}, and its units are of {GROUP!r}"
    found = replace(target, values=values[kept])
    return Corpus(name, found, units.ids(rows.row)[kept], features, unlike, told, units.singular)


def unlikeness(own: Manifest, other: Manifest, composition: Any, modality: str) -> str:
    """Why a modality of two corpora is not the same; empty where it is: columns, widths, and encoders if both tell."""
    columns = own.schema.resolve(composition)[modality]
    try:
        theirs = other.schema.resolve(composition).get(modality)
    except ValueError as error:
        return str(error)
    if theirs is None:
        return f"the other corpus has {', '.join(other.schema.resolve(composition))}"
    if theirs != columns:
        return f"it is made of {', '.join(columns)} here and of {', '.join(theirs)} there"
    for column in columns:
        here, there = own.schema.column(column).width, other.schema.column(column).width
        if here != there:
            return f"column {column} is {here} wide here and {there} there"
    mine, others = _made(own), _made(other)
    for column in columns if mine and others else ():
        if mine.get(column) != others.get(column):
            return f"column {column} was made by another encoder, or with other settings"
    return ""


def _made(manifest: Manifest) -> dict[str, Any]:
    """Column -> how it was made, where the manifest tells."""
    features = manifest.info.get("features")
    if not isinstance(features, Mapping) or not isinstance(features.get("encoders"), list):
        return {}
    shared = {name: features.get(name) for name in ("crop", "low_confidence", "whole_frames")}
    return {
        str(item["column"]): {**shared, **stated(item)}
        for item in features["encoders"]
        if isinstance(item, Mapping) and "column" in item
    }


# ---- what comes out


def write(one: Done, job: EvaluateJob, opened: Opened, asked: Material) -> None:
    """The protocol's folder, and the document and the page of all that were asked so far."""
    note_identity(opened.place, job)
    opened.place.mkdir(parents=True, exist_ok=True)
    if one.outcome is not None:
        with atomic_folder(opened.place / FOLDER / file_name(one.name)) as folder:
            for table in one.outcome.tables:
                (folder / f"{file_name(table.name)}.csv").write_text(_csv(table.columns, table.rows), encoding="utf-8")
            draw(one.outcome, folder)
    options = getattr(job.protocols, registry.option(one.name))
    shared = {name: value for name, value in asdict(job.protocols).items() if not isinstance(value, Mapping)}
    document = earlier(opened.place / DOCUMENT)
    model, settings = opened.model, settings_of(job)
    drop_others(document, opened.place, model)
    before = document["protocols"].get(one.name)
    if one.outcome is None and before is not None and not before["reason"] and _alike(before, settings, shared):
        print(f"note: {PAGE} keeps what {one.name} found before", flush=True)
        return
    answer = plain(one)
    document["protocols"][one.name] = answer | {
        "label": job.label,
        "data": {"folder": job.data.folder, "train": job.data.view, "test": job.test_view},
        "score": asked.score,
        "unit": answer.get("unit") or opened.read.units.singular,
        "units": answer["units"] if answer.get("unit") else len(np.unique(asked.units[asked.protocol.test_rows])),
        "steps": opened.steps,
        "model": model,
        "settings": settings,
        "options": shared | to_plain(options),
    }
    write_json(opened.place / DOCUMENT, document, sort_keys=False)
    write_text(opened.place / PAGE, page(document))


def settings_of(job: EvaluateJob) -> dict[str, Any]:
    """What an answer depends on beside data, label, fusion and the protocol's own options."""
    comparison = job.comparison
    return {
        "probe_weights": comparison.probe_weights,
        "select_by": comparison.select_by,
        "seed": comparison.seed,
        "block_scales": job.block_scales,
        "split_unit": job.data.split_unit,
        "interval_unit": job.interval_unit,
    }


def drop_others(document: dict[str, Any], place: Path, model: str) -> None:
    """Take the answers of other models (of the run before it went on) out of the document, and their folders."""
    stale = [name for name, answer in document["protocols"].items() if answer.get("model") != model]
    for name in stale:
        del document["protocols"][name]
        shutil.rmtree(place / FOLDER / file_name(name), ignore_errors=True)
    if stale:
        print(f"note: {PAGE} drops {', '.join(stale)}, found of another model of this run; ask again", flush=True)


def _alike(before: Mapping[str, Any], settings: Mapping[str, Any], shared: Mapping[str, Any]) -> bool:
    """Whether an earlier answer was made as a new one would be, but for the protocol's own options, which it names."""
    options = before.get("options")
    if not isinstance(options, Mapping) or before.get("settings") != settings:
        return False
    return all(options.get(name) == value for name, value in json.loads(json.dumps(shared)).items())


def draw(outcome: Outcome, folder: Path) -> None:
    """A picture of each chart."""
    for chart in outcome.charts:
        plots.interval_lines(
            chart.series,
            folder / f"{file_name(chart.name)}.png",
            xlabel=chart.xlabel,
            ylabel=chart.ylabel,
            title=chart.title,
            log=chart.log,
            diagonal=chart.diagonal,
            ticks=chart.ticks,
        )


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    return csv_text([columns, *(["" if cell is None else cell for cell in row] for row in rows)])


def _line(one: Done) -> str:
    if one.outcome is None:
        return f"{one.name}: not measured: {one.reason}"
    holes = len(one.outcome.holes)
    return f"{one.name}: {', '.join(table.name for table in one.outcome.tables)}" + (
        f"; {holes} hole(s), named in {PAGE}" if holes else ""
    )


def track(done: Sequence[Done], opened: Opened) -> None:
    """The headlines and all files into the run's own MLflow run, at the step of the model that was judged."""
    values = {
        f"{one.name}/{name}": value
        for one in done
        if one.outcome is not None
        for name, value in one.outcome.headline.items()
        if np.isfinite(value)
    }
    send(opened, values, f"{opened.series}/protocols", opened.place)
