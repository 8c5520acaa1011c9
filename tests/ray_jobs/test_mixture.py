"""`data.sources` of a job: what is refused and in which words, what a run's identity says, and what is fitted."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conclugen import Pretrainer, presets
from conclugen.config import PretrainConfig
from ray_jobs.mixture import (
    WEIGHTS,
    Mixture,
    open_source,
    refuse_other_history,
    stages_of,
    weights_differ_from,
)
from ray_jobs.pretrain import COMMAND
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig, SourceConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.source import Source
from ray_jobs.training.validation import CorporaValidation, Validation, check_validation, open_validation
from ray_jobs.training.worker import Watch, refuse_other_data
from shards import CorruptionError, CorruptSample, Cursor, Manifest, View
from shards.format.schema import Column, Sample, Schema
from shards.format.writer import ShardWriter
from shards.planning.mixed_plan import MixedPlan
from shards.reading.stream import stream
from tests.shards.reading import test_mixed_reader as corpora
from tests.tuning.labelled_shards import write_labelled


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    for name in corpora.COLUMNS:
        manifest = corpora.write(folder, name)
        View.where(manifest, np.arange(manifest.rows) % 6 != 1, "train").save()
        if name != "tv":
            View.where(manifest, np.arange(manifest.rows) % 6 == 1, "valid").save()
    return {name: folder / name for name in corpora.COLUMNS}


def config(**changes: Any) -> PretrainConfig:
    small = {"representation_dim": 8, "projection_dim": 4, "projection_shrink": 1}
    return presets.build("contrast_only", "improved", **{"model": small, "global_batch": 16, **changes})


def data(folders: dict[str, Path], changes: dict[str, dict[str, Any]] | None = None, **others: Any) -> DataConfig:
    own: dict[str, dict[str, Any]] = {"own": {"weight": 1.0}, "tv": {"weight": 2.0}, "vox": {"weight": 3.0}}
    sources = {
        name: SourceConfig(**{"folder": str(folders[name]), **options, **(changes or {}).get(name, {})})
        for name, options in own.items()
    }
    return DataConfig(sources=sources, **others)


def opened(folders: dict[str, Path], changes: dict[str, dict[str, Any]] | None = None, **others: Any) -> Mixture:
    job = PretrainJob(config(**others.pop("pretrain", {})), data(folders, changes, **others), RunConfig("r"))
    source = open_source(job.data, job.pretrain)
    assert isinstance(source, Mixture)
    return source


def test_sources_are_given_by_flag_and_by_file(folders: dict[str, Path], tmp_path: Path) -> None:
    flag = "--data.sources={" + ", ".join(f"{n}: {{folder: {f}, weight: 2}}" for n, f in folders.items()) + "}"
    job = COMMAND.parse(["--run", "r", flag, "--data.weights_from", "{20: {own: 0, tv: 1, vox: 1.5}}"])
    assert job.data.sources == {n: SourceConfig(str(folder), weight=2.0) for n, folder in folders.items()}
    assert job.data.weights_from == {"20": {"own": 0.0, "tv": 1.0, "vox": 1.5}}
    assert job.pretrain.corpora.names == ("own", "tv", "vox")
    folder = RunFolder(tmp_path)
    folder.save_config(job)
    assert COMMAND.parse(["--config", str(folder.config)]) == job
    plain = COMMAND.parse(["--run", "r", "--data", str(folders["vox"])])
    assert "corpora" not in plain.pretrain.to_dict() and not any("corpora" in n for n in plain.pretrain.identity())


@pytest.mark.parametrize(
    ("changes", "others", "words"),
    [
        ({"tv": {"weight": 0.0}}, {}, ["data.sources.tv.weight", "found 0", "above 0", "leave the source out"]),
        ({"tv": {"weight": -1.0}}, {}, ["data.sources.tv.weight", "found -1"]),
        ({"tv": {"weight": float("nan")}}, {}, ["data.sources.tv.weight", "nan"]),
        ({"tv": {"weight": None}}, {}, ["data.sources.tv", "no weight", "'own'"]),
        ({"tv": {"epochs": 2.0}}, {}, ["data.sources.tv", "weight and epochs"]),
        ({"tv": {"folder": "VOX"}}, {}, ["data.sources.vox.folder", "'tv'", "each folder once"]),
        ({"tv": {"view": "tarin"}}, {}, ["data.sources.tv", "no view 'tarin'", "did you mean 'train'"]),
        ({"tv": {"folder": "/nowhere"}}, {}, ["data.sources.tv", "no manifest at /nowhere"]),
        ({"tv": {"speaker": "meta.x"}}, {}, ["data.sources.tv.speaker", "'meta.x'"]),
        ({"tv": {"modalities": {"audio": ("adio",)}}}, {}, ["data.sources.tv", "'adio'", "did you mean 'audio'"]),
        ({"tv": {"modalities": {"audio": ("text",)}}}, {}, ["corpus 'tv'", "width 2, expected 3", "'own'"]),
        ({"tv": {"modalities": {"smell": ("text",)}}}, {}, ["data.sources.tv", "found modalities smell"]),
        ({}, {"folder": "/x"}, ["data.folder", "beside data.sources; it is of one folder; leave it out"]),
        ({}, {"view": "test"}, ["data.view", "data.sources.NAME.view"]),
        ({}, {"remainder": "pad"}, ["data.remainder", "run on"]),
        ({}, {"weights_from": {"x": {}}}, ["data.weights_from.x", "1 or more"]),
        ({}, {"weights_from": {"0": {}}}, ["data.weights_from.0"]),
        ({}, {"weights_from": {"5": {"own": 1.0, "tv": 1.0}}}, ["data.weights_from.5.vox", "no weight"]),
        ({}, {"weights_from": {"5": dict.fromkeys(("own", "tv", "vox"), 0.0)}}, ["weights_from.5", "0 only"]),
        (
            {"own": {"weight": 40.0}},
            {"pretrain": {"global_batch": 40}},
            ["corpus 'own'", "found 19 rows, expected at least", "lower its weight"],
        ),
        ({}, {"pretrain": {"modalities": ("video", "sound")}}, ["data.sources.tv", "expected one of video, sound"]),
        ({}, {"pretrain": {"modalities": ("audio", "sound")}}, ["'sound'", "audio (3)"]),
        ({}, {"pretrain": {"corpora": {"negatives": "own"}}}, ["corpora.negatives", "within"]),
    ],
)
def test_bad_input_is_refused_in_a_line(
    folders: dict[str, Path], changes: dict[str, dict[str, Any]], others: dict[str, Any], words: list[str]
) -> None:
    for options in changes.values():
        if options.get("folder") == "VOX":
            options["folder"] = str(folders["vox"])
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        opened(folders, changes, **others)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_choices_without_corpora_and_data_without_a_folder_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"data\.folder: missing.*data\.sources"):
        DataConfig()
    with pytest.raises(ValueError, match=r"data\.weights_from: .*data\.sources"):
        DataConfig("/x", weights_from={"5": {"a": 1.0}})
    with pytest.raises(ValueError, match=r"pretrain\.corpora: .*data\.sources"):
        PretrainJob(config(corpora={"standardize": "corpus"}), DataConfig("/x"), RunConfig("r"))
    with pytest.raises(ValueError, match="a name of 1 to 40 letters"):
        DataConfig(sources={"a/b": SourceConfig("/x")})


def test_the_same_data_under_two_names_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = corpora.write(tmp_path, "tv")
    View.where(copy, np.arange(copy.rows) % 2 == 0, "train").save()
    sources = {"a": SourceConfig(copy.folder), "b": SourceConfig(str(folders["tv"]))}
    with pytest.raises(ValueError, match=rf"data\.sources\.b: found the data of 'a' again \(digest {copy.digest}\)"):
        Mixture.open(DataConfig(sources=sources), config(modalities=("audio", "text")))


def test_weights_and_epochs() -> None:
    def stages(**sources: dict[str, float]) -> dict[int, dict[str, int]]:
        named = {name: SourceConfig(f"/{name}", **options) for name, options in sources.items()}
        return stages_of(DataConfig(sources=named), {"a": 100, "b": 50})

    assert stages(a={"weight": 0.3}, b={"weight": 0.7}) == {0: {"a": 3, "b": 7}}
    assert stages(a={}, b={}) == {0: {"a": 2, "b": 1}}
    assert stages(a={"epochs": 0.5}, b={"epochs": 3.0}) == {0: {"a": 1, "b": 3}}
    assert stages(a={}, b={"epochs": 2.0}) == {0: {"a": 1, "b": 1}}


def test_an_epoch_of_the_mixture_goes_through_each_corpus_as_often_as_it_says(folders: dict[str, Path]) -> None:
    epochs = {"own": 2.0, "tv": 0.5, "vox": 1.0}
    changes = {name: {"weight": None, "epochs": times} for name, times in epochs.items()}
    source = opened(folders, changes, pretrain={"global_batch": 2})
    rows = {corpus.name: corpus.view.rows for corpus in source.corpora}
    wanted = {name: epochs[name] * n for name, n in rows.items()}
    assert source.steps_per_epoch == int(sum(wanted.values())) // 2
    given = source.plan.rows_before(10 * source.steps_per_epoch)
    left_over = 10 * (sum(wanted.values()) - 2 * source.steps_per_epoch)
    assert all(abs(given[name] - 10 * wanted[name]) <= 1.68 + left_over for name in rows)


def test_identity_names_every_field_of_every_corpus(folders: dict[str, Path], tmp_path: Path) -> None:
    source = opened(folders)
    identity = source.identity()
    assert json.loads(json.dumps(identity)) == identity
    folder = RunFolder(tmp_path / "run")
    folder.acquire(identity)
    assert folder.belongs(opened(folders).identity())
    others: list[tuple[dict[str, dict[str, Any]], dict[str, Any], str]] = [
        ({"vox": {"view": "everything"}}, {}, "data.sources.vox.view"),
        ({"vox": {"modalities": {"video": ("video",)}}}, {}, "data.sources.vox.modalities"),
        ({"vox": {"speakers": "people"}}, {}, "data.sources.vox.speakers"),
        ({"vox": {"weight": 2.0}}, {}, "data.weights"),
        ({}, {"weights_from": {"9": {"own": 0.0, "tv": 1.0, "vox": 1.0}}}, "data.weights"),
        ({}, {"chunk_rows": 3}, "data.plan"),
    ]
    for changes, options, field in others:
        with pytest.raises(ValueError, match=rf"\n  {field}: .* then, .* now"):
            folder.belongs(opened(folders, changes, **options).identity())


def test_weights_of_steps_to_come_may_change_and_no_others(folders: dict[str, Path], tmp_path: Path) -> None:
    """Of a run that is at step 7: what it has learned from is compared, the rest may be chosen anew."""
    equal, other = {"own": 1.0, "tv": 1.0, "vox": 1.0}, {"own": 0.0, "tv": 1.0, "vox": 1.0}

    def identity(weights_from: dict[str, dict[str, float]], **changes: Any) -> dict[str, Any]:
        found = opened(folders, changes, weights_from=weights_from).identity()
        return dict(json.loads(json.dumps(found)))

    begun = identity({"3": equal, "20": other})
    for allowed in ({"3": equal}, {"3": equal, "7": other}, {"3": equal, "20": equal, "30": other}):
        refuse_other_history(begun, identity(allowed), 7)
        assert weights_differ_from(begun, identity(allowed)) == (7 if "7" in allowed else 20)
    refuse_other_history(begun, begun, 10**9)
    assert weights_differ_from(begun, begun) is None
    refused: list[tuple[dict[str, dict[str, float]], int]] = [
        ({"3": other, "20": other}, 3),
        ({}, 3),
        ({"3": equal, "6": other}, 6),
    ]
    for stages, step in refused:
        words = rf"^data\.weights_from\.{step}: found .*, expected .* as before, .* is at step 7; .* from step 7 on"
        with pytest.raises(ValueError, match=words):
            refuse_other_history(begun, identity(stages), 7)
    with pytest.raises(ValueError, match=r"^data\.sources: weights: found .* a run begins with them"):
        refuse_other_history(begun, identity({"3": equal, "20": other}, vox={"weight": 9.0}), 0)

    folder = RunFolder(tmp_path / "run")
    folder.acquire(begun, changing=(WEIGHTS,))
    changed = identity({"3": equal, "9": other})
    assert folder.acquire(changed, changing=(WEIGHTS,)) and folder.identity() == changed
    with pytest.raises(ValueError, match=r"data\.plan: .* then, .* now"):
        folder.acquire({**changed, "data.plan": "other"}, changing=(WEIGHTS,))


@pytest.mark.parametrize("step", [0, 3, 8, 40])
def test_batches_before_a_change_of_weights_are_those_of_the_plan_without_it(step: int) -> None:
    counts, stages = {"a": [30, 11], "b": [25]}, {0: {"a": 2, "b": 1}, 3: {"a": 1, "b": 1}}
    one, two = MixedPlan(counts, stages, 5, 7), MixedPlan(counts, {**stages, step + 1: {"a": 1, "b": 5}}, 5, 7)
    for at in range(step + 1):
        assert one.window(Cursor(), step + 1).ranges(at) == two.window(Cursor(), step + 1).ranges(at)
    assert one.window(one.cursor_at(step), 9).ranges(8) != two.window(two.cursor_at(step), 9).ranges(8)
    assert one.digest != two.digest and one.unweighted_digest == two.unweighted_digest


def test_a_source_that_changed_since_the_run_began_is_refused(folders: dict[str, Path]) -> None:
    source = opened(folders)
    identity = {**source.identity(), "data.sources.tv.manifest": "0" * 32}
    with pytest.raises(ValueError, match=r"^data\.sources\.tv\.manifest: found .*, expected 0+: the data changed"):
        refuse_other_data(source, identity)
    refuse_other_data(source, source.identity())
    refuse_other_data(source, {})


def test_moments_are_those_of_the_rows_that_the_run_sees(folders: dict[str, Path]) -> None:
    """Of all rows of so many whole epochs that every row has come as often as its corpus's weight says."""
    source = opened(folders, pretrain={"epochs": 60})
    found = source.moments()
    given = source.plan.rows_before(60 * source.steps_per_epoch)
    rows, weights = [], []
    for corpus in source.corpora:
        read = corpus.reader.read_ranges([(s, 0, int(n)) for s, n in enumerate(corpus.view.counts)])
        own = read.features.get("audio")
        assert own is not None
        there = read.present["audio"]
        rows.append(own[there].astype(np.float64))
        weights += [Fraction(given[corpus.name], corpus.view.rows)] * int(there.sum())
        mean, deviation = found[f"audio@{corpus.name}"]
        assert np.allclose(mean, rows[-1].mean(0)) and np.allclose(deviation, rows[-1].std(0))
    w, x = np.array(weights, float), np.concatenate(rows)
    mean = np.average(x, axis=0, weights=w)
    assert np.allclose(found["audio"][0], mean)
    assert np.allclose(found["audio"][1], np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w)))
    assert "video@tv" not in found and {"video", "video@own", "video@vox", "text@tv"} <= found.keys()


