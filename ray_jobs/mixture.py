"""Opens the corpora of `data.sources`: their manifests and views, one reader over them, and the mixed plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conclugen import PretrainConfig
from conclugen.corpora import by_corpus
from ray_jobs.run_config import DataConfig, SourceConfig
from ray_jobs.source import Source, data_set, rendered, rounding
from shards import Manifest, Reader, View
from shards.errors import CorruptionLog, CorruptSample, ShardError
from shards.planning.mixed_plan import MixedPlan
from shards.planning.shares import whole_weights
from shards.reading.mixed_reader import MixedReader
from shards.reading.rows import Rows
from shards.tools.stats import Moments, check_present, running_moments

WEIGHTS = "data.weights"
"""Of a run's identity, the one field that may change: for steps that are still to come."""


@dataclass(frozen=True)
class Corpus:
    """One source: `reader` has the modalities of the run that the corpus has."""

    name: str
    source: SourceConfig
    manifest: Manifest
    view: View
    reader: Reader


MeanAndDeviation = tuple[NDArray[np.float64], NDArray[np.float64]]
Fitted = Mapping[str, Mapping[str, Moments]]
"""Corpus -> modality -> moments of the rows that have it."""


@dataclass(frozen=True)
class Corpora:
    """The sources of `data.sources` as they are, whatever their weights; in the order of their names."""

    corpora: tuple[Corpus, ...]
    reader: MixedReader

    @classmethod
    def open(
        cls, data: DataConfig, modalities: tuple[str, ...], quarantine: Callable[[CorruptSample], None] | None = None
    ) -> Corpora:
        """Open the training side of every source; `quarantine` is called with every corrupt sample that is met.

        Raises ValueError as `Mixture.open` does, but for what depends on weights.
        """
        assert data.sources
        corpora = tuple(_opened(name, source, modalities) for name, source in sorted(data.sources.items()))
        _refuse_the_same_twice(corpora)
        reader = MixedReader(
            {corpus.name: corpus.reader for corpus in corpora},
            {name: source.speakers for name, source in data.sources.items() if source.speakers is not None},
            data.max_corrupt_share,
            quarantine,
        )
        return cls(corpora, reader)

    def plan(self, data: DataConfig, config: PretrainConfig) -> MixedPlan:
        """The order of rows by the weights that `data` has. Raises ValueError for a corpus smaller than its share of a
        batch."""
        return MixedPlan(
            {corpus.name: corpus.view.counts for corpus in self.corpora},
            stages_of(data, {corpus.name: corpus.view.rows for corpus in self.corpora}),
            seed=config.seed,
            global_batch=config.global_batch,
            chunk_rows=data.chunk_rows,
            epoch_rows=_epoch_rows(data, self.corpora),
        )

    def inputs(self) -> list[dict[str, object]]:
        """As `Source.inputs`, one for each corpus."""
        return [data_set(str(c.source.folder), c.view.digest, c.view.rows, name=c.name) for c in self.corpora]

    def fitted(self, most: int, seed: int) -> Fitted:
        """Of at most so many rows of each corpus, drawn by the seed."""
        return {corpus.name: running_moments(corpus.reader, most, seed) for corpus in self.corpora}

    def moments(self, fitted: Fitted, given: Mapping[str, int]) -> dict[str, MeanAndDeviation]:
        """Mean and deviation of each modality, (D_m,) both, of rows of which each corpus gives so many; and of each
        corpus by itself, under `conclugen.corpora.by_corpus`."""
        found: dict[str, MeanAndDeviation] = {}
        for modality in self.reader.modalities:
            having = {name: m[modality] for name, m in fitted.items() if modality in m and m[modality].count}
            if not having:
                raise ValueError(
                    f"modality {modality!r} is missing in every row that was read of {', '.join(fitted)}; leave it "
                    "out, or give rows that have it"
                )
            found[modality] = joined(having, {name: given[name] * m.share for name, m in having.items()})
            for name, moments in having.items():
                found[by_corpus(modality, name)] = moments.mean, moments.std
        return found

    def identity(self) -> dict[str, object]:
        """Which rows of which corpora, as `Mixture.identity` has them."""
        identity: dict[str, object] = {}
        for corpus in self.corpora:
            own = {
                "manifest": corpus.manifest.digest,
                "view": corpus.view.digest,
                "modalities": {name: list(columns) for name, columns in corpus.reader.modalities.items()},
                "speaker": corpus.source.speaker,
                "speakers": corpus.source.speakers,
            }
            identity |= {f"data.sources.{corpus.name}.{field}": value for field, value in own.items()}
        return identity

    def tags(self) -> dict[str, str]:
        """What a run is found by in MLflow."""
        return {
            "dataset": "+".join(corpus.name for corpus in self.corpora),
            "manifest_digest": " ".join(corpus.manifest.digest for corpus in self.corpora),
            "view_digest": " ".join(corpus.view.digest for corpus in self.corpora),
        }

    def completed(self, name: str, rows: Rows) -> Rows:
        """Rows of one corpus with all modalities of the mixture, those that it lacks missing, and with its number."""
        size = len(rows)
        return Rows(
            {m: rows.features.get(m, np.zeros((size, width), np.float32)) for m, width in self.reader.widths.items()},
            {m: rows.present.get(m, np.zeros(size, bool)) for m in self.reader.widths},
            rows.row,
            rows.labels,
            rows.group,
            corpus=np.full(size, self.reader.names.index(name)),
        )


