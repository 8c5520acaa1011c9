"""What mixing corpora is worth: RAVDESS, MELD's development part, CMU-MOSI and rendered clips, each alone and together.

    python -m benchmarks.reproduce.corpora --data FOLDER --output outputs/corpora --results FILE.md [--rendered SHARDS]

Corpora hold columns in common only where these have one meaning and one width: the means of 35 action units (RAVDESS,
MELD) and sentence vectors (MELD, MOSI) each have one head for both corpora, all else has a head of its own. All models
take equally many steps of one batch size. Each is judged by the corpus's own protocol, on its own modalities:

  alone      pretrained on the training rows of the fold
  mixed      on these and on all rows of the other corpora, each by its rows; moments and negatives by corpus
  searched   the same with weights that a random search found on training groups of the corpus (see TARGETS)
  unseen     on the other corpora alone; judged on the columns that they have in common with this one, beside `alone,
             these columns`

Trials and cells are kept, so that a killed run continues where it stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import command_line
from benchmarks.reproduce import kept, protocols
from benchmarks.reproduce.differences import differences, score, signed
from benchmarks.reproduce.evaluation import Evaluation, evaluate, merge, stack
from benchmarks.reproduce.feature_files import Measure, find_protocol, read_meld, read_mosi, read_ravdess
from benchmarks.reproduce.reproduce import Settings
from conclugen import Batch, PretrainConfig, Pretrainer
from conclugen.common.atomic import write_json, write_text
from conclugen.common.reading import read_mapping
from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.config import MeasureConfig
from conclugen.evaluation.protocol import Fold, Protocol, Target, group_cross_folds
from conclugen.evaluation.statistics import Interval
from conclugen.fields import choose
from conclugen.search_space import Range
from ray_jobs.mixture import Corpora, Mixture
from ray_jobs.run_config import DataConfig, SourceConfig
from shards import Column, Cursor, Label, Manifest, Reader, Sample, Schema, ShardWriter, View
from shards.reading.stream import stream
from tuning.sweep.objective import Judge
from tuning.sweep.search import RandomSearch
from tuning.sweep.space import Space
from tuning.sweep.trial import Trial, TrialShared

LEARN, JUDGE = "learn", "judge"  # views of the search: training groups, and other training groups
# Whose search gives the weights of a corpus: MELD's own groups are all tested, so that it takes RAVDESS's.
TARGETS = {"ravdess": "ravdess", "mosi": "mosi", "meld": "ravdess", "rendered": "ravdess"}
SIZES = Settings(
    representation_dim=256,
    projection_dim=128,
    reconstruction_hidden_dim=256,
    clusters=16,
    global_batch=256,
    epochs=20,
)
STEPS_PER_EPOCH = 8
# The ring of contrastive pairs: neighbours in this order occur together in a corpus.
ORDER = ("functionals", "units", "mel", "text", "opensmile")


@dataclass(frozen=True)
class Corpus:
    """Rows, by what their columns mean, and the protocol that judges them.

    design: rows that the search learns from and judges on, None where all groups are tested.
    """

    name: str
    title: str
    features: Mapping[str, NDArray[np.float32]]
    groups: NDArray[np.str_]
    protocol: Protocol
    measure: Measure
    design: Fold | None


@dataclass(frozen=True)
class Stored:
    """A corpus and its shards."""

    corpus: Corpus
    manifest: Manifest


def read(folder: Path, draws: int, rendered: Path | None = None) -> dict[str, Corpus]:
    """The corpora by name. Raises ValueError for a file that is missing."""
    ravdess, mosi, meld = read_ravdess(folder, draws=draws), read_mosi(folder, draws), read_meld(folder, draws)
    audio = ravdess.features["audio"]
    listing, emotion = find_protocol(folder), ravdess.protocol.target
    of_ravdess = protocols.ravdess_design(listing, ravdess.protocol.groups, emotion.values, emotion.classes)
    with np.load(folder / "mosi_features.npz", allow_pickle=False) as stored:
        of_mosi = protocols.mosi_design(stored["ids"], stored["positive"], stored["split"])
    units = meld.features["video"].reshape(len(meld.group), -1, 3)[:, :, 0]  # mean, deviation, maximum of each
    found = [
        ("ravdess", ravdess, {"functionals": audio, "units": ravdess.features["video"]}, of_ravdess.folds[0]),
        ("meld", meld, {"units": units, "mel": meld.features["audio"], "text": meld.features["text"]}, None),
        ("mosi", mosi, {"text": mosi.features["text"], "opensmile": mosi.features["audio"]}, of_mosi.folds[0]),
    ]
    corpora = {
        name: Corpus(name, data.title, features, data.protocol.groups.astype(str), data.protocol, data.measure, design)
        for name, data, features, design in found
    }
    if rendered is not None:
        corpora["rendered"] = read_rendered(rendered, draws)
    return corpora


def read_rendered(folder: Path, draws: int) -> Corpus:
    """Feature shards of rendered clips: folds over their speakers; modalities of their own."""
    manifest = Manifest.open(folder)
    label = next(label for label in manifest.labels if label.kind == "class")
    reader = Reader(manifest, labels=(label.name,))
    rows = reader.read_ranges([(shard, 0, int(count)) for shard, count in enumerate(reader.counts)])
    groups = np.concatenate([reader.metadata(s)["group"].to_numpy() for s in range(len(manifest))]).astype(str)
    target = Target(label.name, "class", rows.labels[label.name].astype(np.int64), label.classes)
    protocol = Protocol("rendered", target, groups, group_cross_folds(groups, 4)).drawn((0.1, 1.0), draws, 127)
    features = {f"rendered_{m}": np.where(rows.present[m][:, None], x, 0) for m, x in rows.features.items()}
    return Corpus("rendered", "Rendered clips, emotion", features, groups, protocol, "accuracy", None)


def store(folder: Path, corpus: Corpus) -> Stored:
    """The corpus as shards, with a view of every fold's training rows and those of the search."""
    target = corpus.protocol.target
    columns = tuple(Column(name, array.shape[1]) for name, array in sorted(corpus.features.items()))
    schema = Schema(columns, labels=(Label(target.name, "class", tuple(target.classes)),), grouped=True)
    if not (folder / "manifest.parquet").is_file():
        with ShardWriter(folder, schema) as writer:
            for row, group in enumerate(corpus.groups):
                values = {name: array[row] for name, array in corpus.features.items()}
                writer.append(
                    Sample(f"k{row:05d}", values, labels={target.name: int(target.values[row])}, group=str(group))
                )
    manifest = Manifest.open(folder)
    views = {f"fold-{fold.number}": fold.train_rows for fold in corpus.protocol.folds}
    if corpus.design is not None:
        views |= {LEARN: corpus.design.train_rows, JUDGE: corpus.design.test_rows}
    for name, rows in views.items():
        View.where(manifest, np.isin(np.arange(manifest.rows), rows), name).save()
    return Stored(corpus, manifest)


