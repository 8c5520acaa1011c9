"""Judges a pretrained run on labelled shards, beside its baselines: what `ray_jobs.evaluate` does."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

import conclugen
from conclugen import Pretrainer, encoders
from conclugen.common import paths
from conclugen.common.atomic import (
    hidden_beside,
    remove_remnants,
    remove_remnants_in,
    sync_file,
    sync_folder,
    write_json,
    write_text,
)
from conclugen.common.locks import folder_held
from conclugen.common.reading import inside, read_mapping
from conclugen.common.revision import running_revision
from conclugen.common.screen import doing
from conclugen.common.tables import csv_text, markdown, markdown_head, markdown_item, markdown_row, one_line
from conclugen.encoders.encoder import TEXT
from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.config import (
    BASELINES,
    SINGLE,
    ComparisonConfig,
    ProbeConfig,
    ProbeWeights,
    SelectBy,
)
from conclugen.evaluation.features import Scaling, fuse, standardise
from conclugen.evaluation.judge import Score, check, class_names, compare, group_class_rows, strongest_raw
from conclugen.evaluation.metrics import confusion_matrix
from conclugen.evaluation.protocol import Fold, Protocol, Target, natural_order
from conclugen.evaluation.statistics import Interval
from ray_jobs import figure_style, plots
from ray_jobs.extraction.plan import stored_layers
from ray_jobs.options.evaluate import EvaluateJob
from ray_jobs.provenance import stamp_of
from ray_jobs.roles import Units, refuse_shared
from ray_jobs.run_folder import RunFolder
from ray_jobs.source import available_widths, data_set, held_out_view, note_no_validation, open_reader
from ray_jobs.tracking import described
from ray_jobs.tracking.destination import uri_of_run
from ray_jobs.tracking.journal import Journal
from ray_jobs.tracking.journal_sender import refused
from ray_jobs.tracking.mlflow_sink import MlflowSink
from ray_jobs.verdict import EvaluateResult, comparisons, named, verdict, which
from shards import CorruptSample, Manifest, Rows, View
from shards.access import SHARED_FOLDER, refuse_url

_BLOCK_ROWS = 4096
_SCORES = "scores.json"
# Classes and speakers that a table has columns for.
_MOST_PARTS = 24
CLASS_SCORES = ("accuracy", "uar", "f1_macro")
_LEARNED = ("pretrained", "pretrained + raw", "untrained")
# A two-dimensional map of more points is a blot.
_MOST_MAPPED = 3000


@dataclass(frozen=True)
class Opened:
    """A run and the labelled rows that it is judged on.

    place: the evaluation's folder. series: its name in MLflow. uri: where the run is tracked.
    """

    folder: RunFolder
    embedder: conclugen.Embedder
    read: LabelledRows
    protocol: Protocol
    place: Path
    series: str
    uri: str

    @property
    def steps(self) -> int:
        """Optimiser steps that the model took."""
        return int(self.embedder.info["steps"])  # `open_run` has checked it

    @property
    def corpora(self) -> dict[str, object] | None:
        """Of a model of several corpora: those that it has `seen`, and which of them `this` data is, if any."""
        seen = self.embedder.info.get("corpora")
        if not isinstance(seen, dict):
            return None
        digest = self.read.units.values.manifest.digest
        own = [n for n, one in seen.items() if isinstance(one, dict) and one.get("manifest") == digest]
        return {"seen": list(seen), "this": own[0] if own else None}

    @property
    def input(self) -> dict[str, object]:
        """The rows that it is judged on, as MLflow lists them."""
        manifest, judged = self.read.units.values.manifest, np.sort(self.read.rows.row[self.read.fold.test_rows])
        digest = xxhash.xxh3_128_hexdigest(manifest.digest.encode() + judged.astype(np.int64).tobytes())
        return data_set(str(manifest.folder), digest, len(judged), "evaluation")

    @property
    def model(self) -> str:
        """Digest of the model that is judged."""
        return str(read_mapping(self.folder.model / "config.json")["digest"])


def open_run(job: EvaluateJob, methods: Sequence[str]) -> Opened:
    """The run's model and the rows of the job's views, checked for these methods; corrupt rows are left out with a
    message.

    Raises:
        ValueError: no such finished run, view or label; a label or a split from which nothing can be learned.
    """
    refuse_url("output", job.output, SHARED_FOLDER)
    output = paths.absolute(job.output, "output")
    folder = RunFolder.finished(output, job.run)
    uri = uri_of_run(folder.path, job.tracking_uri)
    embedder = conclugen.load(folder.model)
    steps = embedder.info.get("steps")
    if not isinstance(steps, int):
        raise ValueError(f"{folder.model / 'config.json'}: info.steps is {steps!r}, expected a whole number")
    check_widths(job, embedder)
    read = read_labelled(job, embedder.modalities)
    check_split(job, read, methods)
    probe = probe_config(job.comparison.probe_weights, job.comparison.select_by)
    protocol = Protocol(f"label {job.label!r}", read.target, read.groups, (read.fold,), probe, read.unit_ids)
    check(protocol, methods, job.comparison.class_weights)
    for sample in read.corrupt:
        print(f"left out: sample {sample.key!r} of {sample.shard} is corrupt: {sample.reason}", flush=True)
    series = series_of(folder, job)
    opened = Opened(folder, embedder, read, protocol, place_of(folder, series), f"evaluation/{series}", uri)
    tell_corpora(opened)
    return opened


def probe_config(class_weights: ProbeWeights, select_by: SelectBy) -> ProbeConfig:
    """How an evaluation's probe learns: nothing but labelled rows is looked at, as a user has no others."""
    return ProbeConfig(scaling="labelled", inner_groups="labelled", class_weights=class_weights, select_by=select_by)