def test_the_model_says_which_corpora_it_has_seen(folders: dict[str, Path]) -> None:
    source = opened(folders, pretrain={"epochs": 3})
    info = json.loads(json.dumps(source.model_info()))
    assert list(info["corpora"]) == ["own", "tv", "vox"]
    assert sum(one["rows_seen"] for one in info["corpora"].values()) == 3 * source.steps_per_epoch * 16
    assert info["corpora"]["own"]["modalities"] == {"video": ["pictures"], "audio": ["sound"]}
    assert info["corpora"]["vox"]["manifest"] == Manifest.open(folders["vox"]).digest
    assert source.tags()["dataset"] == "own+tv+vox"
    assert "own 16.7%, tv 33.3%, vox 50.0%" in source.describe()
    views = {name: View.open(Manifest.open(folder), "train") for name, folder in folders.items()}
    assert source.inputs() == [
        {"name": n, "digest": v.digest, "source": str(folders[n]), "context": "training", "rows": v.rows}
        for n, v in views.items()
    ]


def test_damage_is_judged_by_corpus(folders: dict[str, Path], tmp_path: Path) -> None:
    """All of a small corpus may be a small share of the whole: 2 of its 19 rows are 2 of 103."""
    job = PretrainJob(config(), data(folders, max_corrupt_share=0.06), RunConfig("r"))
    source = open_source(job.data, job.pretrain)

    def notes(*rows: tuple[str, int]) -> list[dict[str, Any]]:
        corrupt = [dataclasses.asdict(CorruptSample(f"{corpus}/s", f"k{row}", row, "torn")) for corpus, row in rows]
        return [{"corrupt": corrupt, "leaving": []}]

    watch = Watch(source, job, RunFolder(tmp_path))
    assert not watch.judge(20, notes(("own", 2), ("vox", 70), ("vox", 71), ("vox", 72)))
    with pytest.raises(CorruptionError, match=r"shard 'own/s'.*2 corrupt samples exceed the share 0.06 of 19 rows"):
        watch.judge(21, notes(("own", 3)))