@dataclass(frozen=True)
class Mixture:
    """What `ray_jobs.source.Source` is for one folder, for several. `corpora` are in the order of their names."""

    opened: Corpora
    plan: MixedPlan
    data: DataConfig
    config: PretrainConfig

    @classmethod
    def open(
        cls, data: DataConfig, config: PretrainConfig, quarantine: Callable[[CorruptSample], None] | None = None
    ) -> Mixture:
        """Open the training side of `data.sources`; `quarantine` is called with every corrupt sample that is met.

        Raises:
            ValueError: in one line with the corpus: no such folder, view, column or speaker column; a corpus without
                any modality of the run, or with one of another width; two sources of the same data; a corpus smaller
                than its share of a batch. Or a modality of the run that no corpus has.
        """
        opened = Corpora.open(data, config.required_modalities, quarantine)
        config.check_serves(opened.reader.widths)
        config.check_speakers(opened.reader.grouped)
        return cls(opened, opened.plan(data, config), data, config)

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        return self.opened.corpora

    @property
    def reader(self) -> MixedReader:
        return self.opened.reader

    def check(self) -> None:
        """Raise ValueError for a modality that no row of any corpus has."""
        lacking = []
        for modality in self.reader.modalities:
            having = [corpus for corpus in self.corpora if modality in corpus.reader.modalities]
            for corpus in having:
                try:
                    check_present(_only(corpus, modality))
                    break
                except ValueError:
                    continue
            else:
                lacking.append(modality)
        if lacking:
            raise ValueError(
                f"modality {', '.join(map(repr, lacking))}: found in no row of {', '.join(self.reader.names)}, "
                "expected in one at least; leave it out of pretrain.modalities, or give rows that have it"
            )

    def moments(self) -> dict[str, MeanAndDeviation]:
        """As `Corpora.moments`, of rows as the whole run sees them: each corpus by its share."""
        fitted = self.opened.fitted(self.data.standardization_rows, self.plan.seed)
        given = self.plan.rows_before(self.plan.start_of_epoch(self.config.epochs))
        return self.opened.moments(fitted, given)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch of the mixture, for the schedule."""
        return self.plan.steps_per_epoch

    def identity(self) -> dict[str, object]:
        """What must agree when a run is resumed: which rows of which corpora, by which weights, in which order. Weights
        of steps that are still to come may differ (`refuse_other_history`)."""
        identity = self.opened.identity()
        identity[WEIGHTS] = {str(step): dict(weights) for step, weights in self.plan.weights.items()}
        return identity | {"data.plan": self.plan.unweighted_digest} | rounding(self.data)

    def model_info(self) -> dict[str, object]:
        """What an exported model says of the corpora that it has seen: data, views, and the rows of each."""
        given = self.plan.rows_before(self.plan.start_of_epoch(self.config.epochs))
        corpora = {
            corpus.name: {
                "folder": Path(corpus.source.folder).name,
                "manifest": corpus.manifest.digest,
                "view": corpus.source.view,
                "rows": corpus.view.rows,
                "rows_seen": given[corpus.name],
                "modalities": {name: list(columns) for name, columns in corpus.reader.modalities.items()},
            }
            for corpus in self.corpora
        }
        info: dict[str, object] = {"data": self.identity(), "corpora": corpora}
        info |= rendered([corpus.manifest for corpus in self.corpora])
        # Which encoders made the features, where all corpora say the same, so that new clips go through them.
        made = [corpus.manifest.info.get("features") for corpus in self.corpora]
        alike = all(corpus.reader.modalities == self.corpora[0].reader.modalities for corpus in self.corpora)
        if alike:
            info["modalities"] = {name: list(columns) for name, columns in self.corpora[0].reader.modalities.items()}
        return info | ({"features": made[0]} if made[0] is not None and all(m == made[0] for m in made) else {})

    def inputs(self) -> list[dict[str, object]]:
        return self.opened.inputs()

    def tags(self) -> dict[str, str]:
        """What a run is found by in MLflow."""
        return self.opened.tags()

    def corruption_logs(self, most: float) -> dict[str, tuple[CorruptionLog, Callable[[int], int]]]:
        """Corpus -> a log that judges its corrupt samples by its own rows, and the rows read of it before a step.

        most: share of its rows beyond which a log raises CorruptionError."""

        def counted(name: str) -> Callable[[int], int]:
            return lambda step: self.plan.rows_before(step)[name]

        return {corpus.name: (CorruptionLog(corpus.view.rows, most), counted(corpus.name)) for corpus in self.corpora}

    def describe(self) -> str:
        """Shares of the rows, for the line that a run begins with."""
        stages = [(step, self.plan.shares_at(step)) for step in sorted(self.plan.weights)]
        told = [
            ", ".join(f"{name} {share:.1%}" for name, share in shares.items()) + (f" from step {step}" if step else "")
            for step, shares in stages
        ]
        return f"; corpora: {'; '.join(told)}"


def weights_differ_from(there: Mapping[str, object], here: Mapping[str, object]) -> int | None:
    """The first step from which two identities of a run have other weights; None where they have the same."""
    one, other = (identity.get(WEIGHTS) for identity in (there, here))
    stages = (one if isinstance(one, Mapping) else {}, other if isinstance(other, Mapping) else {})
    return min(
        (int(step) for step in {*stages[0], *stages[1]} if stages[0].get(step) != stages[1].get(step)), default=None
    )


def refuse_other_history(there: Mapping[str, object], here: Mapping[str, object], reached: int) -> None:
    """Raise ValueError where two identities of a run have other weights in steps before `reached`, which it has done:
    weights are changed for steps to come. Those that it begins with stay: its standardisation was fitted by them."""
    step = weights_differ_from(there, here)
    if step is not None and step < max(reached, 1):
        where = f"data.weights_from.{step}" if step else "data.sources: weights"
        found, expected = (
            stages.get(str(step), "none") if isinstance(stages, Mapping) else "none"
            for stages in (here.get(WEIGHTS), there.get(WEIGHTS))
        )
        why = f"the run is at step {reached}" if step else "a run begins with them"
        raise ValueError(
            f"{where}: found {found}, expected {expected} as before, because {why}; keep the earlier weights, "
            f"and give others from step {max(reached, 1)} on (data.weights_from), or choose another run.name"
        )


AnySource = Source | Mixture


def open_source(
    data: DataConfig, config: PretrainConfig, quarantine: Callable[[CorruptSample], None] | None = None
) -> AnySource:
    """What `data` names: one folder, or several corpora. Raises ValueError as they do."""
    return (Mixture if data.sources else Source).open(data, config, quarantine)


def joined(moments: Mapping[str, Moments], weights: Mapping[str, float]) -> MeanAndDeviation:
    """Mean and population deviation of a mixture: of parts of these moments, each of this weight.

    The mixture's variance is the mean of the parts' variances plus the variance of their means.
    """
    total = sum(weights.values())
    share = {name: weight / total for name, weight in weights.items()}
    mean = np.sum([share[name] * part.mean for name, part in moments.items()], axis=0)
    variance = np.sum([share[n] * (part.std**2 + (part.mean - mean) ** 2) for n, part in moments.items()], axis=0)
    return mean, np.sqrt(variance)


def available_widths(data: DataConfig) -> dict[str, int]:
    """Width of every modality that any source can serve; of one that has several, which cannot be mixed, the first."""
    found: dict[str, int] = {}
    for name, source in sorted((data.sources or {}).items()):
        manifest = _manifest(name, source)
        for modality, columns in manifest.schema.resolve(source.modalities).items():
            found.setdefault(modality, sum(manifest.schema.column(column).width for column in columns))
    return found


def stages_of(data: DataConfig, rows: Mapping[str, int]) -> dict[int, dict[str, int]]:
    """First step -> corpus -> whole weight. rows: of each corpus's view, by which `epochs` become weights."""
    assert data.sources
    first = {
        name: Fraction(str(source.weight))
        if source.weight is not None
        else Fraction(str(1 if source.epochs is None else source.epochs)) * rows[name]
        for name, source in data.sources.items()
    }
    stages: dict[int, dict[str, Fraction]] = {0: first}
    for step, weights in (data.weights_from or {}).items():
        stages[int(step)] = {name: Fraction(str(weights[name])) for name in data.sources}
    names = sorted(data.sources)
    return {
        step: dict(zip(names, whole_weights([weights[name] for name in names]), strict=True))
        for step, weights in stages.items()
    }