def series_of(folder: RunFolder, job: EvaluateJob) -> str:
    """The evaluation's name: data set and label, and a digest where an evaluation of other data, other views or another
    label has this name in the run's folder already."""
    identity = identity_of(job)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    rest = [job.label] + [job.fusion] * (job.fusion != "concat")
    name = Path(job.data.folder).name
    series = "/".join([name, *rest])
    with contextlib.suppress(FileNotFoundError):
        if read_mapping(_identity_file(place_of(folder, series))) != identity:
            return "/".join([f"{name}-{digest}", *rest])
    return series


def identity_of(job: EvaluateJob) -> dict[str, str]:
    """What makes an evaluation the same evaluation: the data's digest, those of its views, label and fusion."""
    manifest = Manifest.open(job.data.folder)
    names = {"view": job.data.view, "validation_view": held_out_view(job.data, manifest), "test_view": job.test_view}
    views = {role: View.open(manifest, name).digest for role, name in names.items() if name is not None}
    return {"data": manifest.digest, **views, "label": job.label, "fusion": job.fusion}


def take_name(place: Path, job: EvaluateJob) -> None:
    """Make the name this evaluation's, and say where it replaces an earlier one."""
    note_identity(place, job)
    if (place / "scores.json").is_file():
        print(f"evaluated before with the same data, views and label: {place} is replaced", flush=True)


def note_identity(place: Path, job: EvaluateJob) -> None:
    """Beside the evaluation's folder, of what it is."""
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(_identity_file(place), identity_of(job))


def _identity_file(place: Path) -> Path:
    return place.with_name(f".{place.name}.identity.json")


def place_of(folder: RunFolder, series: str) -> Path:
    """The evaluation's folder."""
    return folder.evaluation / series.replace("/", "-")


@contextlib.contextmanager
def being_written(job: EvaluateJob) -> Iterator[None]:
    """Hold the evaluation's folder alone, before anything is computed for it. Raises FolderInUseError, and OSError
    where it cannot be written to."""
    folder = RunFolder(paths.absolute(job.output, "output") / job.run)
    if "://" in job.output or not folder.model.is_dir():
        yield  # `open_run` says what is wrong
        return
    place = place_of(folder, series_of(folder, job))
    doing = f"{place.name} is being evaluated"
    with folder_held(folder.evaluation, doing, "another --run", field="--output", file=f".{place.name}.lock"):
        remove_remnants(place)
        if place.is_dir():
            remove_remnants_in(inside(folder.path, place))
        yield


def evaluate(job: EvaluateJob) -> EvaluateResult:
    """Embed the labelled shards with the run's exported model and score it beside its baselines.

    Raises:
        ValueError: as `open_run`. What only some draws of a few labels can't teach is a hole in the table that names
            the reason, and no error.
    """
    with being_written(job), doing(f"evaluating {job.label}"):
        return _evaluate(job)


