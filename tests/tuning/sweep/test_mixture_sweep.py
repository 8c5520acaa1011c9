"""A sweep over the weights of corpora, without Ray: each trial sees the rows that a run with its weights would see."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from conclugen import Pretrainer
from conclugen.search_space import Range
from ray_jobs.mixture import Mixture
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig, SourceConfig
from ray_jobs.tracking.journal import Journal, metric_history
from shards import Cursor, Manifest, View
from shards.planning.view import IndexValues
from shards.reading.stream import stream
from tests.cluster.sweeps import fixed_space
from tests.tuning.labelled_shards import write_labelled
from tuning.sweep import results
from tuning.sweep.__main__ import COMMAND
from tuning.sweep.folder import SweepFolder, TrialStore
from tuning.sweep.job import SweepJob
from tuning.sweep.search import Outcome, RandomSearch
from tuning.sweep.sweep import heaviest, identity, prepare
from tuning.sweep.trial import Trial

# `b` has no audio: it is missing in its rows.
MODALITIES = {"a": ("video", "audio"), "b": ("video", "text"), "c": ("video", "audio", "text")}
LOSSES = ("loss", "loss/contrastive", "share/a", "share/b", "share/c")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    for seed, (name, modalities) in enumerate(MODALITIES.items()):
        write_labelled(folder / name, modalities, seed=seed, speakers=8 + 2 * seed)
        manifest = Manifest.open(folder / name)
        speaker = IndexValues.read(manifest, "group").codes
        held = speaker < (0 if name == "c" else 3)
        if name != "c":
            View.where(manifest, held, "valid").save()
        View.where(manifest, ~held, "train").save()
    return {name: folder / name for name in MODALITIES}


def job(folders: dict[str, Path], output: Path, **changes: Any) -> SweepJob:
    space = fixed_space(
        modalities=("video+audio+text",),
        epochs=2,
        global_batch=(40,),
        corpora={"a": Range(1.0, 1.0), "b": Range(0.25, 4.0)},
        fixed={"corpora.standardize": "corpus", "precision": "float64"},
    )
    sources = {n: SourceConfig(str(folder), weight=1.0) for n, folder in folders.items()}
    settings: dict[str, Any] = {
        "data": DataConfig(sources=sources, label="emotion"),
        "space": space,
        "judged_on": "b",
        "search": "random",
        "scheduler": "none",
    }
    return SweepJob(name="mixed", output=str(output), **{**settings, **changes})


@pytest.mark.parametrize("shared_rows", [True, False])
def test_a_trial_sees_what_a_run_with_its_weights_sees(
    folders: dict[str, Path], tmp_path: Path, shared_rows: bool
) -> None:
    sweep = job(folders, tmp_path)
    ready = prepare(sweep)
    shared = ready.shared if shared_rows else dataclasses.replace(ready.shared, rows=None)
    shared = pickle.loads(pickle.dumps(shared))  # as it travels to the processes of trials  # noqa: S301
    choices = RandomSearch(ready.space, 3).ask(0, 0)
    assert choices is not None and choices["data.sources.a.weight"] == 1.0
    data = ready.space.data(sweep.data, choices)
    assert data.sources is not None and data.sources["b"].weight == choices["data.sources.b.weight"] != 1.0
    with Journal(tmp_path / "journal.jsonl", experiment="e", name="n") as journal:
        trial = Trial(ready.space.config(choices), shared, "t", journal, data=data)
        trial.train(trial.last_step(2))

    run = PretrainJob(ready.space.config(choices), data, RunConfig("r"))
    peer = Mixture.open(run.data, run.pretrain)
    pretrainer = Pretrainer(run.pretrain, peer.reader.widths, peer.steps_per_epoch, peer.moments())
    assert trial.config == run.pretrain and trial.config.corpora.names == ("a", "b", "c")
    steps = peer.plan.start_of_epoch(2)
    told = [pretrainer.step(rows) for rows in stream(peer.reader, peer.plan, 0, 1, Cursor(), steps)]
    history = metric_history(tmp_path / "journal.jsonl")
    for name in LOSSES:
        assert [value for _, value in history[name]] == [float(step[name]) for step in told], name
    for (name, mine), theirs in zip(
        trial.pretrainer.model.state_dict().items(), pretrainer.model.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name


def test_trials_are_judged_on_the_corpus_that_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its own rows, as its own: with all modalities, of which it lacks one, and by its own moments."""
    ready = prepare(job(folders, tmp_path))
    judge, manifest = ready.shared.judge, Manifest.open(folders["b"])
    assert judge.train is not None and judge.labelled is not None
    assert len(judge.train.rows) == View.open(manifest, "train").rows
    assert len(judge.labelled.rows) == View.open(manifest, "valid").rows
    assert not judge.validation.present["audio"].any() and judge.validation.present["text"].all()
    assert set(judge.train.rows.corpus.tolist()) == {1}  # type: ignore[attr-defined]
    choices = RandomSearch(ready.space, 3).ask(0, 0)
    assert choices is not None
    trial = Trial(ready.space.config(choices), ready.shared)
    measured = trial.advance(2)
    assert 0.6 < measured["probe_accuracy"] <= 1.0 and "effective_rank/text" in measured
    assert "judged_on" in ready.identity and ready.identity["manifest"] == manifest.digest