def _epoch_rows(data: DataConfig, corpora: tuple[Corpus, ...]) -> int:
    """Rows of an epoch of the mixture: those of all corpora, each as often as its `epochs` say."""
    epochs = [1 if c.source.epochs is None else Fraction(str(c.source.epochs)) for c in corpora]
    return int(sum(times * corpus.view.rows for times, corpus in zip(epochs, corpora, strict=True)))


def _opened(name: str, source: SourceConfig, modalities: tuple[str, ...]) -> Corpus:
    where = f"data.sources.{name}"
    manifest = _manifest(name, source)
    try:
        view = View.open(manifest, source.view)
        composition = manifest.schema.resolve(source.modalities)
    except ShardError:
        raise  # it names the folder, and tells whether another try may succeed
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    own = {m: composition[m] for m in modalities if m in composition}
    if not own:
        raise ValueError(
            f"{where}: found modalities {', '.join(composition)}, expected one of {', '.join(modalities)}; name its "
            f"columns, {where}.modalities={{{modalities[0]}: [COLUMN]}}, or leave the corpus out"
        )
    try:
        manifest.schema.check_group_column(source.speaker)
    except ValueError as error:
        raise ValueError(f"{where}.speaker: {error}") from None
    reader = Reader(manifest, view, own, (), max_corrupt_share=1.0, group=source.speaker)
    return Corpus(name, source, manifest, view, reader)


def _manifest(name: str, source: SourceConfig) -> Manifest:
    where = f"data.sources.{name}"
    try:
        return Manifest.open(source.folder)
    except ShardError:
        raise
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}") from None


def _only(corpus: Corpus, modality: str) -> Reader:
    columns = {modality: corpus.reader.modalities[modality]}
    return Reader(corpus.manifest, corpus.view, columns, (), max_corrupt_share=1.0)


def _refuse_the_same_twice(corpora: tuple[Corpus, ...]) -> None:
    seen: dict[str, str] = {}
    for corpus in corpora:
        other = seen.setdefault(corpus.manifest.digest, corpus.name)
        if other != corpus.name:
            raise ValueError(
                f"data.sources.{corpus.name}: found the data of {other!r} again (digest {corpus.manifest.digest}), "
                f"expected each data set once; give {other!r} a view with the rows of both, or more weight"
            )