def _evaluate(job: EvaluateJob) -> EvaluateResult:
    opened = open_run(job, job.comparison.methods)
    folder, read, protocol, place = opened.folder, opened.read, opened.protocol, opened.place
    if "fine_tune" in job.comparison.methods:
        followed = f"the fine-tuned head's epoch is chosen on {job.data.view!r}"
        note_no_validation(job.data, Manifest.open(job.data.folder), followed)
    texts = encoded_names(protocol.target, job.comparison)
    raw = raw_modalities(read.rows, read.fold.train_rows, job.fusion)
    systems = representations(folder, opened.embedder, read, raw, job)

    scores = []
    main, units = protocol.main_score, read.unit_rows()
    layers = stored_layers(Manifest.open(job.data.folder), job.data.modalities, tuple(raw))
    for found in compare(protocol, systems, job.comparison, raw, layers, texts):
        groups = {units[unit][0]: value for unit, value in found.groups.items()}
        recalls = tuple({units[unit][0]: each for unit, each in draw.items()} for draw in found.recalls)
        score = replace(found, groups=groups, recalls=recalls)
        scores.append(score)
        print(score_line(score, main), flush=True)
    learned = [score for score in scores if score.system not in BASELINES and score.method not in BASELINES]
    if not any(score.scores for score in learned):
        first = learned[0].failures[0]
        raise ValueError(f"label {job.label!r}: no method could learn it at any share of labels; {first.reason}")
    target, tested = protocol.target, protocol.test_rows
    class_rows: dict[str, int] = {}
    by_unit: dict[str, tuple[int, ...]] = {}
    if target.kind == "class":
        counts = np.bincount(target.values[tested], minlength=len(target.classes))
        class_rows = dict(zip(target.classes, counts.tolist(), strict=True))
        by_unit = {units[unit][0]: own for unit, own in group_class_rows(protocol).items()}
    result = EvaluateResult(
        *(place, job.label, main, scores, read.corrupt, target.kind, class_rows, dict(units.values())),
        unit=read.units.singular,
        group_class_rows=by_unit,
        corpora=opened.corpora,
        stamp=stamp_of(opened.embedder.info, read.units.values.manifest.info),
    )
    take_name(result.folder, job)
    if result.stamp:
        print(result.stamp, flush=True)
    with replaced(place) as whole, figure_style.stamped(result.stamp):
        write_results(replace(result, folder=whole), job)
        draw(replace(result, folder=whole), protocol, systems["pretrained"].matrix, read)
    track(result, opened)
    return result


def encoded_names(target: Target, comparison: ComparisonConfig) -> NDArray[np.float32] | None:
    """(K, E) names of a label's classes, as `comparison.fine_tune.text_encoder` encodes them; None where it is not
    asked for. Raises ValueError for classes without names, and for an encoder of anything else than text."""
    config = comparison.fine_tune
    if config.text_encoder is None or "fine_tune" not in comparison.methods:
        return None
    names = class_names(target)
    encoder = encoders.create(config.text_encoder)
    if encoder.info.takes.kind != TEXT:
        raise ValueError(
            f"comparison.fine_tune.text_encoder: {config.text_encoder!r} takes {encoder.info.takes.kind}, expected an "
            "encoder of text, such as minilm-l6"
        )
    return encoder.encode([config.text_prompt.format(name.replace("_", " ")) for name in names])


@contextlib.contextmanager
def replaced(place: Path) -> Iterator[Path]:
    """A folder to write an evaluation into; its files then replace those of its last time, beside what else is there.
    `scores.json` goes first and comes last: numbers and pictures are of one evaluation, or there is none."""
    whole = hidden_beside(place)
    whole.mkdir(parents=True)
    try:
        yield whole
        place.mkdir(exist_ok=True)
        (place / _SCORES).unlink(missing_ok=True)
        for path in sorted(whole.iterdir(), key=lambda path: (path.name == _SCORES, path.name)):
            sync_file(path)
            path.replace(place / path.name)
        sync_folder(place)
    finally:
        shutil.rmtree(whole, ignore_errors=True)


def tell_corpora(opened: Opened) -> None:
    """Say which corpora a model of several has seen, and whether this data is of one of them: then its rows are
    standardised as that corpus's were."""
    corpora = opened.corpora
    if corpora is None:
        return
    seen, this = corpora["seen"], corpora["this"]
    assert isinstance(seen, list)
    where = opened.read.units.values.manifest.folder
    what = "an unseen corpus" if this is None else f"{this!r}, one of them"
    print(f"the model has seen the corpora {', '.join(seen)}; {where} is {what}", flush=True)
    opened.embedder.corpus = str(this) if this in opened.embedder.corpora else None


def check_widths(job: EvaluateJob, embedder: conclugen.Embedder) -> None:
    """Refuse shards whose modalities are not those that the run was trained on."""
    found = available_widths(job.data, Manifest.open(job.data.folder))
    for modality, width in embedder.widths.items():
        if found.get(modality) != width:
            there = f"width {found[modality]}" if modality in found else f"only {', '.join(found)}"
            raise ValueError(
                f"{job.data.folder}: run {job.run!r} was trained on {modality} of width {width}, found {there}; "
                "evaluate it on shards of the same features, or compose the modality with data.modalities"
            )


