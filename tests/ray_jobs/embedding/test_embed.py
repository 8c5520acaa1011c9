"""New clips through a run's own encoders and heads: beside the same steps taken one by one; what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import conclugen
from conclugen import Pretrainer, encoders, export, presets, storage
from conclugen.common.atomic import write_json
from conclugen.common.locks import folder_held
from conclugen.evaluation.blocks import LEADING
from conclugen.evaluation.config import ComparisonConfig
from conclugen.evaluation.features import Scaling
from conclugen.evaluation.probe import fit_classes, fit_values
from conclugen.evaluation.protocol import Target
from conclugen.evaluation.solvers import Linear
from ray_jobs import embed, evaluate, evaluation
from ray_jobs.embedding import arrays, model
from ray_jobs.embedding import timeline as embed_timeline
from ray_jobs.embedding.clips import Embedded, Windows
from ray_jobs.embedding.embed import _METADATA, _check_features, _kept, _line, _refuse_rows_of_files, _usual_folder
from ray_jobs.embedding.model import RunModel
from ray_jobs.extraction.plan import Augmentation, recipe_of
from ray_jobs.options.embed import EmbedJob
from ray_jobs.run_config import ShardsConfig
from ray_jobs.run_folder import RunFolder
from shards import View
from shards.format.manifest import Manifest
from shards.format.schema import Label
from shards.reading.reader import Reader
from tests.ray_jobs.extraction.extraction_loop import make_clips, make_plan, run_loop
from tests.shards.media.make_media import make_video, sine

pytestmark = pytest.mark.usefixtures("blank_pictures")

ROOT = Path(__file__).parents[3]
NAMES = ("random-image", "random-video", "random-audio", "random-text")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Feature shards of 24 clips, and a finished, evaluated run on them."""
    root = tmp_path_factory.mktemp("embed")
    clips = make_clips(root / "clips", 2, 12, pictures=25)
    run_loop(make_plan(clips, root / "features", NAMES, augmentation=Augmentation(1)))
    make_run(root, "run", ("video", "audio"))
    return root


def make_run(root: Path, name: str, modalities: tuple[str, ...]) -> RunFolder:
    """A run as `ray_jobs.pretrain` and `ray_jobs.evaluate` leave it, but for the training."""
    manifest = Manifest.open(root / "features")
    widths = {m: sum(manifest.schema.column(c).width for c in manifest.modalities[m]) for m in modalities}
    config = presets.build(
        "contrast_only_video_audio",
        global_batch=8,
        epochs=1,
        model={"representation_dim": 8, "projection_dim": 8, "reconstruction_hidden_dim": 8},
    )
    moments = {m: (np.zeros(w), np.ones(w)) for m, w in widths.items()}
    pretrainer = Pretrainer(config, widths, 1, standardization=moments)
    folder = RunFolder(root / "runs" / name)
    composition = {m: list(manifest.modalities[m]) for m in modalities}
    export.save(folder.model, pretrainer, {"modalities": composition, "features": manifest.info["features"]})
    write_json(folder.config, {"data": {"folder": str(root / "features")}})
    data = ShardsConfig(folder=str(root / "features"), validation_view=None, split_unit="row")
    job = evaluate.EvaluateJob(name, "mood", data)
    (folder.evaluation / "features-mood").mkdir(parents=True)
    write_json(folder.evaluation / "features-mood/scores.json", {"job": asdict(job), "cells": []})
    return folder


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_video(tmp_path / "long.mp4", 100, (48, 64), sound=sine(4.0, 44_100, 1))


def arguments(root: Path, *more: str) -> list[str]:
    return ["--run", "run", "--output", str(root / "runs"), *more]


@pytest.mark.parametrize("file", ["probe.safetensors", "probe.json"])
def test_a_kept_probe_that_is_damaged_is_fitted_again(root: Path, tmp_path: Path, file: str) -> None:
    """Cut off, or with one bit flipped, which says nothing of itself."""
    run = RunFolder(shutil.copytree(root / "runs" / "run", tmp_path / "run"))
    expected = RunModel.open(run, None, "cpu").probe
    assert expected is not None
    place = run.evaluation / "features-mood" / file
    whole = place.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (bytes(flipped), whole[:-9], b""):
        place.write_bytes(content)
        found = RunModel.open(run, None, "cpu").probe
        assert found is not None and (found.label, found.classes) == (expected.label, expected.classes)
        np.testing.assert_array_equal(found.probe.model.weight, expected.probe.model.weight)
        assert place.read_bytes() == whole


def test_a_kept_probe_that_is_of_something_else_is_fitted_again(root: Path, tmp_path: Path) -> None:
    """Sealed and whole, as somebody else may have written it."""
    run = RunFolder(shutil.copytree(root / "runs" / "run", tmp_path / "run"))
    expected, place = RunModel.open(run).probe, run.evaluation / "features-mood"
    assert expected is not None
    said, own = json.loads((place / "probe.json").read_text()), expected.probe
    weight, bias = own.model.weight, own.model.bias
    for changes in (
        {"classes": expected.classes[:1]},
        {"label": "modd"},
        {"fusion": "mean"},
        {"probe": dataclasses.replace(own, kind="mood")},
        {"probe": dataclasses.replace(own, strength="1")},  # type: ignore[arg-type]
        {"probe": dataclasses.replace(own, scaling=Scaling.none(3))},
        {"probe": dataclasses.replace(own, scaling=Scaling.none(3), model=Linear(weight[:3], bias))},
        {"probe": dataclasses.replace(own, model=Linear(weight, bias[:1]))},
        {"probe": dataclasses.replace(own, model=Linear(weight * np.nan, bias))},
    ):
        model._save(place, dataclasses.replace(expected, **changes), said["model"], said["settings"])
        found = RunModel.open(run).probe
        assert found is not None and (found.label, found.classes, found.fusion) == ("mood", expected.classes, "concat")
        np.testing.assert_array_equal(found.probe.model.weight, weight)
        assert json.loads((place / "probe.json").read_text()) == said