def config_of(corpora: Sequence[Corpus], seed: int) -> PretrainConfig:
    """The improved recipe for all modalities that these corpora have, neighbours in the ring of pairs where they can
    be."""
    there = {m for corpus in corpora for m in corpus.features}
    modalities = [m for m in ORDER if m in there] + sorted(there.difference(ORDER))
    config = replace(SIZES.config("improved", modalities), seed=seed)
    names = tuple(sorted(corpus.name for corpus in corpora))
    return config.changed({"corpora": {"names": list(names), "standardize": "corpus", "negatives": "within"}})


def pretrained(config: PretrainConfig, data: DataConfig, steps: int) -> Pretrainer:
    """A model after so many steps of the mixture, its schedule in epochs of STEPS_PER_EPOCH steps."""
    source = Mixture.open(data, config)
    fitted = source.opened.fitted(data.standardization_rows, config.seed)
    moments = source.opened.moments(fitted, source.plan.rows_before(max(steps, 1)))
    pretrainer = Pretrainer(config, source.reader.widths, STEPS_PER_EPOCH, moments)
    for rows in stream(source.reader, source.plan, 0, 1, Cursor(), steps):
        pretrainer.step(rows)
    return pretrainer


def representations(pretrainer: Pretrainer, corpus: Corpus, shown: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """(N, R) of every row, of the modalities shown; a corpus that the model has not seen uses the moments of
    all."""
    config, rows = pretrainer.config, len(corpus.groups)
    number = config.corpora.names.index(corpus.name) if corpus.name in config.corpora.names else -1
    widths = {m: pretrainer.model.widths[m] for m in config.modalities}
    batch = Batch.of(
        Batch(
            {
                m: torch.from_numpy(corpus.features.get(m, np.zeros((rows, width), np.float32)))
                for m, width in widths.items()
            },
            {m: torch.full((rows,), m in corpus.features) for m in widths},
            torch.arange(rows),
            corpus=torch.full((rows,), number),
        )
    )
    return {m: x.numpy() for m, x in pretrainer.embed(batch).items() if m in shown}


class Run:
    """Cells of one output folder: an evaluation of one system on one fold each."""

    def __init__(self, folder: Path, stored: Mapping[str, Stored], draws: int, trials: int) -> None:
        self.folder, self.stored, self.draws, self.trials = folder, stored, draws, trials
        self.steps = SIZES.epochs * STEPS_PER_EPOCH
        self.started = time.monotonic()
        self._represents: dict[str, dict[str, NDArray[np.float32]]] = {}
        (folder / "cells").mkdir(parents=True, exist_ok=True)

    def sources(
        self, names: Sequence[str], target: str, view: str, weights: Mapping[str, float] | None = None
    ) -> DataConfig:
        """All rows of these corpora, of the target those of a view; none: weights by rows."""
        return DataConfig(
            sources={
                name: SourceConfig(
                    self.stored[name].manifest.folder,
                    view if name == target else "everything",
                    JUDGE if view == LEARN and name == target else None,
                    weight=None if weights is None else weights[name],
                )
                for name in names
            }
        )

    def searched(self, target: str) -> dict[str, float]:
        """Corpus -> weight: the best of so many random mixtures by a probe on training groups of the target."""
        names, stored = sorted(self.stored), self.stored[target]
        ranges = {name: Range(1.0, 1.0) if name == target else Range(0.05, 1.0) for name in names}
        config = config_of([one.corpus for one in self.stored.values()], 127)
        made_of = {
            "digests": {name: self.stored[name].manifest.digest for name in names},
            "ranges": {name: [one.low, one.high] for name, one in ranges.items()},
            "steps": self.steps,
            "pretrain": config,
        }
        path = self.folder / f"search-{target}-{kept.address(made_of)}.json"
        document = read_mapping(path) if path.is_file() else {"trials": []}
        if len(document["trials"]) < self.trials:
            label = stored.corpus.protocol.target.name
            data = replace(self.sources(names, target, LEARN, dict.fromkeys(names, 1.0)), label=label)
            corpora = Corpora.open(data, config.modalities)
            measure = MeasureConfig(select_by="uar" if stored.corpus.measure == "uar" else "accuracy")
            judge = Judge.open(
                data.of_corpus(target),
                stored.manifest,
                tuple(m for m in config.modalities if m in stored.corpus.features),
                measure,
                lambda rows: corpora.completed(target, rows),
            )
            shared = TrialShared.open_corpora(data, corpora, judge, config.seed)
            space = Space(tasks=("contrastive",), recipe=("improved",), corpora=ranges)
            search = RandomSearch(space.resolve(corpora.reader.widths), 0)
            for number in range(len(document["trials"]), self.trials):
                choices = search.ask(number, 0)
                assert choices is not None
                weights = {name: float(choices[f"data.sources.{name}.weight"]) for name in names}
                weighted = data.weighted(weights)
                epochs = max(1, round(self.steps / shared.plan(config, weighted).steps_per_epoch))
                trial = Trial(replace(config, epochs=epochs), shared, data=weighted)
                trial.train(trial.last_step(epochs))
                found = judge.probe(trial.pretrainer)
                document["trials"].append({"weights": weights, "probe_accuracy": found["probe_accuracy"]})
                write_json(path, document)
                self._tell(f"search for {target}, trial {number}: {found['probe_accuracy']:.4f}")
        best = max(document["trials"][: self.trials], key=lambda trial: trial["probe_accuracy"])
        return {str(name): float(weight) for name, weight in best["weights"].items()}

    def systems(self, target: str, seeds: Sequence[int]) -> dict[str, Evaluation]:
        """Every row of a corpus's table."""
        corpus, own = self.stored[target].corpus, tuple(self.stored[target].corpus.features)
        others = [name for name in self.stored if name != target]
        seen = {m for name in others for m in self.stored[name].corpus.features}
        common = tuple(m for m in own if m in seen)
        weights = self.searched(TARGETS[target])
        found = {"raw, balanced": self._judged(corpus, "raw", own, None, None, (0,))}
        alone = self.sources([target], target, "fold")
        everything = sorted(self.stored)
        for name, data, shown, steps in (
            ("untrained heads", alone, own, 0),
            ("alone", alone, own, self.steps),
            ("mixed", self.sources(everything, target, "fold"), own, self.steps),
            ("searched", self.sources(everything, target, "fold", weights), own, self.steps),
            ("alone, these columns", alone, common, self.steps),
            ("unseen", self.sources(others, target, "fold"), common, self.steps),
        ):
            if shown:
                found[name] = self._judged(corpus, name, shown, data, steps, seeds)
        return found

    def _judged(
        self,
        corpus: Corpus,
        name: str,
        shown: tuple[str, ...],
        data: DataConfig | None,
        steps: int | None,
        seeds: Sequence[int],
    ) -> Evaluation:
        of_seeds = []
        for seed in seeds:
            folds = [self._cell(corpus, name, shown, data, steps, seed, fold) for fold in corpus.protocol.folds]
            of_seeds.append(replace(merge(folds), seed_names=() if data is None else (seed,)))
        return stack(of_seeds)

    def _cell(
        self,
        corpus: Corpus,
        name: str,
        shown: tuple[str, ...],
        data: DataConfig | None,
        steps: int | None,
        seed: int,
        fold: Fold,
    ) -> Evaluation:
        config = None
        if data is not None:
            sources = {
                n: replace(s, view=f"fold-{fold.number}") if s.view == "fold" else s
                for n, s in (data.sources or {}).items()
            }
            data = replace(data, sources=sources)
            config = config_of([self.stored[n].corpus for n in sources], seed)
        mixed = {} if data is None else {n: [s.view, s.weight] for n, s in (data.sources or {}).items()}
        learned = {
            "sources": mixed,
            "digests": {n: self.stored[n].manifest.digest for n in sorted({corpus.name, *mixed})},
            "steps": steps,
            "pretrain": config,
        }
        what = learned | {
            "row": name,
            "shown": shown,
            "draws": self.draws,
            "labelled": [[rows.tolist() for rows in draw] for _, draw in sorted(fold.labelled.items())],
        }
        label = name.replace(", ", "+").replace(" ", "_")
        path = self.folder / "cells" / f"{corpus.name}-{fold.number}-{label}-{kept.address(what)}.npz"
        if not kept.holds(path, what):
            if config is None or data is None or steps is None:
                blocks = Blocks.balanced({m: corpus.features[m] for m in shown})
            else:
                key = f"{corpus.name} {kept.address(learned)}"
                whole = self._represented(key, corpus, config, data, steps)
                blocks = Blocks.plain({m: whole[m] for m in shown})
            evaluate(corpus.protocol.only(fold), blocks, self.draws).save(path, what)
            self._tell(f"{corpus.name}, fold {fold.number}, seed {seed}: {name}")
        return Evaluation.load(path)

    def _represented(
        self, key: str, corpus: Corpus, config: PretrainConfig, data: DataConfig, steps: int
    ) -> dict[str, NDArray[np.float32]]:
        """`representations` of all modalities; of equal mixtures one model is trained."""
        if key not in self._represents:
            pretrainer = pretrained(config, data, steps)
            shown = [m for m in corpus.features if m in config.modalities]
            self._represents[key] = representations(pretrainer, corpus, shown)
        return self._represents[key]

    def _tell(self, what: str) -> None:
        print(f"[{time.monotonic() - self.started:7.1f} s] {what}", flush=True)


PAIRS = (("mixed", "alone"), ("searched", "alone"), ("searched", "mixed"), ("unseen", "alone, these columns"))


def section(corpus: Corpus, systems: Mapping[str, Evaluation], common: Sequence[str]) -> str:
    """The table of a corpus and what lies between its rows, with intervals over groups, draws and seeds."""
    fractions = sorted(systems["alone"].predicted)
    measure = {"uar": "UAR", "accuracy": "accuracy"}[corpus.measure]
    lines = [_line(measure, [f"{f:.0%} of labels" for f in fractions]), "|---" * (len(fractions) + 1) + "|"]
    for name, found in systems.items():
        lines.append(_line(name, [_shown(score(corpus.protocol, found, f, corpus.measure)) for f in fractions]))
    pairs = [(a, b, f) for a, b in PAIRS if a in systems and b in systems for f in fractions]
    beside = dict(zip(pairs, differences(corpus.protocol, systems, pairs, corpus.measure), strict=True))
    for a, b in dict.fromkeys((a, b) for a, b, _ in pairs):
        between = [beside[a, b, f] for f in fractions]
        lines.append(_line(f"{a} minus {b}", ["-" if d is None else signed(d.interval) for d in between]))
    columns = "No other corpus holds a column of this one: `unseen` is a hole."
    if common:
        columns = f"`unseen` is judged on {', '.join(common)}."
    return f"### {corpus.title}\n\n{columns}\n\n" + "\n".join(lines)


def _line(name: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([name, *cells])} |"


def _shown(value: Interval) -> str:
    return f"{value.estimate:.3f} [{value.low:.3f}, {value.high:.3f}]"


def run(options: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    corpora = read(options.data, options.draws, options.rendered)
    stored = {name: store(options.output / "shards" / name, corpus) for name, corpus in corpora.items()}
    made = Run(options.output, stored, options.draws, options.trials)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    parts = []
    judged = [name for name in options.judged.split(",") if name] or list(corpora)
    for name in judged:
        choose("--judged", name, corpora)
    for name, corpus in ((name, corpora[name]) for name in judged):
        seen = {m for other in corpora if other != name for m in corpora[other].features}
        common = [m for m in corpus.features if m in seen]
        parts.append(section(corpus, made.systems(name, seeds), common))
    searched = {target: made.searched(target) for target in dict.fromkeys(TARGETS[name] for name in judged)}
    told = [
        f"Weights found for {target}: " + ", ".join(f"{n} {w:.2f}" for n, w in weights.items())
        for target, weights in searched.items()
    ]
    head = (
        f"{made.steps} steps of {SIZES.global_batch} rows, R {SIZES.representation_dim}; pretraining seeds "
        f"{options.seeds}, {options.draws} draws of labels; {options.trials} mixtures in each search. Brackets: 95 % "
        "intervals that cross test groups, draws and seeds."
    )
    text = "\n\n".join([head, *told, *parts]) + "\n"
    write_text(options.results, text)
    print(text)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder of the feature files")
    parser.add_argument("--rendered", type=Path, help="feature shards of rendered clips, such as the demo's")
    parser.add_argument("--output", type=Path, default=Path("outputs/corpora"), help="kept shards, trials and cells")
    parser.add_argument("--results", type=Path, required=True, help="Markdown file for the tables")
    parser.add_argument("--draws", type=int, default=3, help="draws of labels at each share below all")
    parser.add_argument("--trials", type=int, default=6, help="mixtures that each search tries")
    parser.add_argument("--judged", default="", help="comma-separated corpora that get a table; default: all")
    parser.add_argument("--seeds", default="127,211", help="comma-separated seeds of pretraining; every one is run")


def main(arguments: Sequence[str] | None = None) -> int:
    return command_line.main("reproduce.corpora", __doc__, add_arguments, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