@dataclass(frozen=True)
class LabelledRows:
    """The rows of all three views.

    Attributes:
        rows: All of them, N.
        target: Their label.
        groups: (N,) unit of the split of each (`data.split_unit`); a row without one is a group of its own.
        fold: Of the rows that have the label and at least one modality, which are in which view.
        corrupt: Samples that could not be read.
        unit_ids: (N,) unit of intervals and tests.
        units: What these are.
    """

    rows: Rows
    target: Target
    groups: NDArray[np.int64]
    fold: Fold
    corrupt: list[CorruptSample]
    unit_ids: NDArray[np.int64]
    units: Units

    def unit_rows(self) -> dict[str, tuple[str, int]]:
        """Number of each test unit, as text -> its name and its test rows, in the order of numbers."""
        tested = self.fold.test_rows
        names = dict(zip(self.unit_ids[tested].tolist(), self.units.names(self.rows.row[tested]), strict=True))
        listed, counts = np.unique(self.unit_ids[tested], return_counts=True)
        return {str(unit): (str(names[int(unit)]), int(n)) for unit, n in zip(listed, counts, strict=True)}


def read_labelled(job: EvaluateJob, modalities: tuple[str, ...]) -> LabelledRows:
    """Read the views of training, validation and test, those that are one view once."""
    manifest = Manifest.open(job.data.folder)
    label = manifest.schema.label(job.label)
    split = Units.read(manifest, job.data.split_unit, "data.split_unit")
    units = split if job.interval_unit is None else Units.read(manifest, job.interval_unit, "interval_unit")
    validation = held_out_view(job.data, manifest) or job.data.view
    parts, rows, corrupt, at = {}, [], [], 0
    for name in dict.fromkeys((job.data.view, validation, job.test_view)):
        reader = open_reader(job.data, manifest, View.open(manifest, name), modalities, (job.label,))
        read = reader.read_ranges([(shard, 0, int(count)) for shard, count in enumerate(reader.counts) if count])
        corrupt += list(reader.corrupt)
        target = read.labels[job.label]
        usable = np.any([read.present[m] for m in modalities], axis=0)
        usable &= (target >= 0) if label.kind == "class" else np.isfinite(target.reshape(len(target), -1)).all(axis=1)
        parts[name] = at + np.flatnonzero(usable)
        rows.append(read)
        at += len(read)
    every = Rows.concatenate(rows)
    values = every.labels[job.label]
    if label.kind == "multilabel":
        # Published rule: an emotion is there when its intensity is above 0. Rows without the label keep their NaN.
        values = np.where(np.isnan(values), values, (values > 0).astype(np.float64))
    sentiment = label.kind == "continuous" and job.comparison.sentiment
    labels = Target(job.label, label.kind, values, label.classes, sentiment)  # type: ignore[arg-type]
    fold = Fold(0, parts[job.data.view], parts[job.test_view], parts[validation])
    return LabelledRows(every, labels, split.ids(every.row), fold, corrupt, units.ids(every.row), units)


def check_split(job: EvaluateJob, read: LabelledRows, methods: Sequence[str] = ()) -> None:
    """Raise ValueError where units of the split have training and test rows, or, of `fine_tune` among the methods,
    validation and test rows: its epoch is chosen on the former."""
    manifest = Manifest.open(job.data.folder)
    train, test = (read.rows.row[rows] for rows in (read.fold.train_rows, read.fold.test_rows))
    split = Units.read(manifest, job.data.split_unit, "data.split_unit")
    where = f"label {job.label!r}, views {job.data.view!r} and {job.test_view!r}"
    refuse_shared(manifest, split, train, test, where=where, option="--data.split-unit")
    held_out = held_out_view(job.data, manifest)
    if "fine_tune" not in methods or held_out is None:
        return
    chosen = read.rows.row[read.fold.validation_rows]
    both = len(np.intersect1d(chosen, test))
    if both:
        raise ValueError(
            f"data.validation_view: {held_out!r} holds {both} of the {len(test)} test rows, and the fine-tuned head's "
            "epoch would be chosen on them; name another, or null for the training rows"
        )
    where = f"label {job.label!r}, views {held_out!r} and {job.test_view!r}"
    refuse_shared(manifest, split, chosen, test, where=where, option="--data.split-unit", side="validation")


def raw_modalities(rows: Rows, train_rows: NDArray[np.int64], fusion: str) -> dict[str, NDArray[np.float64]]:
    """(N, D_m) raw features, standardised on the training rows that have them; where `fusion` names a modality, of that
    one. Raw features have no mean over modalities, for their widths differ: beside `mean` they stand side by side."""
    alone = {fusion: rows.features[fusion]} if fusion in rows.features else rows.features
    return standardise(alone, rows.present, train_rows)