def test_nothing_is_written_where_an_evaluation_s_links_lead(root: Path, tmp_path: Path) -> None:
    run, outside = RunFolder(shutil.copytree(root / "runs" / "run", tmp_path / "run")), tmp_path / "outside"
    shutil.move(run.evaluation / "features-mood", outside)
    for name in ("probe.json", "probe.safetensors"):
        (outside / name).unlink(missing_ok=True)
    (run.evaluation / "features-mood").symlink_to(outside)
    with pytest.raises(ValueError, match=r"features-mood/scores\.json: leads out of"):
        RunModel.open(run)
    assert [path.name for path in outside.iterdir()] == ["scores.json"]


def test_an_evaluation_that_can_t_be_read_is_named(root: Path, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(root / "runs" / "run", tmp_path / "run"))
    job: dict[str, Any] = {"run": "run", "label": "mood", "test_view": "test", "fusion": "concat"}
    job["data"] = {"folder": "/x"}
    wrong = [job | {"data": 3}, job | {"data": {}}, job | {"data": {"folder": [1]}}, job | {"interval_unit": 5}]
    wrong += [job | {"block_scales": {}}, job | {"fusion": None}, job | {"data": {"folder": "/x", "view": 10**40}}]
    for content in ("", "[]", '{"job": {"label": "mood"}}', *(json.dumps({"job": each}) for each in wrong)):
        (run.evaluation / "features-mood/scores.json").write_text(content)
        with pytest.raises(ValueError, match=r"scores\.json: is not an evaluation"):
            RunModel.open(run, None, "cpu")


