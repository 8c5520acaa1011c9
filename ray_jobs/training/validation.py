"""Training health on held-out rows, measured by rank 0 at every checkpoint, beside training: `beside` says how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from conclugen import Batch, PretrainConfig, Pretrainer
from conclugen.common.names import did_you_mean
from conclugen.evaluation import health
from conclugen.evaluation.neighbours import neighbour_vote
from conclugen.evaluation.protocol import own_groups
from conclugen.tasks import Task, registry
from conclugen.training.checkpoint import Snapshot
from conclugen.training.embedding import Frozen
from ray_jobs.mixture import AnySource, Corpus, Mixture
from ray_jobs.run_config import DEFAULT_VALIDATION_VIEW, DataConfig
from ray_jobs.source import held_out_view, note_no_validation, open_reader
from shards import Manifest, Reader, Rows, View
from shards.reading.stream import RowReader

# Enough for steady figures; retrieval and rank cost grows with its square and cube.
_MOST_ROWS = 2048
# Rows read together from one shard, where shards have as many.
_RUN = 32
_NEIGHBOURS = 10


class Embeds(Protocol):
    """What rows are embedded with: a `Pretrainer`, or a model of a moment (`conclugen.training.embedding.Frozen`)."""

    device: torch.device
    dtype: torch.dtype

    def embed(self, batch: Batch) -> dict[str, torch.Tensor]: ...

    def project(self, batch: Batch) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Embedded:
    """Held-out rows and what a model makes of them: representations (B, R) and projections (B, P) by modality."""

    batch: Batch
    representations: dict[str, torch.Tensor]
    projections: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Told:
    """The tasks of a model, and what they tell of the last training step."""

    tasks: tuple[Task, ...]
    measures: dict[str, float]


def told(pretrainer: Pretrainer) -> Told:
    """What tasks tell now; by the next step it is another one."""
    tasks = tuple(pretrainer.model.task(name) for name in pretrainer.model.tasks)
    return Told(tasks, {name: value for task in tasks for name, value in task.measures().items()})


class Validation:
    """Health measures, and a quick nearest-neighbour accuracy where the data has a class label.

    Args:
        rows: The held-out rows, read once.
        label: Class label for the nearest-neighbour accuracy; None: label-free measures only.
        classes: Number of its classes.
    """

    def __init__(self, rows: Rows, label: str | None, classes: int):
        self._rows = rows
        self._label = label
        self._classes = classes
        # Pairs of modalities that the last look did not find related. It takes two in a row to warn: of few rows, one
        # in many looks says so by chance, and training begins there.
        self._unrelated: set[str] = set()

    @classmethod
    def open(cls, data: DataConfig, manifest: Manifest, modalities: tuple[str, ...]) -> Validation | None:
        """The validation rows that `data` names, up to 2048 of them, spread over the view; None where there is no such
        view (`held_out_view`).

        Raises:
            ValueError: unknown view, modality or label, or a label that is not a class.
        """
        view = held_out_view(data, manifest)
        if view is None:
            return None
        reader, classes = _open_reader(data, manifest, view, modalities)
        rows = spread_rows(reader, _MOST_ROWS)
        for sample in reader.corrupt:
            print(f"left out of validation: sample {sample.key!r} of {sample.shard}: {sample.reason}", flush=True)
        return cls(rows, data.label, classes)

    def pairs(self) -> dict[str, int]:
        """`<a>-<b>` of each two modalities -> held-out rows that have both, as retrieval counts them."""
        there = self._rows.present
        names = list(there)
        return {f"{a}-{b}": int((there[a] & there[b]).sum()) for i, a in enumerate(names) for b in names[i + 1 :]}

    def chances(self) -> dict[str, float]:
        """Measure -> what it is where nothing has been learned: of retrieval that of a random order, of the vote among
        neighbours that of the most frequent class."""
        found = {f"recall@{k}/{pair}": min(1.0, k / n) for pair, n in self.pairs().items() if n for k in (1, 5, 10)}
        target = self._rows.labels[self._label] if self._label is not None else np.empty(0, np.int64)
        if (target >= 0).any():
            counts = np.bincount(target[target >= 0])
            found["neighbour_accuracy"] = float(counts.max() / counts.sum())
        return found

    def measure(self, pretrainer: Pretrainer) -> dict[str, float]:
        """Every measure by name; warnings about collapse are printed, and counted as `warnings`."""
        return self.measured(self.embedded(pretrainer), told(pretrainer))

    def embedded(self, model: Embeds) -> Embedded:
        """One pass of the rows through a model; to measure that takes far longer, and needs the model no more."""
        batch = Batch.of(self._rows, device=model.device, dtype=model.dtype)
        return Embedded(batch, model.embed(batch), model.project(batch))

    def measured(
        self, embedded: Embedded, of_tasks: Told, with_tasks: bool = True, about: str = "", warn: bool = True
    ) -> dict[str, float]:
        """As `measure`, of rows that were embedded.

        Args:
            of_tasks: What tasks told of the last training step, which is not of these rows.
            with_tasks: With that.
            about: What the warnings are about.
            warn: False before the first step: a model that has learned nothing yet is nothing to warn of.
        """
        batch, representations = embedded.batch, embedded.representations
        measures = health.report(representations, embedded.projections, batch.present)
        measures |= of_tasks.measures if with_tasks else {}
        if warn:
            unrelated = health.unrelated(measures, batch.present)
            early = {warning for pair, warning in unrelated.items() if pair not in self._unrelated}
            self._unrelated = set(unrelated)
            found = health.warnings(measures, batch.present)
            found += [warning for task in of_tasks.tasks if with_tasks for warning in task.warnings(measures)]
            for warning in [each for each in found if each not in early]:
                print(f"warning: {about}{warning}", flush=True)
            measures["warnings"] = float(len(found))
        if self._label is not None:
            measures["neighbour_accuracy"] = self._neighbour_accuracy(self._label, representations)
        return measures

    def names(self, config: PretrainConfig, widths: Mapping[str, int], of_tasks: bool = True) -> list[str]:
        """Every name that `measure` gives in the course of a run: asked of a model of the same tasks with tiny heads.
        widths: modality -> feature width."""
        tiny = replace(config.model, representation_dim=8, projection_dim=8, reconstruction_hidden_dim=8)
        tiny = replace(tiny, projection_shrink=1, standardize=False)
        pretrainer = Pretrainer(replace(config, model=tiny, compile=False), widths, steps_per_epoch=1)
        batch = Batch.of(self._rows, device=pretrainer.device, dtype=pretrainer.dtype)
        names = [*health.report(pretrainer.embed(batch), pretrainer.project(batch), batch.present), "warnings"]
        for name in pretrainer.model.tasks if of_tasks else ():
            names += pretrainer.model.task(name).measured  # from their first step on
        if self._label is not None:
            names.append("neighbour_accuracy")
        return names

    def _neighbour_accuracy(self, label: str, representations: dict[str, torch.Tensor]) -> float:
        """Every other group votes on the rest: no speaker is on both sides."""
        target = self._rows.labels[label]
        features = torch.cat(list(representations.values()), dim=1).double().cpu().numpy()
        group = own_groups(self._rows.group, np.arange(len(target)))
        known = target >= 0
        votes = np.isin(group, np.unique(group)[::2])
        train, test = known & votes, known & ~votes
        if not train.any() or not test.any():
            return float("nan")
        nearest = (min(_NEIGHBOURS, int(train.sum())),)
        result = neighbour_vote(
            features[train], target[train], group[train], features[test], self._classes, neighbours=nearest
        )
        return float((result.predictions == target[test]).mean())


class CorporaValidation:
    """Health of each corpus of a mixture by itself, on its own held-out view: measures are named CORPUS/MEASURE.

    Args:
        parts: Corpus -> its held-out rows.
    """

    def __init__(self, parts: Mapping[str, Validation]):
        self._parts = parts

    @classmethod
    def open(cls, source: Mixture) -> CorporaValidation | None:
        """Up to 2048 rows of each corpus that has a validation view; None where none has.

        Raises:
            ValueError: a view that is named and not there.
        """
        parts = {}
        for corpus in source.corpora:
            label = _class_label(corpus, source.data.label)
            reader = _held_out(corpus, label)
            if reader is not None:
                rows = spread_rows(reader, _MOST_ROWS)
                for sample in reader.corrupt:
                    where = f"{corpus.name}/{sample.shard}"
                    print(f"left out of validation: sample {sample.key!r} of {where}: {sample.reason}", flush=True)
                classes = 0 if label is None else len(corpus.manifest.schema.label(label).classes)
                parts[corpus.name] = Validation(source.opened.completed(corpus.name, rows), label, classes)
        return cls(parts) if parts else None

    def chances(self) -> dict[str, float]:
        """As `Validation.chances`."""
        return {f"{name}/{measure}": v for name, part in self._parts.items() for measure, v in part.chances().items()}

    def measure(self, pretrainer: Pretrainer) -> dict[str, float]:
        """As `Validation.measure`; what tasks tell of the last training step is there once."""
        return self.measured(self.embedded(pretrainer), told(pretrainer))

    def embedded(self, model: Embeds) -> dict[str, Embedded]:
        """As `Validation.embedded`, of each corpus."""
        return {name: part.embedded(model) for name, part in self._parts.items()}

    def measured(self, embedded: Mapping[str, Embedded], of_tasks: Told, warn: bool = True) -> dict[str, float]:
        """As `Validation.measured`."""
        found: dict[str, float] = {}
        for name, part in self._parts.items():
            of_part = part.measured(embedded[name], of_tasks, with_tasks=False, about=f"corpus {name}: ", warn=warn)
            found |= {f"{name}/{measure}": value for measure, value in of_part.items()}
        return found | of_tasks.measures

    def names(self, config: PretrainConfig, widths: Mapping[str, int]) -> list[str]:
        """As `Validation.names`."""
        tasks = [measure for name in config.tasks.active for measure in registry.get(name).measured]
        return tasks + [
            f"{name}/{measure}"
            for name, part in self._parts.items()
            for measure in part.names(config, widths, of_tasks=False)
        ]


def beside(
    validation: Validation | CorporaValidation, pretrainer: Pretrainer, warn: bool = True
) -> Callable[[Snapshot], dict[str, float]]:
    """The measures of the model of now, for another thread, which is given a snapshot of it; training goes on.

    On a CPU that thread embeds the rows too, with the snapshot's own tensors: of the same numbers by the same products,
    so that not one digit is another. To embed them takes as long as some steps, for which the other ranks would wait at
    their next collective. On a GPU the rows are embedded here and now: it is queued behind the last step as a few dozen
    products. In the thread they would be of another model copy on the device, and in TensorFloat-32 or not by chance,
    for that is a switch of the whole process and sweeps over similarities set it. What is measured of them, singular
    values above all, has a stream of its own: in the one that computes, the next step would wait for it.
    """
    tasks, device = told(pretrainer), pretrainer.device
    if device.type == "cuda":
        embedded: Any = validation.embedded(pretrainer)
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(device))

        def measured(state: Snapshot) -> dict[str, float]:
            stream = torch.cuda.Stream(device)
            with torch.cuda.stream(stream):
                stream.wait_event(ready)
                found = validation.measured(embedded, tasks, warn=warn)
                stream.synchronize()  # then nothing reads `embedded` any more
            return found

        return measured
    config, widths = pretrainer.config, pretrainer.widths

    def measures(state: Snapshot) -> dict[str, float]:
        embedded: Any = validation.embedded(Frozen(config, widths, state.tensors))
        return validation.measured(embedded, tasks, warn=warn)

    return measures


def _class_label(corpus: Corpus, label: str | None) -> str | None:
    """The class label of that name, None where the corpus has none: labels of a mixture are of some of its corpora."""
    there = [own.name for own in corpus.manifest.schema.labels if own.kind == "class"]
    return label if label in there else None


def _held_out(corpus: Corpus, label: str | None = None) -> Reader | None:
    """The corpus's validation view, with a label or none; None where there is no view: it is none, or the default one
    and not there."""
    name, names = corpus.source.validation_view, View.names(corpus.manifest)
    if name is None or (name == DEFAULT_VALIDATION_VIEW and name not in names):
        return None
    try:
        view = View.open(corpus.manifest, name)
    except ValueError as error:
        where = f"data.sources.{corpus.name}.validation_view"
        raise ValueError(f"{where}: {error}; null measures nothing of this corpus") from None
    labels = () if label is None else (label,)
    own = corpus.reader.modalities
    return Reader(corpus.manifest, view, own, labels, max_corrupt_share=1.0, group=corpus.reader.group)


def open_validation(source: AnySource, config: PretrainConfig) -> Validation | CorporaValidation | None:
    """The held-out rows of whatever a run learns from; None where there are none."""
    if isinstance(source, Mixture):
        return CorporaValidation.open(source)
    return Validation.open(source.data, source.manifest, config.modalities)


def _open_reader(data: DataConfig, manifest: Manifest, name: str, modalities: tuple[str, ...]) -> tuple[Reader, int]:
    """A reader of the validation view `name`, and how many classes the label has (0: no label)."""
    try:
        view = View.open(manifest, name)
    except ValueError as error:
        raise ValueError(f"data.validation_view: {error}; null measures nothing while training") from None
    if data.label is None:
        return open_reader(data, manifest, view, modalities, (), speaker=data.speaker), 0
    label = manifest.schema.label(data.label)
    if label.kind != "class":
        raise ValueError(
            f"data.label: {data.label!r} is {label.kind}; validation votes among classes: name a class label"
        )
    return open_reader(data, manifest, view, modalities, (data.label,), speaker=data.speaker), len(label.classes)


def check_validation(source: AnySource, config: PretrainConfig, keep_by: str | None) -> None:
    """ValueError unless the data has the validation view and label that are named, and `run.keep_by`, where it is
    given, is a measure of theirs: told before anything is started or written, not by the first checkpoint."""
    if isinstance(source, Mixture):
        unmeasured = [corpus.name for corpus in source.corpora if _held_out(corpus) is None]
        if unmeasured:
            print(f"note: no validation view of {', '.join(unmeasured)}: nothing is measured of it while training")
        _check_label(source, unmeasured)
        if keep_by is None:
            return
    elif keep_by is None:
        view = held_out_view(source.data, source.manifest)
        note_no_validation(source.data, source.manifest, "nothing is measured while training")
        if view is not None:
            _open_reader(source.data, source.manifest, view, config.modalities)
        return
    validation = open_validation(source, config)
    if validation is None:
        name = source.data.validation_view
        found = "which is None" if name is None else f"and the data has no view {name!r}: name one of its views"
        raise ValueError(f"run.keep_by: {keep_by!r} needs data.validation_view, {found}")
    names = [f"validation/{name}" for name in validation.names(config, source.reader.widths)]
    if keep_by not in names:
        raise ValueError(
            f"run.keep_by: {keep_by!r} is not a measure of the validation view; {did_you_mean(keep_by, names)}"
        )


def _check_label(source: Mixture, unmeasured: Sequence[str]) -> None:
    """ValueError where `data.label` is a class label of no corpus that is measured."""
    label, measured = source.data.label, [c for c in source.corpora if c.name not in unmeasured]
    if label is not None and not any(_class_label(corpus, label) for corpus in measured):
        there = {own.name for c in measured for own in c.manifest.schema.labels if own.kind == "class"}
        raise ValueError(
            f"data.label: {label!r} is a class label of no corpus that has a validation view; "
            f"{did_you_mean(label, sorted(there))}"
        )


def spread_rows(reader: RowReader, most: int) -> Rows:
    """At most `most` rows of the reader's view: from shards spread evenly over it, an equal share of the beginning of
    each. All rows where there are no more."""
    counts = reader.counts
    filled = np.flatnonzero(counts)
    total = int(counts.sum())
    if total <= most:
        return reader.read_ranges([(int(shard), 0, int(counts[shard])) for shard in filled])
    run = min(_RUN, -(-total // len(filled)))
    opened = filled[np.linspace(0, len(filled) - 1, min(len(filled), max(1, most // run))).round().astype(np.int64)]
    share = most // len(opened)
    return reader.read_ranges([(int(shard), 0, min(share, int(counts[shard]))) for shard in opened])