def representations(
    folder: RunFolder,
    embedder: conclugen.Embedder,
    read: LabelledRows,
    raw: Mapping[str, NDArray[np.float64]],
    job: EvaluateJob,
) -> dict[str, Blocks]:
    """The pretrained heads, these beside the raw modalities (half of the variance to each side), and the same heads
    before training; blocks of N rows."""
    rows, train_rows = read.rows, read.fold.train_rows
    missing = {m: np.where(rows.present[m][:, None], x, np.nan) for m, x in rows.features.items()}
    pretrained = embedder.embed(missing, job.fusion).astype(np.float64)
    systems = {"pretrained": blocks_of(pretrained, embedder.modalities, job)}
    scaled = Scaling.fit(pretrained[train_rows]).apply(pretrained)
    systems["pretrained + raw"] = Blocks.with_raw(scaled, raw)
    if "untrained" in job.comparison.wanted:
        untrained = embed_untrained(folder, rows, job.fusion)
        systems["untrained"] = blocks_of(untrained, embedder.modalities, job)
    return systems


def blocks_of(fused: NDArray[np.float64], modalities: Sequence[str], job: EvaluateJob) -> Blocks:
    """A concatenation as blocks, one for each modality; whatever else it is as one block."""
    if job.fusion != "concat" or len(modalities) == 1:
        return Blocks.plain({job.fusion: fused})
    parts = np.split(fused, len(modalities), axis=1)  # heads are equally wide
    return Blocks.scaled(dict(zip(modalities, parts, strict=True)), job.block_scales)


def embed_untrained(folder: RunFolder, rows: Rows, fusion: str) -> NDArray[np.float64]:
    """Representations by the run's own heads as they were before the first step, standardisation included."""
    whole = fusion not in ("concat", "mean", *rows.features)
    fused, _ = fuse(untrained_heads(folder, rows, whole)(rows), fusion, rows.present)
    return fused


def untrained_heads(
    folder: RunFolder, like: Rows, whole: bool = False
) -> Callable[[Rows], dict[str, NDArray[np.float32]]]:
    """From rows to each modality's (N, R) representation by the heads of the run before its first step; or to those of
    the row as a whole, by task."""
    config = folder.load_pretraining().without_training_views()
    widths = {m: x.shape[1] for m, x in like.features.items()}
    pretrainer = Pretrainer(config, widths, steps_per_epoch=1, standardization=folder.load_standardization())
    embed = pretrainer.embed_jointly if whole else pretrainer.embed

    def represent(rows: Rows) -> dict[str, NDArray[np.float32]]:
        blocks = [embed(rows.part(at, at + _BLOCK_ROWS)) for at in range(0, len(rows), _BLOCK_ROWS)]
        return {name: np.concatenate([block[name].cpu().numpy() for block in blocks]) for name in blocks[0]}

    return represent


def score_line(score: Score, main: str) -> str:
    """`pretrained  probe  10 %  accuracy 0.71 [0.68, 0.74]`, and why a draw of labels is missing from it."""
    value = f"{main} {_value(score, main)}" if score.scores else "not scored"
    why = "".join(f"; draw {failure.draw}: {failure.reason}" for failure in score.failures)
    return f"{score.system:<26} {score.method:<13} {score.fraction:>4.0%} of labels   {value}{why}"


def _value(score: Score, main: str) -> str:
    """`0.712 [0.680, 0.741] (2 of 3 draws)`; a dash for a hole."""
    if not score.scores:
        return "—"
    done, all_ = len(score.draws), len(score.draws) + len(score.failures)
    counted = f" ({done} of {all_} draws)" if done < all_ else ""
    return f"{score.scores[main]:.3f}{_bracketed(score.intervals.get(main))}{counted}"


def _named(system: str, method: str) -> str:
    """`pretrained, fine-tune`; a baseline that is a method of its own is named once."""
    return system if system == method else ", ".join(part for part in (system, method.replace("_", "-")) if part)


def _bracketed(interval: Interval | None) -> str:
    return "" if interval is None else f" [{interval.low:.3f}, {interval.high:.3f}]"