def test_of_several_evaluations_one_is_chosen_by_name(
    root: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, the first of two of one label was taken, and of two labels none, without a word."""
    shutil.copytree(root / "runs", tmp_path / "runs")
    run = RunFolder(tmp_path / "runs/run")
    (run.evaluation / "features-mood-mean").mkdir()
    second = {**asdict(_job(root)), "fusion": "mean"}
    write_json(run.evaluation / "features-mood-mean/scores.json", {"job": second, "cells": []})
    asked = arguments(tmp_path, str(video), "--window", "9", "--stride", "1", "--embeddings")

    def said(name: str, *more: str, status: int = 0) -> str:
        assert embed.main([*asked, str(tmp_path / name), *more]) == status
        return "".join(capsys.readouterr())

    refused = said("a", "--label", "mood", status=2)
    for part in ("--evaluation: must be chosen", "'features-mood' (", "'features-mood-mean' (", ", 'mean')"):
        assert part in refused
    assert "several evaluations, 'features-mood', 'features-mood-mean'; choose by --evaluation" in said("b")
    assert "p.calm" not in pq.read_schema(tmp_path / "b/embeddings.parquet").names
    for name, fusion in (("features-mood", "concat"), ("features-mood-mean", "mean")):
        assert f"by the probe of evaluation {name!r}" in said(name, "--evaluation", name)
        probe = RunModel.open(run, evaluation=name).probe
        assert probe is not None and probe.fusion == fusion
        assert "p.calm" in pq.read_schema(tmp_path / name / "embeddings.parquet").names
    assert "did you mean 'features-mood'?" in said("c", "--evaluation", "feature-mood", status=2)
    assert "is of label 'mood', and --label is 'x'" in said("c", "--evaluation", name, "--label", "x", status=2)


def test_files_are_embedded_whole_and_by_windows(root: Path, video: Path, tmp_path: Path) -> None:
    status = embed.main(arguments(root, str(video), "--out", str(tmp_path / "out"), "--window", "1", "--stride", "0.5"))
    assert status == 0
    table = pq.read_table(tmp_path / "out/embeddings.parquet").to_pylist()
    assert [(row["start"], row["end"]) for row in table[1:]] == [(k / 2, k / 2 + 1) for k in range(7)]
    assert table[0]["whole"] and table[0]["end"] == 4.0 and not any(row["whole"] for row in table[1:])
    for row in table:
        assert row["present.video"] and row["present.audio"]
        assert row["p.calm"] + row["p.angry"] == pytest.approx(1.0) and len(row["embedding"]) == 16
    assert (tmp_path / "out/timeline-long.png").read_bytes().startswith(b"\x89PNG")
    archive = np.load(tmp_path / "out/embeddings.npz")  # without allow_pickle
    assert archive["keys"].tolist() == [str(video)] and archive["window_keys"].tolist() == [str(video)] * 7
    np.testing.assert_array_equal(archive["vectors"], np.array([table[0]["embedding"]], np.float32))
    expected = np.array([row["embedding"] for row in table[1:]], np.float32)
    np.testing.assert_array_equal(archive["window_vectors"], expected)
    assert archive["window_times"].tolist() == [[row["start"], row["end"]] for row in table[1:]]


def test_an_embedding_is_what_the_steps_give_one_by_one(root: Path, video: Path, tmp_path: Path) -> None:
    """Prepared, decoded, encoded, standardised and embedded by hand; the probe fitted by hand."""
    from shards.clips.decode import decode_clip
    from shards.clips.reader import StoredClip
    from shards.media.prepare import Request, prepare

    embed.main(arguments(root, str(video), "--out", str(tmp_path / "out"), "--window", "9", "--stride", "1"))
    (row,) = pq.read_table(tmp_path / "out/embeddings.parquet").to_pylist()
    prepared = prepare(Request(str(video)))
    clip = StoredClip("long", 0, prepared.video, prepared.sound, None, {"face": prepared.details["face"]})
    image = decode_clip(clip, (1,), (64, 64)).frames[1].pixels
    frames = decode_clip(clip, (16,), (180, 180))
    parts = [
        encoders.create(name).encode([value])[0]
        for name, value in zip(NAMES[:3], (image, frames.frames[16].pixels, frames.samples), strict=True)
    ]
    embedder = conclugen.load(root / "runs/run/model")
    features = {"video": np.concatenate(parts[:2])[None], "audio": parts[2][None]}
    np.testing.assert_allclose(row["embedding"], embedder.embed(features)[0], rtol=1e-5, atol=1e-6)

    job = evaluate.EvaluateJob(
        "run", "mood", ShardsConfig(folder=str(root / "features"), validation_view=None, split_unit="row")
    )
    read = evaluation.read_labelled(job, embedder.modalities)
    rows, train = read.rows, read.fold.train_rows
    missing = {m: np.where(rows.present[m][:, None], x, np.nan) for m, x in rows.features.items()}
    vectors = embedder.embed(missing).astype(np.float64)[train]
    probe = fit_classes(vectors, read.target.values[train], read.groups[train], 2)
    expected = probe.probabilities(embedder.embed(features))[0]
    np.testing.assert_allclose([row["p.calm"], row["p.angry"]], expected, rtol=1e-4)


def test_a_kept_probe_is_read_back_and_a_stale_one_is_not(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(root / "runs/run")
    first = RunModel.open(folder, "mood").probe
    monkeypatch.setattr("ray_jobs.embedding.model._fit", lambda *_: pytest.fail("fitted again"))
    second = RunModel.open(folder, "mood").probe
    assert first is not None and second is not None
    x = np.random.default_rng(0).standard_normal((3, 16))
    np.testing.assert_array_equal(first.probabilities(x), second.probabilities(x))
    document = folder.evaluation / "features-mood/probe.json"
    said = json.loads(document.read_text())
    write_json(document, {**said, "model": "another"})
    with pytest.raises(pytest.fail.Exception, match="fitted again"):
        RunModel.open(folder, "mood")
    write_json(document, said)


def test_the_probe_is_the_evaluation_s_own_in_weights_selection_and_unit(root: Path, tmp_path: Path) -> None:
    """Classes of unlike size, balanced, chosen by UAR: beside the fit by hand. Other settings are another probe."""
    run = RunFolder(shutil.copytree(root / "runs" / "run", tmp_path / "run"))
    manifest = Manifest.open(root / "features")
    mood = evaluation.read_labelled(_job(root), ("video", "audio"))
    train, classes = mood.rows.row[mood.fold.train_rows], mood.target.values[mood.fold.train_rows]
    fewer = np.setdiff1d(train, train[classes == 1][4:])
    View.where(manifest, np.isin(np.arange(manifest.rows), fewer), "unlike").save()
    scores = run.evaluation / "features-mood/scores.json"

    def opened(unit: str, **settings: str) -> RunModel:
        job = _job(root, view="unlike", split_unit=unit, comparison=ComparisonConfig(**settings))  # type: ignore[arg-type]
        write_json(scores, {"job": asdict(job), "cells": []})
        return RunModel.open(run, "mood")

    found = opened("row", probe_weights="balanced", select_by="uar").probe
    embedder = conclugen.load(run.model)
    read = evaluation.read_labelled(_job(root, view="unlike"), embedder.modalities)
    at, y = read.fold.train_rows, read.target.values[read.fold.train_rows]
    missing = {m: np.where(read.rows.present[m][:, None], x, np.nan) for m, x in read.rows.features.items()}
    vectors = embedder.embed(missing).astype(np.float64)[at]
    weights = [len(y) / (2 * (y == k).sum()) for k in (0, 1)]
    assert weights[1] > 1.3 * weights[0]
    by_hand = fit_classes(vectors, y, read.groups[at], 2, class_weights=weights, select_by="uar")
    assert found is not None
    np.testing.assert_allclose(found.probe.model.weight, by_hand.model.weight, rtol=1e-9)
    plain = opened("row").probe
    assert plain is not None and not np.allclose(plain.probe.model.weight, by_hand.model.weight)
    document = run.evaluation / "features-mood/probe.json"
    kept = json.loads(document.read_text())["settings"]
    assert kept == {
        "class_weights": "none",
        "select_by": "accuracy",
        "block_scales": "plain",
        "split_unit": "row",
    }
    opened("group")
    assert json.loads(document.read_text())["settings"]["split_unit"] == "group"
    write_json(scores, {"job": {**asdict(_job(root)), "comparison": {"select_by": "f1"}}, "cells": []})
    with pytest.raises(ValueError, match=r"is not an evaluation.*select_by"):
        RunModel.open(run, "mood")


def test_the_probe_has_the_evaluation_s_weights_of_modalities(root: Path, tmp_path: Path) -> None:
    """Each choice of `--block-scales chosen` fitted by hand on its own columns; the best on held-out groups is kept."""
    run = RunFolder(shutil.copytree(root / "runs" / "run", tmp_path / "run"))
    job = _job(root, block_scales="chosen")
    write_json(run.evaluation / "features-mood/scores.json", {"job": asdict(job), "cells": []})
    embedder = conclugen.load(run.model)
    read = evaluation.read_labelled(job, embedder.modalities)
    at = read.fold.train_rows
    missing = {m: np.where(read.rows.present[m][:, None], x, np.nan) for m, x in read.rows.features.items()}
    vectors = embedder.embed(missing).astype(np.float64)
    half = vectors.shape[1] // 2
    own = Scaling.fit(vectors[at]).apply(vectors)
    first, second = own[:, :half], own[:, half:]
    lead, rest = np.sqrt(2 * LEADING), np.sqrt(2 * (1 - LEADING))
    kinds = [own, np.hstack([lead * first, rest * second]), np.hstack([rest * first, lead * second]), first, second]
    fitted = [
        fit_classes(x[at], read.target.values[at], read.groups[at], 2, scaling=Scaling.none(x.shape[1])) for x in kinds
    ]
    best = max(range(len(kinds)), key=lambda i: max(fitted[i].scores.values()))
    model = RunModel.open(run, "mood")
    assert model.probe is not None
    expected = fitted[best].probabilities(kinds[best])
    np.testing.assert_allclose(model.probe.probabilities(vectors), expected, rtol=1e-7, atol=1e-9)
    assert RunModel.open(run, "mood").probe is not None  # read back
    said = json.loads((run.evaluation / "features-mood/probe.json").read_text())
    assert said["settings"]["block_scales"] == "chosen"


def test_each_number_of_a_continuous_label_has_a_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is said of it is the fit by hand on the labelled rows."""
    job, embedder = _job(root), conclugen.load(root / "runs/run/model")
    read = evaluation.read_labelled(job, embedder.modalities)
    missing = {m: np.where(read.rows.present[m][:, None], x, np.nan) for m, x in read.rows.features.items()}
    vectors, at = embedder.embed(missing).astype(np.float64), read.fold.train_rows
    made = np.random.default_rng(0).normal(size=(len(read.rows), 2))
    for values, names in ((made[:, 0], ("valence",)), (made, ("valence_0", "valence_1"))):
        target = Target("valence", "continuous", values)
        monkeypatch.setattr(evaluation, "read_labelled", lambda *_, t=target: dataclasses.replace(read, target=t))
        found = model._fit(asdict(job), embedder)
        assert (found.label, found.classes) == ("valence", names)
        by_hand = fit_values(vectors[at], values[at], read.groups[at])
        np.testing.assert_allclose(found.probabilities(vectors), by_hand.raw(vectors), rtol=1e-9, atol=1e-12)


def test_embeddings_by_other_scaling_are_of_another_probe(root: Path) -> None:
    model = RunModel.open(RunFolder(root / "runs/run"), "mood")
    assert model.probe is not None
    own = model.probe.probe
    for part in ("mean", "deviation"):
        scaling = dataclasses.replace(own.scaling, **{part: getattr(own.scaling, part) + 1})
        changed = dataclasses.replace(model.probe, probe=dataclasses.replace(own, scaling=scaling))
        other = dataclasses.replace(model, probe=changed)
        assert other.identity("concat")["probe"]["digest"] != model.identity("concat")["probe"]["digest"]


def _job(root: Path, view: str = "train", split_unit: str = "row", **more: object) -> evaluate.EvaluateJob:
    data = ShardsConfig(folder=str(root / "features"), view=view, validation_view=None, split_unit=split_unit)
    return evaluate.EvaluateJob("run", "mood", data, **more)  # type: ignore[arg-type]


def test_bad_files_are_told_by_name_and_the_rest_goes_on(
    root: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.mp4").write_text("text")
    bad, gone = str(tmp_path / "text.mp4"), str(tmp_path / "gone.mp4")
    assert embed.main(arguments(root, bad, str(video), gone, "--out", str(tmp_path / "out"))) == 3
    said = capsys.readouterr()
    assert f"{bad}: not_media" in said.err and f"{gone}: missing" in said.err and "1 of 3 clips" in said.out


def test_silent_files_have_no_audio(root: Path, tmp_path: Path) -> None:
    silent = make_video(tmp_path / "silent.mp4", 30)
    assert embed.main(arguments(root, str(silent), "--out", str(tmp_path / "out"))) == 0
    (row,) = pq.read_table(tmp_path / "out/embeddings.parquet").to_pylist()
    assert row["present.video"] and not row["present.audio"] and row["embedding"][8:] == [0.0] * 8


def test_other_weights_and_unknown_origins_are_refused(
    root: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(root / "runs", runs)
    document = runs / "run/model/config.json"
    said = json.loads(document.read_text())

    def status(info: dict) -> int:
        document.write_text(storage.document_text({**said, "info": info}))
        return embed.main(["--run", "run", "--output", str(runs), str(video), "--out", str(tmp_path / "out")])

    changed = json.loads(json.dumps(said["info"]))
    changed["features"]["encoders"][2]["digest"] = "0" * 64
    assert status(changed) == 2
    assert "encoder random-audio: digest is" in capsys.readouterr().err
    # exported without: the run's own shards tell
    without = {name: value for name, value in said["info"].items() if name != "features"}
    assert status(without) == 0
    write_json(runs / "run/config.json", {"data": {"folder": str(tmp_path / "nowhere")}})
    assert status(without) == 2
    assert "do not tell which encoders" in capsys.readouterr().err
    views = json.loads(json.dumps(said["info"]))
    views["modalities"]["video"] = ["random_image_v1"]
    assert status(views) == 2


def test_features_of_another_identity_are_refused(root: Path) -> None:
    """Whichever side states what differs; beyond the digest of the weights, which a formula may keep."""
    model, features = RunModel.open(RunFolder(root / "runs/run")), Manifest.open(root / "features")

    def changed(info: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
        copy = json.loads(json.dumps(info))
        (made,) = (item for item in copy["features"]["encoders"] if item["name"] == "random-audio")
        made |= change
        return copy

    _check_features(model, features)
    for entry, value in (("layers", "9"), ("pooling", "meanstd"), ("preprocessing", "x"), ("digest", "0" * 64)):
        info = changed(features.info, {entry: value})
        theirs = SimpleNamespace(info=info, folder="other")
        mine = dataclasses.replace(model, recipe=recipe_of(info))
        for run, data in ((model, theirs), (mine, features)):
            with pytest.raises(ValueError, match=rf"column 'random_audio' was made by random-audio, whose {entry} is "):
                _check_features(run, data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (("modalities",), None, "info.modalities is missing, expected a mapping from modalities to lists"),
        (("modalities",), ["video"], 'info.modalities is ["video"], expected a mapping'),
        (("modalities", "audio"), None, "info.modalities.audio is missing, expected a list"),
        (("modalities", "video"), "random_image", 'info.modalities.video is "random_image", expected a list'),
        (("modalities", "video"), [], "info.modalities.video is [], expected a list of one or more"),
        (("modalities", "video"), [1], "info.modalities.video is [1]"),
        (("modalities", "video"), ["random_audio"], "the columns random_audio are"),
        (("features",), "resnet", "expected a mapping with a list of encoders"),
        (("features", "encoders"), None, "'encoders' is missing"),
        (("features", "encoders"), {}, "expected a mapping with a list of encoders"),
        (("features", "encoders"), ["x"], "cannot be read"),
        (("features", "encoders", 1), {"name": "random-video"}, "'column' is missing"),
        (("features", "encoders", 1, "width"), "many", 'encoders[1].width is "many"'),
        (("features", "encoders", 0, "name"), None, "'name' is missing"),
        (("features", "crop"), "sideways", "--crop 'sideways' is unknown"),
    ],
)
def test_an_export_that_lacks_what_embed_needs_is_told_in_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], field: tuple, value: object, message: str
) -> None:
    """Models that something else than ray_jobs.pretrain exported, or a hand changed; None: the field is not there."""
    run = RunFolder(shutil.copytree(root / "runs" / "run", tmp_path / "runs" / "run"))
    document = run.model / "config.json"
    said = json.loads(document.read_text())
    place = said["info"]
    for name in field[:-1]:
        place = place[name]
    if value is None:
        del place[field[-1]]
    else:
        place[field[-1]] = value
    document.write_text(storage.document_text(said))
    assert embed.main(["--run", "run", "--output", str(tmp_path / "runs"), "a.mp4", "--out", str(tmp_path / "o")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0] and str(document) in errors[0]
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "expected video files, or --data with shards of clips or features"),
        (["a.mp4", "b.mp4", "--text", "words"], "--text: is what one clip says; give one clip"),
        (["a.mp4", "--fusion", "sum"], "--fusion: unknown value 'sum'; allowed: concat, mean"),
        (["a.mp4", "--label", "modd"], "did you mean 'mood'"),
        (["a.mp4", "--window", "1", "--stride", "2"], "--stride: must be above 0 and within the window (1 s), got 2"),
        (["--features", "/nowhere"], "no manifest at /nowhere"),
        (["a.mp4", "s3://bucket/b.mp4"], "s3://bucket/b.mp4: must be a local path, got an address"),
        (["a.mp4", "--embeddings", "s3://bucket/x"], "s3://bucket/x: must be a local path, got an address"),
        (["a.mp4", "--output", "s3://bucket/runs"], "s3://bucket/runs: must be a local path, got an address"),
    ],
)
def test_wrong_input(root: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert embed.main(arguments(root, *more)) == 2
    assert message in capsys.readouterr().err
    assert embed.main(["--run", "runs", "--output", str(root / "runs"), "a.mp4"]) == 2
    assert "allowed: run; did you mean 'run'?" in capsys.readouterr().err


def test_windows_lie_in_the_clip() -> None:
    assert Windows(2.0, 0.5).over(1.9) == [] and Windows(2.0, 0.5).over(2.4) == []
    assert Windows(2.0, 0.5).over(3.0) == [(0.0, 2.0), (0.5, 2.5), (1.0, 3.0)]


def test_the_timeline_without_a_probe_shows_change(tmp_path: Path) -> None:
    x = np.array([[1.0, 0], [1, 0], [0, 2], [0, -1]])
    np.testing.assert_allclose(embed_timeline.change(x), [0, 1, 2])
    path = embed_timeline.draw([(0, 1), (1, 2), (2, 3), (3, 4)], x, None, (), tmp_path / "a/b.png", "title")
    assert path.stat().st_size > 1000
    with pytest.raises(ValueError, match="two or more"):
        embed_timeline.draw([(0, 1)], x[:1], None, (), tmp_path / "c.png", "")


def test_a_later_call_adds_its_clips_and_mixes_nothing(
    root: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, a second call replaced the rows of the first without a word."""
    other = shutil.copy(video, tmp_path / "other.mp4")
    out, once = tmp_path / "out", ["--window", "9", "--stride", "1"]
    for file in (video, other, video):
        assert embed.main(arguments(root, str(file), "--embeddings", str(out), *once)) == 0
    table = pq.read_table(out / "embeddings.parquet")
    assert sorted(table["path"].to_pylist()) == sorted([str(video), str(other)])
    capsys.readouterr()
    mean = arguments(root, str(video), "--embeddings", str(out), "--fusion", "mean", *once)
    assert embed.main(mean) == 2
    told = (
        'embeddings.parquet holds embeddings that differ in fusion (there "concat", here "mean"); choose another folder'
    )
    assert told in capsys.readouterr().err
    assert pq.read_table(out / "embeddings.parquet").equals(table)
    assert embed.main([*mean, "--overwrite"]) == 0
    assert pq.read_table(out / "embeddings.parquet")["path"].to_pylist() == [str(video)]
    with folder_held(out, "embeddings are being written here", "another --embeddings"):
        assert embed.main([*mean, "--overwrite"]) == 2
    assert "embeddings are being written here by process" in capsys.readouterr().err
    assert not list(out.glob(".*"))


def test_arrays_are_never_those_of_another_table(
    root: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two files there are none; the next call writes both."""
    out, other = tmp_path / "out", make_video(tmp_path / "other.mp4", 30)
    given = [root, str(other), "--out", str(out)]
    assert embed.main(arguments(root, str(video), "--out", str(out))) == 0
    assert np.load(out / "embeddings.npz")["keys"].tolist() == [str(video)]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("ray_jobs.embedding.arrays.write_files", killed)
        with contextlib.suppress(KeyboardInterrupt):
            embed.main(arguments(*given))
    assert pq.read_table(out / "embeddings.parquet")["path"].unique().to_pylist() == [str(video), str(other)]
    assert not (out / "embeddings.npz").exists()
    assert embed.main(arguments(*given)) == 0
    assert np.load(out / "embeddings.npz")["keys"].tolist() == [str(video), str(other)]


def test_files_and_a_corpus_do_not_share_a_folder(
    root: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, --overwrite of the corpus removed the embeddings of files as well."""
    out = tmp_path / "out"
    assert embed.main(arguments(root, str(video), "--embeddings", str(out), "--window", "9", "--stride", "1")) == 0
    corpus = arguments(root, "--data", str(root / "features"), "--embeddings", str(out))
    write_json(out / "_embedding.json", {"of": "an earlier corpus"})  # both, as an earlier version left them
    capsys.readouterr()
    whole = (out / "embeddings.parquet").read_bytes()
    assert embed.main([*corpus, "--overwrite"]) == 2
    assert f"{out}/embeddings.parquet holds embeddings of files; choose another" in capsys.readouterr().err
    assert embed.main(arguments(root, str(video), "--embeddings", str(out), "--overwrite")) == 2
    assert f"--embeddings: {out} holds the embeddings of a corpus" in capsys.readouterr().err
    assert (out / "embeddings.parquet").read_bytes() == whole


def test_after_a_whole_run_files_are_embedded_beside_its_corpus(tmp_path: Path) -> None:
    """`conclugen run` ends with the embeddings of its corpus, and names `embed CLIP` as the next step."""
    files, corpus = EmbedJob(run="first", files=("a.mp4",)), EmbedJob(run="first", data="shards")
    folder = tmp_path / "embeddings"
    folder.mkdir()
    assert [_usual_folder(tmp_path, job) for job in (files, corpus)] == [folder, folder]
    (folder / "embeddings.parquet").touch()
    assert [_usual_folder(tmp_path, job).name for job in (files, corpus)] == ["embeddings", "embeddings-of-shards"]
    (folder / "_embedding.json").touch()
    assert [_usual_folder(tmp_path, job).name for job in (files, corpus)] == ["embeddings-of-files", "embeddings"]


def test_room_for_the_embeddings_of_a_corpus_is_asked_for_before_any_work(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two bytes a number, less what an earlier start has left there."""
    out = tmp_path / "out"
    numbers = conclugen.load(root / "runs/run/model").width() * Manifest.open(root / "features").rows

    def full(option: str, folder: Path, least: int, what: str) -> NoReturn:
        there = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        assert (option, folder, least + there) == ("--embeddings", out, 2 * numbers)
        raise OSError(f"no room for {what}")

    monkeypatch.setattr("ray_jobs.embedding.embed.check_room", full)
    monkeypatch.setattr("ray_jobs.ray_cluster.connect", lambda *_, **__: pytest.fail("Ray was started"))
    assert embed.main(arguments(root, "--data", str(root / "features"), "--embeddings", str(out))) != 0
    assert "no room for the embeddings of all rows" in capsys.readouterr().err


def test_a_table_of_something_else_is_refused(root: Path, tmp_path: Path) -> None:
    """By what it says of itself, and by its columns."""
    identity = {"run": "ab"}
    columns = {
        "path": pa.array(["a"]),
        "start": pa.array([0.0]),
        "end": pa.array([1.0]),
        "whole": pa.array([True]),
        "embedding": pa.array([[0.5]], pa.list_(pa.float32())),
    }

    def kept(columns: dict[str, pa.Array], said: str | None) -> pa.Table | None:
        metadata = None if said is None else {_METADATA: said}
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), tmp_path / "a.parquet")
        return _kept(tmp_path / "a.parquet", identity, False)

    whole = kept(columns, json.dumps(identity))
    assert whole is not None and whole["path"].to_pylist() == ["a"]
    for said in (None, "5", "[]", "null", '"ab"', "{", "[" * 100_000):
        with pytest.raises(ValueError, match="does not say whose embeddings it holds"):
            kept(columns, said)
    for name in columns:
        for changed in ({n: c for n, c in columns.items() if n != name}, columns | {name: pa.array([7])}):
            with pytest.raises(ValueError, match=f"does not say whose .*column.* '{name}'"):
                kept(changed, json.dumps(identity))
    with pytest.raises(ValueError, match=r'differ in run \(there "cd", here "ab"\); choose'):
        kept(columns, '{"run": "cd"}')


def test_a_corpus_removes_no_embeddings_of_files(tmp_path: Path) -> None:
    """A shard's own file may have the same name, and what is not whole is made again."""
    path, table = tmp_path / "embeddings.parquet", pa.table({"embedding": [[0.5]]})
    _refuse_rows_of_files(path)
    for metadata in (None, {b"conclugen": b"1"}):
        pq.write_table(table.replace_schema_metadata(metadata), path)
        _refuse_rows_of_files(path)
    pq.write_table(table.replace_schema_metadata({_METADATA: b"{}"}), path)
    with pytest.raises(ValueError, match=r"embeddings\.parquet holds embeddings of files; choose another folder"):
        _refuse_rows_of_files(path)
    path.write_bytes(path.read_bytes()[:-9])
    _refuse_rows_of_files(path)


@pytest.fixture
def decodes_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's entry points as pyproject.toml declares them, whether or not it is installed here."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]

    def installed(group: str) -> tuple[EntryPoint, ...]:
        return tuple(EntryPoint(name, value, group) for name, value in declared.get(group, {}).items())

    monkeypatch.setattr("conclugen.common.plugins.installed", installed)


def test_a_model_encodes_files_in_one_call(
    root: Path, video: Path, tmp_path: Path, decodes_files: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The vectors of the job, in the order of the files; silent ones and texts too."""
    silent = make_video(tmp_path / "silent.mp4", 30)
    assert embed.main(arguments(root, str(video), str(silent), "--out", str(tmp_path / "out"))) == 0
    rows = {row["path"]: row for row in pq.read_table(tmp_path / "out/embeddings.parquet").to_pylist() if row["whole"]}
    model = conclugen.load(root / "runs/run/model")
    capsys.readouterr()
    vectors = model.encode([silent, str(video)], texts=[None, "words"])
    assert vectors.shape == (2, 16) and vectors.dtype == np.float32 and "2/2 clips" in capsys.readouterr().out
    expected = [rows[str(path)]["embedding"] for path in (silent, video)]
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.encode([video], "audio", progress=False)[0], expected[1][8:], rtol=1e-5, atol=1e-6)
    assert model.encode([]).shape == (0, 16)


def test_what_can_t_be_encoded_is_told_in_one_line(
    root: Path, video: Path, tmp_path: Path, decodes_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = conclugen.load(root / "runs/run/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    (tmp_path / "text.mp4").write_text("text")
    for paths, options, words in (
        ([tmp_path / "text.mp4"], {}, r"text\.mp4: not_media: .*; leave it out"),
        ([video, tmp_path / "gone.mp4"], {}, r"gone\.mp4: missing"),
        ([video], {"fusion": "sum"}, "fusion: unknown value 'sum'"),
        ([video], {"texts": ["a", "b"]}, "texts: found 2, expected one for each of the 1 files"),
        ([video], {"plugin": ["no_such_module"]}, "plugin: module 'no_such_module' can't be imported"),
    ):
        with pytest.raises(ValueError, match=words):
            model.encode(paths, progress=False, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"paths: found 'a\.mp4', expected a list of files, such as \['a\.mp4'\]"):
        model.encode("a.mp4")
    told = json.loads(json.dumps(model.info))
    for entry, value, words in (
        ("modalities", None, "info.modalities is missing, expected a mapping"),
        ("modalities", ["video"], r'info.modalities is \["video"\], expected a mapping'),
        ("modalities", told["modalities"] | {"video": "random_image"}, 'info.modalities.video is "random_image"'),
        ("modalities", told["modalities"] | {"video": ["random_audio"]}, "the columns random_audio are"),
        ("features", "resnet", "expected a mapping with a list of encoders"),
    ):
        model.info[entry] = value
        if value is None:
            del model.info[entry]
        with pytest.raises(ValueError, match=words):
            model.encode([video], progress=False)
        model.info[entry] = told[entry]
    # Hints are of Python's arguments.
    for name, words in (
        (
            "hf-image:owner/vit@layer=1",
            r'weights={"hf-image:owner/vit": "FOLDER"}, or mirror="FOLDER"; weights={"hf-im',
        ),
        (
            "resnet152",
            r'name your copy with weights={"resnet152": "FILE"}, or the folder that holds it with mirror="FO',
        ),
    ):
        changed = json.loads(json.dumps(told["features"]))
        changed["encoders"][0]["name"] = name
        model.info["features"] = changed
        with pytest.raises(ValueError, match=re.escape(words)) as caught:
            model.encode([video], progress=False)
        assert "--" not in str(caught.value)
    # Exported without: the run's own shards tell; a model that lies elsewhere has none.
    del model.info["features"]
    assert model.encode([video], progress=False).shape == (1, 16)
    model.folder = Path(shutil.copytree(root / "runs/run/model", tmp_path / "elsewhere/model"))
    with pytest.raises(ValueError, match="do not tell which encoders made their features"):
        model.encode([video])
    monkeypatch.setattr("conclugen.common.plugins.installed", lambda group: ())
    with pytest.raises(ImportError, match=r'needs the jobs: pip install "conclugen\[media,train\]"'):
        model.encode([video])


def test_the_example_with_scikit_learn_runs(
    root: Path, tmp_path: Path, decodes_files: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/encoders.md").read_text("utf-8"), re.DOTALL)
    (example,) = (text for text in examples if "sklearn" in text)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/first").symlink_to(root / "runs/run")
    for number, name in enumerate("abcd"):
        make_video(tmp_path / f"{name}.mp4", 25, (48, 64), sound=sine(1.0, 44_100, 1, 300.0 + 100 * number))
    monkeypatch.chdir(tmp_path)
    exec(example, {})  # noqa: S102  the project's own page
    assert re.search(r"\['(calm|angry)' '(calm|angry)'\]", capsys.readouterr().out)


@pytest.mark.parametrize(("reaches", "far"), [(1e-9, True), (1e9, False)])
def test_a_clip_far_from_what_the_model_knows_is_told_with_its_share(
    reaches: float, far: bool, root: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known clips whose distances go from 0 to nearly nothing, or to very much, in steps of half a hundredth."""
    runs = tmp_path / "runs"
    shutil.copytree(root / "runs/run", runs / "run")
    path = runs / "run/model/config.json"
    document = json.loads(path.read_text())
    document["info"]["reach"] = {"video": np.linspace(0, reaches, 201).tolist()}
    document.pop("seal", None)
    path.write_text(storage.document_text(document))
    out = tmp_path / "out"
    assert embed.main(["--run", "run", "--output", str(runs), str(video), "--embeddings", str(out)]) == 0
    said = capsys.readouterr().out
    assert ("warning: unlike the clips" in said and "video lies farther than 100.0% of them" in said) is far
    table = pq.read_table(out / "embeddings.parquet")
    assert table["nearer.video"][0].as_py() == pytest.approx(1.0 if far else 0.0, abs=1e-6)
    assert "nearer.audio" not in table.column_names


def test_the_archive_of_a_corpus_has_its_labels_and_speakers(root: Path, tmp_path: Path) -> None:
    """Beside the shards' own index; a clip without an embedding is left out."""
    manifest, expected, paths = Manifest.open(root / "features"), [], {}
    reader = Reader(manifest, View.everything(manifest))
    for shard in range(len(manifest)):
        index = reader.metadata(shard).to_pylist()
        rows = [{"key": row["key"], "row": i, "embedding": [shard, i]} for i, row in enumerate(index)]
        rows[3]["embedding"] = None
        paths[shard] = tmp_path / f"{shard}.parquet"
        kinds = {"key": pa.string(), "row": pa.int32(), "embedding": pa.list_(pa.float32())}
        pq.write_table(pa.Table.from_pylist(rows, pa.schema(kinds)), paths[shard])
        mood = manifest.schema.label("mood")
        kept = [(i, row) for i, row in enumerate(index) if i != 3]
        expected += [
            (row["key"], row["group"] or "", mood.to_json(row["label.mood"]) or "", shard, i) for i, row in kept
        ]
    assert "" in [mood for _, _, mood, _, _ in expected], "some clips have no label"
    arrays.write_corpus(manifest, paths, 2, tmp_path)
    archive = np.load(tmp_path / "embeddings.npz")
    columns = [archive[name].tolist() for name in ("keys", "speakers", "label.mood")]
    assert list(zip(*columns, *archive["vectors"].T.tolist(), strict=True)) == expected
    assert {archive[name].dtype.kind for name in archive} == {"U", "f"} and archive["vectors"].dtype == np.float32
    values = [None, 0.5, 2.0]
    np.testing.assert_array_equal(arrays._label(Label("valence", "continuous"), values), [np.nan, 0.5, 2.0])
    both = arrays._label(Label("both", "multilabel", ("a", "b")), [[1.0, 0.0], None])
    np.testing.assert_array_equal(both, [[1.0, 0.0], [np.nan, np.nan]])
    arrays.write_corpus(manifest, {}, 2, tmp_path)
    assert np.load(tmp_path / "embeddings.npz")["vectors"].shape == (0, 2)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (1.8, "clip.mp4: 1.80 s, audio, as a whole (too short for windows of 2 s)"),
        (2.4, "clip.mp4: 2.40 s, audio, as a whole (too short for windows of 2 s)"),
        (3.0, "clip.mp4: 3.00 s, audio, as a whole and in 3 windows of 2 s"),
    ],
)
def test_the_line_of_a_clip_says_why_it_has_no_windows(seconds: float, said: str) -> None:
    windows = Windows(2.0, 0.5)
    stretches = ((0.0, seconds), *windows.over(seconds))
    there = {"video": np.zeros(len(stretches), bool), "audio": np.ones(len(stretches), bool)}
    result = Embedded("clip.mp4", stretches, np.zeros((len(stretches), 2)), None, there)
    assert _line(result, (), windows) == said
