"""What a trial is judged by: a probe on held-out labelled groups, or label-free measures, all of them for every trial.

A `Judge` holds the labelled training rows and the validation rows, read once; it measures a `Pretrainer` in its present
state. `OBJECTIVES` says by which measure a search may decide, and whether more is better.

    probe_accuracy, probe_uar, probe_macro_f1   logistic probe of the frozen representations, fitted on labelled
                                                training groups and judged on the validation groups (beside them
                                                probe_recall/<class>; of a trial at its end all of it again beside
                                                raw features, as with_raw/..., and what rows were taken for)
    recall@1, recall@5, recall@10               cross-modal retrieval, mean over the pairs of modalities
    effective_rank                              RankMe, mean over modalities
    alignment, uniformity, and their sum        Wang & Isola 2020, means over pairs and modalities; less is better
    cluster_usage                               perplexity of a k-means of the representations over its K, up to 1

Retrieval, alignment and uniformity are measured in the space that modalities share: the projection, or the
representation of a model that has no projection. Test groups are never read (`refuse_test_rows`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from conclugen import Batch, Pretrainer
from conclugen.common import uris
from conclugen.common.names import nearest
from conclugen.evaluation import health
from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.config import CONSTANTS, ComparisonConfig, MeasureConfig, ProbeConfig
from conclugen.evaluation.features import fuse, standardise
from conclugen.evaluation.judge import Predictions, evaluate, mean_confusion, raw_baselines, scores
from conclugen.evaluation.protocol import Fold, Protocol, Target, label_draw
from conclugen.evaluation.solvers import LayerBlock
from conclugen.fields import choose
from conclugen.kmeans import cosine_kmeans, draw_rows
from ray_jobs.extraction.plan import stored_layers
from ray_jobs.roles import GROUP, Units, refuse_shared
from ray_jobs.run_config import DataConfig
from ray_jobs.source import open_reader
from ray_jobs.training.validation import spread_rows
from shards import Manifest, Rows, View
from shards.planning.view import ROW, IndexValues
from shards.reading.stream import RowReader
from tuning.ledger import WITH_RAW

LABELLED = ("probe_accuracy", "probe_uar", "probe_macro_f1")
PAIRED = ("recall@1", "recall@5", "recall@10", "alignment", "alignment_uniformity")
OBJECTIVES: dict[str, str] = {
    **dict.fromkeys(LABELLED, "max"),
    **dict.fromkeys(("recall@1", "recall@5", "recall@10", "effective_rank", "cluster_usage"), "max"),
    **dict.fromkeys(("alignment", "uniformity", "alignment_uniformity"), "min"),
}
_SCORES = {"probe_accuracy": "accuracy", "probe_uar": "uar", "probe_macro_f1": "f1_macro"}
# `probe_confusion/<i>/<j>`: held-out rows of the i-th class that were taken for the j-th; none is left out.
CONFUSION = "probe_confusion/"
_MEANS = ("recall@1", "recall@5", "recall@10", "alignment", "uniformity", "effective_rank")
# Enough for steady figures; retrieval and rank cost grows with its square and cube.
_MOST_ROWS = 2048
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Labelled:
    """Rows with a class: target (N,) int64 and group (N,) int64, unit of the split, of the rows that have the label."""

    rows: Rows
    target: np.ndarray
    group: np.ndarray


@dataclass(frozen=True)
class Judge:
    """Measures a pretrainer on held-out rows. Plain arrays inside: it travels through an object store.

    train: labelled training rows, None where there is no label. validation: the held-out rows. labelled: of these, the
    rows that have the label. layers: modality -> columns of it that are layers of an encoder side by side.
    """

    config: MeasureConfig
    classes: tuple[str, ...]
    train: Labelled | None
    validation: Rows
    labelled: Labelled | None
    layers: Mapping[str, Sequence[LayerBlock]] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        data: DataConfig,
        manifest: Manifest,
        modalities: tuple[str, ...],
        config: MeasureConfig,
        completed: Callable[[Rows], Rows] = lambda rows: rows,
    ) -> Judge:
        """Read the labelled part of `data.view` and `data.validation_view`, once. completed: makes rows of one corpus
        what they are in a mixture.

        Raises:
            ValueError: no validation view, an unknown view or label, a label that is not a class, groups on both sides,
                a view that touches test groups, or a class without labelled training rows.
        """
        if data.validation_view is None:
            raise ValueError("data.validation_view: none given; a search needs held-out rows to judge its trials on")
        used = {"data.view": data.view, "data.validation_view": data.validation_view}
        refuse_test_rows(manifest, used, config.test_views, data.split_unit)
        labels = () if data.label is None else (data.label,)
        try:
            held_out = View.open(manifest, data.validation_view)
        except ValueError as error:
            raise ValueError(f"data.validation_view: {error}; a search needs held-out rows to judge on") from None
        reader = open_reader(data, manifest, held_out, modalities, labels)
        if data.label is None:
            return cls(config, (), None, completed(spread_rows(reader, _MOST_ROWS)), None)
        label = manifest.schema.label(data.label)
        if label.kind != "class":
            raise ValueError(f"data.label: {data.label!r} is {label.kind}; a probe's objective needs a class label")
        validation = completed(read_all(reader))
        train = completed(read_all(reader.over(View.open(manifest, data.view))))
        split = Units.read(manifest, data.split_unit, "data.split_unit")
        taught, judged = (_with_label(rows, data.label, split) for rows in (train, validation))
        where = f"data.view {data.view!r} and data.validation_view {data.validation_view!r}"
        refuse_shared(manifest, split, taught.rows.row, judged.rows.row, where=where, option="--data.split-unit")
        layers = stored_layers(manifest, data.modalities, modalities)
        drawn, spaced = _drawn(taught, config), spread(validation, _MOST_ROWS)
        judge = cls(config, tuple(label.classes), drawn, spaced, judged, layers)
        judge._check(data)
        return judge

    def _check(self, data: DataConfig) -> None:
        assert self.train is not None and self.labelled is not None
        if not len(self.labelled.rows):
            raise ValueError(f"data.validation_view: no row of {data.validation_view!r} has the label {data.label!r}")
        missing = [name for k, name in enumerate(self.classes) if not (self.train.target == k).any()]
        if missing:
            raise ValueError(
                f"data.view {data.view!r}: no labelled row of class {missing[0]!r}; give a larger "
                "measure.label_fraction, or a view that has it"
            )

    def check_objective(self, name: str, modalities: Sequence[int]) -> None:
        """Raise ValueError unless every trial measures `name`; modalities: how many each trial may have."""
        if name not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            raise ValueError(f"objective: {name!r} is measured by no trial{nearest(name, OBJECTIVES)}; known: {known}")
        if name in LABELLED and self.train is None:
            raise ValueError(f"objective: {name!r} needs labels; give data.label, or a label-free objective")
        if name in PAIRED and min(modalities) < 2:
            raise ValueError(f"objective: {name!r} compares modalities, and space.modalities has trials with one only")

    @torch.no_grad()
    def measure(self, pretrainer: Pretrainer, ended: bool = False) -> dict[str, float]:
        """Every measure by name: those of a pretraining run's validation, their means, and the probe's scores; of a
        trial that has ended, the probe's beside raw features and its confusion too."""
        modalities = pretrainer.config.modalities
        batch = Batch.of(_of(self.validation, modalities), device=pretrainer.device, dtype=pretrainer.dtype)
        representations = pretrainer.embed(batch)
        shared = pretrainer.project(batch) or representations
        present = {m: batch.present[m] for m in modalities}
        measures = health.report(representations, shared, present)
        measures |= _means(measures)
        measures["cluster_usage"] = self._cluster_usage(pretrainer.config.seed, representations, present)
        if self.train is not None and self.labelled is not None:
            measures |= self.probe(pretrainer, ended)
        return measures

    def _cluster_usage(
        self, seed: int, representations: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor]
    ) -> float:
        """Perplexity of the clusters' shares, over K: 1 where all are equally large."""
        fused, usable = fuse(
            {m: x.double().cpu().numpy() for m, x in representations.items()},
            present={m: x.cpu().numpy() for m, x in present.items()},
        )
        pool = torch.from_numpy(fused)
        valid = torch.from_numpy(usable)
        K = self.config.clusters
        start, reseed = (draw_rows(pool, valid, K, seed, step) for step in (0, 1))
        labels = cosine_kmeans(pool, valid, start, reseed_KC=reseed, max_iterations=20).labels
        return float(health.cluster_usage(labels[valid], K)["perplexity"]) / K

    def probe(self, pretrainer: Pretrainer, ended: bool = False) -> dict[str, float]:
        """Scores of a probe that learns from the labelled training rows which have a representation; none where there
        is not a label. ended: see `measure`."""
        if self.train is None or self.labelled is None:
            return {}
        train, held_out = self.train, self.labelled
        features, usable = self._embed(pretrainer, train.rows)
        judged, seen = self._embed(pretrainer, held_out.rows)
        if not np.isfinite(features).all() or not np.isfinite(judged).all():
            raise FloatingPointError("representations are not finite")
        whole = np.concatenate([features, judged])
        modalities = pretrainer.config.modalities
        blocks = Blocks.plain({self.config.fusion: whole})
        if self.config.fusion == "concat" and len(modalities) > 1:  # heads are equally wide
            parts = np.split(whole, len(modalities), axis=1)
            blocks = Blocks.scaled(dict(zip(modalities, parts, strict=True)), self.config.block_scales)
        protocol = self._protocol(train, held_out, usable, seen)
        (found,) = evaluate(protocol, {"trial": blocks})
        named = self._named(found)
        if not ended:
            return {name: value for name, value in named.items() if not name.startswith(CONFUSION)}
        if raw := self._raw(train, held_out, modalities):
            (beside,) = evaluate(protocol, {"trial + raw": Blocks.with_raw(whole, raw)})
            named |= {f"{WITH_RAW}{n}": v for n, v in self._named(beside).items() if not n.startswith(CONFUSION)}
        return named

    def rows_beside(self) -> dict[tuple[str, str], dict[str, float]]:
        """(system, method) -> scores of the constant and of each row of raw features that `config.baselines` ask for,
        as a trial's probe has them; none where there is no label. They depend on no trial."""
        if self.train is None or self.labelled is None:
            return {}
        train, held_out = self.train, self.labelled
        both = (train.rows, held_out.rows)
        usable, seen = (np.any(list(rows.present.values()), axis=0) for rows in both)
        protocol = self._protocol(train, held_out, usable, seen)
        raw = self._raw(train, held_out, tuple(train.rows.features))
        for unseen in set(train.rows.features) - set(raw):
            print(f"raw rows are without {unseen}: no labelled training row has it", flush=True)
        wanted = ComparisonConfig(methods=("probe",), baselines=self.config.baselines)
        nothing = Blocks.plain({"nothing": np.empty((protocol.rows, 0))})
        constants = CONSTANTS["class"] if "constant" in wanted.wanted else ()
        rows: list[tuple[str, str, Any]] = [(name, name, nothing) for name in constants]
        layers = {m: blocks for m, blocks in self.layers.items() if m in raw}
        for systems, methods in raw_baselines(raw, wanted, layers) if raw else ():
            rows += [(name, method, systems[name]) for name, method in itertools.product(systems, methods)]
        found = {}
        for name, method, blocks in rows:
            try:
                (made,) = evaluate(protocol, {name: blocks}, (method,))
            except ValueError as error:  # the search continues without this row
                print(f"raw row {name}, {method}: not judged: {uris.scrub(error)}", flush=True)
                continue
            found[name, method] = self._named(made)
        return found

    def _raw(self, train: Labelled, held_out: Labelled, modalities: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """(N, D_m) raw features of the training rows and the held-out rows behind them, standardised on the former; of
        the modalities that these have."""
        known = [m for m in modalities if train.rows.present[m].any()]
        both = (train.rows, held_out.rows)
        features = {m: np.concatenate([rows.features[m] for rows in both]) for m in known}
        present = {m: np.concatenate([rows.present[m] for rows in both]) for m in known}
        return standardise(features, present, np.arange(len(train.target)))

    def _named(self, found: Predictions) -> dict[str, float]:
        """Scores, recall of each class and confusion of a probe, as they are called here."""
        of_all, matrix = scores(found), mean_confusion(found.protocol, found.values)
        recalls = {f"probe_{name}": value for name, value in of_all.items() if name.startswith("recall/")}
        taken = {f"{CONFUSION}{i}/{j}": float(n) for (i, j), n in np.ndenumerate(matrix) if n}
        return {name: of_all[score] for name, score in _SCORES.items()} | recalls | taken

    def _protocol(
        self, train: Labelled, held_out: Labelled, usable: NDArray[np.bool_], seen: NDArray[np.bool_]
    ) -> Protocol:
        """Held-out rows behind the training rows; usable, seen: those of each that have any modality."""
        rows = len(train.target)
        fold = Fold(0, np.arange(rows), rows + np.flatnonzero(seen), labelled={1.0: (np.flatnonzero(usable),)})
        return Protocol(
            "data.view and data.validation_view",
            Target("label", "class", np.concatenate([train.target, held_out.target]), self.classes),
            np.concatenate([train.group, held_out.group]),
            (fold,),
            ProbeConfig(
                self.config.strengths,
                self.config.inner_folds,
                scaling="labelled",
                class_weights=self.config.class_weights,
                select_by=self.config.select_by,
            ),
        )

    def _embed(self, pretrainer: Pretrainer, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """(N, R') representations and which rows have any, in blocks that fit memory."""
        modalities = pretrainer.config.modalities
        own = _of(rows, modalities)
        blocks = [pretrainer.embed(own.part(at, at + _BLOCK_ROWS)) for at in range(0, len(own), _BLOCK_ROWS)]
        whole = {m: torch.cat([block[m] for block in blocks]).double().cpu().numpy() for m in modalities}
        return fuse(whole, self.config.fusion, {m: rows.present[m] for m in modalities})


def without_confusion(measures: Mapping[str, float], classes: Sequence[str]) -> tuple[dict[str, float], dict[str, Any]]:
    """Measures apart from the probe's confusion, and this as a ledger's groups: `class_rows` and `confusion/<class>`,
    class -> rows; empty where there is none."""
    rest = {name: value for name, value in measures.items() if not name.startswith(CONFUSION)}
    groups: dict[str, dict[str, float]] = {f"confusion/{name}": {} for name in classes}
    for name, value in measures.items():
        if name.startswith(CONFUSION):
            i, j = (int(part) for part in name.removeprefix(CONFUSION).split("/"))
            groups[f"confusion/{classes[i]}"][classes[j]] = value
    if len(rest) == len(measures):
        return rest, {}
    rows = {name: sum(groups[f"confusion/{name}"].values()) for name in classes}
    return rest, {"class_rows": rows, **groups}


def refuse_test_rows(
    manifest: Manifest, used: Mapping[str, str], test_views: Sequence[str] = (), split_unit: str = GROUP
) -> None:
    """Raise ValueError if a view that a search uses is a test view, or shares units of the split (or rows) with one.

    used: option that names it -> view. Test views are those given, and all whose name has `test` in it.
    """
    named = [view for view in View.names(manifest) if "test" in view.lower()]
    for option, view in used.items():
        if "test" in view.lower() or view in test_views:
            raise ValueError(
                f"{option}: {view!r} is a test view: what a search has seen can't judge its result; search on training "
                "and validation groups"
            )
    tests = [View.open(manifest, name) for name in dict.fromkeys((*test_views, *named))]
    if not tests:
        return
    several = manifest.schema.grouped if split_unit == GROUP else split_unit != ROW
    codes = IndexValues.read(manifest, split_unit).codes if several else None
    for option, name in used.items():
        for test in tests:
            ours, theirs = _mask(View.open(manifest, name)), _mask(test)
            shared = int((ours & theirs).sum())
            if shared:
                raise ValueError(
                    f"{option}: {name!r} overlaps the test view {test.name!r} in {shared} rows; search on one without "
                    "them"
                )
            if codes is not None:
                groups = np.intersect1d(codes[ours & (codes >= 0)], codes[theirs & (codes >= 0)])
                if len(groups):
                    raise ValueError(
                        f"{option}: {name!r} shares {len(groups)} group(s) of {split_unit!r} with the test view "
                        f"{test.name!r}; split by it, or name the unit that the split divides: --data.split-unit"
                    )


def read_all(reader: RowReader) -> Rows:
    """All rows of the reader's view, in their order."""
    return reader.read_ranges([(shard, 0, int(count)) for shard, count in enumerate(reader.counts) if count])


def spread(rows: Rows, most: int) -> Rows:
    """At most `most` of the rows, evenly spaced."""
    return rows if len(rows) <= most else take(rows, np.linspace(0, len(rows) - 1, most).astype(np.int64))


def take(rows: Rows, index: np.ndarray) -> Rows:
    """The rows at these places, copied."""
    return Rows(
        {m: x[index] for m, x in rows.features.items()},
        {m: x[index] for m, x in rows.present.items()},
        rows.row[index],
        {name: x[index] for name, x in rows.labels.items()},
        None if rows.group is None else rows.group[index],
        corpus=None if rows.corpus is None else rows.corpus[index],
    )


def _of(rows: Rows, modalities: Sequence[str]) -> Rows:
    """The same rows with these modalities only, without labels; arrays are shared."""
    features, present = ({m: whole[m] for m in modalities} for whole in (rows.features, rows.present))
    return Rows(features, present, rows.row, {}, rows.group, corpus=rows.corpus)


def _with_label(rows: Rows, label: str, split: Units) -> Labelled:
    known = np.flatnonzero(rows.labels[label] >= 0)
    kept = take(rows, known)
    return Labelled(kept, kept.labels[label], split.ids(kept.row))


def _drawn(labelled: Labelled, config: MeasureConfig) -> Labelled:
    if not len(labelled.target):
        return labelled
    index = label_draw(
        np.arange(len(labelled.target)), config.label_fraction, 127, config.draw, labelled.target, config.inner_folds
    )
    return Labelled(take(labelled.rows, index), labelled.target[index], labelled.group[index])


def _means(measures: Mapping[str, float]) -> dict[str, float]:
    """Means over modalities or pairs under the bare name, and the sum of alignment and uniformity."""
    found: dict[str, float] = {}
    for name in _MEANS:
        values = [value for key, value in measures.items() if key.partition("/")[0] == name]
        if values:
            found[name] = float(np.mean(values))
    if "alignment" in found and "uniformity" in found:
        found["alignment_uniformity"] = found["alignment"] + found["uniformity"]
    return found


def _mask(view: View) -> np.ndarray:
    masks = [view.mask(shard) for shard in range(len(view.counts))]
    return np.concatenate(masks) if masks else np.zeros(0, bool)


def direction(objective: str) -> str:
    """`max` or `min`. Raises ValueError for an unknown objective."""
    choose("objective", objective, OBJECTIVES)
    return OBJECTIVES[objective]


def identity(objective: str, data: DataConfig, manifest: Manifest, config: MeasureConfig) -> dict[str, Any]:
    """What decides a measured number besides the trained model: it must agree for results to be comparable. data: of
    the corpus that is judged on, where there are several."""
    return {
        "objective": objective,
        "manifest": manifest.digest,
        "label": data.label,
        "view": View.open(manifest, data.view).digest,
        "validation": None if data.validation_view is None else View.open(manifest, data.validation_view).digest,
        "label_fraction": config.label_fraction,
        "draw": config.draw,
        "strengths": list(config.strengths),
        "inner_folds": config.inner_folds,
        "fusion": config.fusion,
        "clusters": config.clusters,
    } | {
        # What earlier versions did not have, at its default: sweeps from before continue.
        name: value
        for name, value, usual in (
            ("class_weights", config.class_weights, "none"),
            ("select_by", config.select_by, "accuracy"),
            ("block_scales", config.block_scales, "plain"),
            ("split_unit", data.split_unit, GROUP),
            ("speaker", data.speaker, GROUP),
        )
        if value != usual
    }