def write_results(result: EvaluateResult, job: EvaluateJob) -> None:
    """`scores.json` with everything, `scores.csv` with a row for each number, `table.md` with the main score."""
    cells = [
        {
            "system": s.system,
            "method": s.method,
            "fraction": s.fraction,
            # JSON knows no NaN, which some scores are: a constant has no correlation.
            "scores": {name: value if np.isfinite(value) else None for name, value in s.scores.items()},
            "choices": s.choices,
            "groups": s.groups,
            "confusion": s.confusion,
            "draws": [value if np.isfinite(value) else None for value in s.draws],
            "failures": [asdict(failure) for failure in s.failures],
            "intervals": {name: [interval.low, interval.high] for name, interval in s.intervals.items()},
        }
        for s in result.scores
    ]
    document = {
        "job": asdict(job),
        "commit": running_revision(),
        "main_score": result.main_score,
        "verdict": verdict(result),
        "class_rows": dict(result.class_rows),
        "group_rows": dict(result.group_rows),
        "damaged": [asdict(d) for d in result.corrupt],
        "cells": cells,
    }
    if result.stamp:
        document["stamp"] = result.stamp
    if result.corpora is not None:
        document["corpora"] = dict(result.corpora)
    result.folder.mkdir(parents=True, exist_ok=True)
    write_json(result.folder / _SCORES, document)
    rows: list[Sequence[object]] = [("system", "method", "fraction", "score", "value", "low", "high")]
    for s in result.scores:
        for name, value in sorted(s.scores.items()):
            ends = [s.intervals[name].low, s.intervals[name].high] if name in s.intervals else ["", ""]
            rows.append((s.system, s.method, s.fraction, name, value, *ends))
        if not s.scores:
            rows.append((s.system, s.method, s.fraction, result.main_score, "", "", ""))
    write_text(result.folder / "scores.csv", csv_text(rows))
    write_text(result.folder / "table.md", table(result))


def table(result: EvaluateResult) -> str:
    """The main score as Markdown: a row for each system and method, a column for each share of labels; of classes the
    others of accuracy, UAR and macro-F1 as well, recall by class and accuracy by speaker with all labels, and confusion
    of the pretrained heads and of the strongest raw row. Below it what could not be scored, and why; and the verdict.
    """
    lines = _by_fraction(result, result.main_score)
    if single := which({s.fraction: s.choices for s in result.scores if s.system == SINGLE}):
        lines += ["", markdown(f"{single}.")]
    if result.kind == "class":
        for score in CLASS_SCORES:
            if score != result.main_score:
                lines += ["", *_by_fraction(result, score)]
        lines += absent_note(result) + _by_part(result) + _confusions(result)
    lines += notes(result)
    missing: dict[str, list[str]] = {}
    for s in result.scores:
        for failure in s.failures:
            what = f"{s.fraction:.0%} of labels, draw {failure.draw}: {failure.reason}"
            missing.setdefault(what, []).append(_named(s.system, s.method))
    if missing:
        lines += ["", "Not scored:", ""]
        lines += [markdown_item(f"{what} ({'; '.join(systems)})") for what, systems in missing.items()]
    lines += ["", markdown(verdict(result))]
    lines += ["", markdown(result.stamp)] if result.stamp else []
    return "\n".join(lines) + "\n"


def _by_fraction(result: EvaluateResult, score: str) -> list[str]:
    fractions = sorted({s.fraction for s in result.scores})
    lines = markdown_head([f"{result.label}: {score}", *(f"{fraction:.0%} of labels" for fraction in fractions)])
    for system, method in dict.fromkeys((s.system, s.method) for s in result.scores):
        cells = {s.fraction: s for s in result.scores if (s.system, s.method) == (system, method)}
        values = [_value(cells[f], score) if f in cells else "" for f in fractions]
        lines.append(markdown_row([_named(system, method), *values]))
    return lines


def absent_note(result: EvaluateResult) -> list[str]:
    """The classes that macro scores are not of."""
    absent = [name for name, rows in result.class_rows.items() if not rows]
    if not absent:
        return []
    many = len(result.class_rows) - len(absent)
    return [
        "",
        markdown(f"No test row of class {', '.join(map(one_line, absent))}: macro scores are of {many} classes."),
    ]


def _by_part(result: EvaluateResult) -> list[str]:
    """Recall of each class, and accuracy of each speaker, of every row with the most labels."""
    most = max(s.fraction for s in result.scores)
    scored = [s for s in result.scores if s.fraction == most and s.scores]
    lines: list[str] = []
    recalls = [{name: s.scores.get(f"recall/{name}", np.nan) for name in result.class_rows} for s in scored]
    tables: dict[str, tuple[Mapping[str, int], list[dict[str, float]]]] = {
        "recall by class": (result.class_rows, recalls),
        f"accuracy by {result.unit}": (_in_order(result.group_rows), [s.groups for s in scored]),
    }
    for title, (rows, values) in tables.items():
        parts = [name for name, count in rows.items() if count][:_MOST_PARTS]
        left = sum(count > 0 for count in rows.values()) - len(parts)
        if not scored or not parts:
            continue
        head = [f"{title}, {most:.0%} of labels", *(f"{name} ({rows[name]} rows)" for name in parts)]
        lines += ["", *markdown_head(head)]
        for s, of in zip(scored, values, strict=True):
            lines.append(markdown_row([_named(s.system, s.method), *(_short(of.get(name)) for name in parts)]))
        if left:
            lines += ["", f"{left} more are in scores.json."]
    return lines