def test_validation_is_of_each_corpus_by_itself(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source = opened(folders, pretrain={"corpora": {"standardize": "corpus"}})
    check_validation(source, source.config, None)
    assert "note: no validation view of tv" in capsys.readouterr().out
    validation = open_validation(source, source.config)
    assert isinstance(validation, CorporaValidation)
    pretrainer = Pretrainer(source.config, source.reader.widths, source.steps_per_epoch, source.moments())
    measured = validation.measure(pretrainer)
    assert sorted(validation.names(source.config, source.reader.widths)) == sorted(measured)
    assert {"own/effective_rank/video", "vox/effective_rank/text"} <= measured.keys()
    assert "own/effective_rank/text" not in measured
    check_validation(source, source.config, "validation/vox/effective_rank/text")
    with pytest.raises(ValueError, match="is not a measure of the validation view"):
        check_validation(source, source.config, "validation/tv/effective_rank/text")


def test_a_label_is_measured_of_the_corpora_that_have_it(tmp_path: Path) -> None:
    """Every corpus by its own rows and classes, as a run on it alone would be measured."""
    folders = {name: write_labelled(tmp_path / name, ("video", "audio"), seed=seed) for seed, name in enumerate("ab")}
    with ShardWriter(tmp_path / "c", Schema((Column("video", 5), Column("audio", 5)))) as writer:
        for row in range(40):
            writer.append(Sample(f"k{row}", {m: np.full(5, row, np.float32) for m in ("video", "audio")}))
    sources = {n: SourceConfig(str(tmp_path / n), "everything", "everything", weight=1.0) for n in "abc"}
    job = PretrainJob(
        config(modalities=("video", "audio")), DataConfig(sources=sources, label="emotion"), RunConfig("r")
    )
    source = open_source(job.data, job.pretrain)
    assert isinstance(source, Mixture)
    check_validation(source, source.config, None)
    validation = open_validation(source, source.config)
    assert validation is not None
    pretrainer = Pretrainer(source.config, source.reader.widths, source.steps_per_epoch, source.moments())
    measured = validation.measure(pretrainer)
    assert "c/neighbour_accuracy" not in measured
    assert sorted(validation.names(source.config, source.reader.widths)) == sorted(measured)
    for name, folder in folders.items():
        alone = DataConfig(str(folder), "everything", "everything", label="emotion")
        by_itself = Validation.open(alone, Manifest.open(folder), ("video", "audio"))
        assert by_itself is not None
        accuracy = by_itself.measure(pretrainer)["neighbour_accuracy"]
        assert measured[f"{name}/neighbour_accuracy"] == accuracy > 0.6, "of two classes"
    check_validation(source, source.config, "validation/a/neighbour_accuracy")
    wrong = dataclasses.replace(source, data=dataclasses.replace(source.data, label="emotoin"))
    with pytest.raises(ValueError, match=r"^data\.label: 'emotoin' is a class label of no .*did you mean 'emotion'"):
        check_validation(wrong, source.config, None)


def test_training_goes_on_from_a_cursor_with_the_same_rows_and_losses(folders: dict[str, Path]) -> None:
    """Weights change on the way; what every corpus gives and loses is told at each step."""
    choices = {"corpora": {"standardize": "corpus", "negatives": "within"}, "precision": "float64", "epochs": 2}
    source = opened(folders, pretrain=choices, weights_from={"3": {"own": 0.0, "tv": 1.0, "vox": 1.0}})
    steps = source.plan.start_of_epoch(2)

    def trained(pretrainer: Pretrainer, cursor: Cursor, count: int) -> list[dict[str, float]]:
        batches = stream(source.reader, source.plan, 0, 1, cursor, count)
        return [{n: float(x) for n, x in pretrainer.step(batch).items()} for batch in batches]

    def fresh() -> Pretrainer:
        return Pretrainer(source.config, source.reader.widths, source.steps_per_epoch, source.moments())

    whole, first, second = fresh(), fresh(), fresh()
    expected = trained(whole, Cursor(), steps)
    found = trained(first, Cursor(), 4)
    tensors, meta = first.state()
    second.load_state({name: x.clone() for name, x in tensors.items()}, meta)
    found += trained(second, source.plan.cursor_at(4), steps - 4)
    assert [{n: str(x) for n, x in step.items()} for step in found] == [
        {n: str(x) for n, x in step.items()} for step in expected
    ]
    assert [step["share/own"] > 0 for step in found[:5]] == [True, True, True, False, False]
    assert {f"loss/contrastive/{name}" for name in folders} <= found[0].keys()


def test_one_folder_is_opened_as_ever(folders: dict[str, Path]) -> None:
    source = open_source(DataConfig(str(folders["vox"])), config())
    assert isinstance(source, Source)
    assert set(source.identity()) == {"data.manifest", "data.view", "data.plan", "data.modalities"}
    manifest = Manifest.open(folders["vox"])
    (train,) = source.inputs()
    (whole,) = open_source(DataConfig(str(folders["vox"]), view="everything"), config()).inputs()
    assert (whole["name"], whole["source"], whole["context"]) == ("vox", str(folders["vox"]), "training")
    # MLflow keeps the first rows that it is told of a name and digest.
    assert (whole["rows"], train["rows"]) == (manifest.rows, sum(row % 6 != 1 for row in range(manifest.rows)))
    assert whole["digest"] != train["digest"] == View.open(manifest, "train").digest