def test_weights_are_part_of_what_a_trial_is(folders: dict[str, Path], tmp_path: Path) -> None:
    sweep = job(folders, tmp_path)
    ready = prepare(sweep)
    folder = SweepFolder(sweep.folder)
    assert not folder.acquire(identity(ready))
    store = TrialStore(folder, ready.space, RandomSearch(ready.space, 0), 3, sweep.objective, ready.identity)
    proposals = [store.propose() for _ in range(3)]
    keys = {store.key(proposal.choices) for proposal in proposals if proposal is not None}
    assert len(keys) == 3, "they differ in the weight of one corpus alone"
    for number, value in enumerate((0.5, 0.9, 0.7)):
        store.finish(number, Outcome({2: value}, "finished"), {"probe_accuracy": value}, {})
    best = results.best_job(store, sweep, store.ranking("max")[0])
    assert best.data.sources is not None
    assert best.data.sources["b"].weight == store.choices[1]["data.sources.b.weight"]
    assert "data.sources.b.weight" in results.table(store, "max")
    others = prepare(dataclasses.replace(sweep, data=sweep.data.weighted({"c": 2.0})))
    with pytest.raises(ValueError, match=r"corpora: .* then, .* now"):
        folder.belongs(identity(others))
    heavy = [data.sources["b"].weight for data in heaviest(sweep, ready.space) if data.sources is not None]
    assert heavy == [0.25, 0.25, 4.0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"judged_on": "d"}, ["judged_on", "'d'"]),
        ({"judged_on": None}, ["judged_on: missing", "a, b"]),
        ({"judged_on": "c"}, ["no view 'valid'"]),
        ({"scheduler": "pbt"}, ["scheduler: found pbt with data.sources"]),
        ({"corpora": {"d": Range(1.0, 2.0)}}, ["space.corpora", "'d'"]),
        ({"corpora": {"a": Range(0.0, 2.0, log=False)}}, ["space.corpora.a.low", "above 0"]),
        ({"global_batch": (200,)}, ["space.global_batch: 200", "corpus 'a'", "expected at least"]),
        ({"modalities": ("audio", "video")}, ["space.modalities: audio", "corpus 'b'"]),
        ({"data": DataConfig("/x")}, ["judged_on: found 'b'", "data.sources"]),
    ],
)
def test_what_no_trial_could_do_is_refused(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    of_space: dict[str, Any] = {
        name: changes.pop(name) for name in ("corpora", "global_batch", "modalities") if name in changes
    }
    if "modalities" in of_space:
        of_space |= {"tasks": ("reconstruction",)}
    with pytest.raises(ValueError) as caught:
        plain = job(folders, tmp_path)
        prepare(dataclasses.replace(plain, space=dataclasses.replace(plain.space, **of_space), **changes))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_weight_for_one_corpus_beside_epochs_of_others_is_refused_at_the_start(folders: dict[str, Path]) -> None:
    by_epochs = DataConfig(sources={n: SourceConfig(str(f), epochs=2.0) for n, f in folders.items()}, label="emotion")
    space = fixed_space(corpora={"b": Range(0.25, 4.0)})
    with pytest.raises(ValueError, match="no weight"):
        SweepJob(name="mixed", data=by_epochs, space=space, judged_on="b")
    every = fixed_space(corpora={n: Range(0.25, 4.0) for n in folders})
    assert SweepJob(name="mixed", data=by_epochs, space=every, judged_on="b").space.corpora.keys() == folders.keys()


def test_corpora_are_given_by_flag(folders: dict[str, Path]) -> None:
    sources = "{" + ", ".join(f"{n}: {{folder: {f}, weight: 1}}" for n, f in folders.items()) + "}"
    searched = "{b: {low: 0.5, high: 2}}"
    given = ["--run", "r", f"--data.sources={sources}", "--judged-on", "b", f"--space.corpora={searched}"]
    parsed = COMMAND.parse(given)
    assert parsed.space.corpora == {"b": Range(0.5, 2.0)} and parsed.judged_on == "b"