def _confusions(result: EvaluateResult) -> list[str]:
    """What the rows of each class were taken for, in % of them, with the most labels: of the pretrained heads and of
    the strongest raw row."""
    most, names = max(s.fraction for s in result.scores), list(result.class_rows)
    first = next((s for s in result.scores if (s.system, s.fraction) == ("pretrained", most) and s.scores), None)
    lines: list[str] = []
    if len(names) > _MOST_PARTS:
        return lines
    for s in filter(None, (first, strongest_raw(result.scores, most, result.main_score))):
        heading = f"{_named(s.system, s.method)}, {most:.0%} of labels: rows of"
        lines += ["", *markdown_head([heading, *(f"taken for {name}" for name in names)])]
        for name, row in zip(names, s.confusion, strict=True):
            count = sum(row)
            cells = [f"{100 * n / count:.0f} %" if count else "—" for n in row]
            lines.append(markdown_row([f"{name} ({count:.0f})", *cells]))
    return lines


def _in_order(rows: Mapping[str, int]) -> dict[str, int]:
    return {name: rows[name] for name in natural_order(list(rows))}


def _short(value: float | None) -> str:
    return "—" if value is None or not np.isfinite(value) else f"{value:.2f}"


def notes(result: EvaluateResult) -> list[str]:
    """What was chosen for rows that choose, and each share's strongest raw row with what the representation adds."""
    lines = []
    for s in result.scores:
        if s.choices:
            count = ", ".join(f"{name} ({times})" for name, times in s.choices.items())
            lines.append(markdown_item(f"{s.system}, {s.fraction:.0%} of labels: {count}"))
    if lines:
        lines = ["", "Chosen on held-out training groups, or learned with the probe (in so many draws):", "", *lines]
    main, compared = result.main_score, []
    for fraction in sorted({s.fraction for s in result.scores}):
        best = strongest_raw(result.scores, fraction, main)
        if best is None:
            continue
        own = [s for s in result.scores if s.fraction == fraction and s.system in _LEARNED and s.scores]
        told = _told(own, best, result)
        differences = "; ".join(f"{_named(s.system, s.method)} {words}" for s, words in zip(own, told, strict=True))
        strongest = f"{_named(named(best), best.method)} ({best.scores[main]:.3f})"
        compared.append(markdown_item(f"{fraction:.0%} of labels: {strongest}; minus it: {differences}"))
    if compared:
        by = f" by {main}" if result.kind == "class" else ""
        lines += ["", f"Strongest raw row{by}, the best on the test rows themselves, in its favour:", "", *compared]
    return lines


def _told(own: Sequence[Score], best: Score, result: EvaluateResult) -> list[str]:
    """Each minus the best raw row in the main score; of classes also the interval over speakers (units) and draws of
    labels, crossed, p corrected by Holm over this list, and the verdict, if there are two speakers."""
    main = result.main_score
    plain = [f"{s.scores[main] - best.scores[main]:+.3f}" for s in own]
    for name, c in comparisons({str(i): (s, best) for i, s in enumerate(own)}, result).items():
        at = int(name)
        # Of the same draws it is the difference of the table's own numbers, which rounds as they do.
        difference = plain[at] if own[at].scored == best.scored else f"{c.difference:+.3f}"
        plain[at] = (
            f"{difference} [{c.interval.low:+.3f}, {c.interval.high:+.3f}], p {c.adjusted:.3f}, "
            f"{c.verdict(units=result.unit + 's')}"
        )
    return plain


def draw(result: EvaluateResult, protocol: Protocol, pretrained: NDArray[np.float64], read: LabelledRows) -> None:
    """Bars with intervals and label-efficiency curves of the main score; of classes also a confusion matrix and maps of
    the representations, by class and by speaker (unit of intervals)."""
    scored = [s for s in result.scores if s.scores and s.system not in BASELINES]
    full = max(s.fraction for s in scored)
    shown = next((s for s in scored if (s.system, s.fraction) == ("pretrained", full)), None)
    method = (shown or scored[-1]).method
    target, tested = protocol.target, protocol.test_rows
    if target.kind == "class":
        names, folder = target.classes, result.folder
        if shown is not None and shown.predictions is not None:
            matrix = confusion_matrix(target.values[tested], shown.predictions, len(names))
            title = f"pretrained, {method}, {full:.0%} of labels"
            plots.confusion(matrix, names, folder / "confusion.png", title=title)
        mapped = tested[:_MOST_MAPPED]
        mapped = mapped[np.argsort(target.values[mapped], kind="stable")]  # the legend follows the order of the classes
        of_rows = [names[i] for i in target.values[mapped]]
        maps = {"map.png": (f"test rows by {result.label}, pretrained heads", of_rows)}
        units = read.units.names(read.rows.row[mapped]).tolist()
        if 1 < len(set(units)) < len(units):
            maps["map_speaker.png"] = (f"test rows by {result.unit}, pretrained heads", units)
        lacking = plots.lacking({m: there[mapped] for m, there in read.rows.present.items()})
        for name, (title, colours) in maps.items():
            plots.representation_map(pretrained[mapped], colours, folder / name, title=title, lacking=lacking)
    main = result.main_score
    intervals = {(s.system, s.method, s.fraction): s.intervals[main] for s in result.scores if main in s.intervals}
    if not intervals:
        return
    bars = {_named(system, how): i for (system, how, share), i in intervals.items() if share == full}
    title = f"{result.label}, {full:.0%} of labels"
    plots.interval_bars(bars, result.folder / "systems.png", ylabel=main, title=title)
    lines: dict[str, dict[float, Interval]] = {}
    for (system, how, share), interval in intervals.items():
        if how == method:
            lines.setdefault(system, {})[share] = interval
    plots.label_efficiency(
        lines, result.folder / "label_efficiency.png", ylabel=main, title=f"{result.label}, {_named('', method)}"
    )


def track(result: EvaluateResult, opened: Opened) -> None:
    """Add scores and pictures to the run's own MLflow run, at the step of the model that was judged."""
    place = f"evaluation/{result.folder.name}"
    numbers: list[Sequence[object]] = []
    draws: list[Sequence[object]] = []
    for s in result.scores:
        row = (s.system, s.method, s.fraction)
        for name, value in sorted(s.scores.items()):
            ends = s.intervals.get(name)
            numbers.append((*row, name, value, *((None, None) if ends is None else (ends.low, ends.high))))
        draws += [(*row, number, value) for number, value in enumerate(s.draws)]
    with Journal(opened.folder.journal) as journal:
        journal.inputs([opened.input])
        columns = ("system", "method", "share of labels")
        table_columns = (*columns, "score", "value", "low", "high")
        described.table(journal, result.folder / "scores.table.json", place, table_columns, numbers)
        draw_columns = (*columns, "draw", result.main_score)
        described.table(journal, result.folder / "draws.table.json", place, draw_columns, draws)
    send(opened, compared(result), opened.series, result.folder)


def compared(result: EvaluateResult) -> dict[str, float]:
    """The dozen of numbers that one compares runs by: of the pretrained heads and of what they must beat, with the most
    and the fewest labels, the main score and what they gain; with the most the other scores of classes."""
    shares = sorted({s.fraction for s in result.scores})
    method = next((s.method for s in result.scores if s.system == "pretrained"), "probe")
    main, found = result.main_score, {}
    for share in dict.fromkeys((shares[-1], shares[0])):
        cells = {s.system: s for s in result.scores if s.method == method and s.fraction == share and s.scores}
        raw = strongest_raw(result.scores, share, main)
        at = f"{100 * share:g} percent of labels"
        own = cells.get("pretrained")
        if own is not None:
            found[f"{at}/{main} pretrained"] = own.scores[main]
            if raw is not None:
                found[f"{at}/gain over strongest raw"] = own.scores[main] - raw.scores[main]
            for other in (name for name in CLASS_SCORES if name != main and share == shares[-1]):
                if other in own.scores:
                    found[f"{at}/{other} pretrained"] = own.scores[other]
        if raw is not None:
            found[f"{at}/{main} strongest raw"] = raw.scores[main]
        for system in ("untrained", "pretrained + raw"):
            if system in cells:
                found[f"{at}/{main} {system.replace(' + ', ' with ')}"] = cells[system].scores[main]
    return described.few({name: value for name, value in found.items() if np.isfinite(value)})


def send(opened: Opened, values: Mapping[str, float], series: str, folder: Path) -> None:
    """Numbers and a folder into the run's own MLflow run; says what a server refuses of them."""
    with Journal(opened.folder.journal) as journal, MlflowSink(opened.folder.journal, opened.uri):
        begun = journal.position
        journal.metrics(opened.steps, values, series, remeasured=True)
        journal.artifact(folder, target=f"evaluation/{folder.name}")
    for line in refused(opened.folder.journal, begun):
        print(f"MLflow refused {line}", flush=True)
