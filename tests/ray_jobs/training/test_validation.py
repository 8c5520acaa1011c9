"""What is measured on held-out rows: by which names, and that a collapsed representation is said so."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from conclugen import Pretrainer, export, presets
from conclugen.evaluation import health
from conclugen.training import checkpoint
from ray_jobs.embedding.model import RunModel
from ray_jobs.run_config import DataConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.source import Source, open_reader
from ray_jobs.training.pretraining import beside_raw
from ray_jobs.training.validation import Validation, beside
from ray_jobs.training.validation import told as tasks_tell
from shards import Manifest, Reader, Rows, View
from tests.feature_corpus import write_corpus


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "shards", speakers=6, takes=6)


def untrained(preset: str, manifest: Manifest) -> Pretrainer:
    config = presets.build(preset, global_batch=20, model={"representation_dim": 8, "projection_dim": 4})
    widths = {
        name: sum(manifest.schema.column(column).width for column in columns)
        for name, columns in manifest.schema.resolve(None).items()
    }
    moments = {name: (torch.zeros(width), torch.ones(width)) for name, width in widths.items()}
    standardization = moments if config.model.standardize else None
    return Pretrainer(config, widths, steps_per_epoch=3, standardization=standardization)


def test_neighbours_are_of_other_speakers_and_have_a_label() -> None:
    """Speakers 0, 2 and 4 vote on 1, 3 and 5, who lie beside the voters of the wrong class, and beside each other: a
    vote that rows which are judged take part in would be right."""
    speaker = np.repeat(np.arange(6), 5)
    label = speaker // 2 % 2
    side = np.where(speaker % 2 == 0, label, 1 - label)
    z = {"video": torch.from_numpy(2.0 * side[:, None] - 1)}
    known = np.where(np.arange(len(speaker)) % 5 == 0, -1, label)
    found = {}
    for name, group in {"six": speaker, "one": np.zeros_like(speaker)}.items():
        rows = Rows({}, {}, np.arange(len(speaker)), {"emotion": known}, group)
        found[name] = Validation(rows, "emotion", 2)._neighbour_accuracy("emotion", z)
    assert found["six"] == 0.0 and np.isnan(found["one"]), "nobody votes on the only speaker"


def test_held_out_rows_that_cannot_be_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_corpus(tmp_path / "shards", speakers=6, takes=2)
    entry, held = manifest.entry(0), View.open(manifest, "valid")
    damaged = int(np.flatnonzero(held.mask(0))[0])
    path = Path(manifest.folder) / f"{entry.name}.tar"
    data = bytearray(path.read_bytes())
    data[damaged * entry.stride + entry.stride // 2] ^= 0x10
    path.write_bytes(data)
    config = DataConfig(folder=manifest.folder, max_corrupt_share=0.5)
    validation = Validation.open(config, manifest, ("video", "audio"))
    assert validation is not None
    key = Reader(manifest).metadata(0)["key"][damaged].as_py()
    said = capsys.readouterr().out
    assert said.count("left out of validation: ") == 1 and f"sample {key!r} of {entry.name}: " in said


def test_a_collapsed_representation_is_warned_of(manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    pretrainer = untrained("contrast_only", manifest)
    with torch.no_grad():
        for parameter in pretrainer.model.parameters():
            parameter.zero_()
    validation = Validation.open(DataConfig(folder=manifest.folder), manifest, pretrainer.config.modalities)
    assert validation is not None
    validation.measure(pretrainer)
    assert "warning: effective rank of video is" in capsys.readouterr().out


def test_it_takes_two_looks_to_say_that_modalities_do_not_belong_together(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of few rows one look in many says so by chance; each look counts in the curve of warnings all the same."""
    pretrainer = untrained("contrast_only_video_audio", manifest)
    validation = Validation.open(DataConfig(folder=manifest.folder), manifest, pretrainer.config.modalities)
    assert validation is not None
    looks = ((False, False), (True, False), (False, False), (True, False), (True, True), (True, True), (False, False))
    counts = {True: set[float](), False: set[float]()}
    for chance, told in looks:
        monkeypatch.setattr(health, "no_better_than_chance", lambda *_, chance=chance: chance)
        measured = validation.measure(pretrainer)
        assert ("warning: retrieval video-audio finds" in capsys.readouterr().out) is told
        counts[chance].add(measured["warnings"])
    assert [len(counts[chance]) for chance in (True, False)] == [1, 1] and min(counts[True]) == min(counts[False]) + 1


def test_measures_are_of_the_model_that_was_embedded_whatever_it_became(manifest: Manifest) -> None:
    """They are made in a thread while training continues."""
    pretrainer = untrained("contrast_only", manifest)
    data = DataConfig(folder=manifest.folder, label="emotion")
    validation = Validation.open(data, manifest, pretrainer.config.modalities)
    assert validation is not None
    expected = validation.measure(pretrainer)
    now, at_checkpoint = validation.embedded(pretrainer), beside(validation, pretrainer)
    tasks, state = tasks_tell(pretrainer), checkpoint.snapshot(pretrainer, {}, memory=checkpoint.HostMemory())
    with torch.no_grad():
        for parameter in pretrainer.model.parameters():
            parameter.mul_(-0.5)
    # Where one is NaN (a rare class), the other is.
    np.testing.assert_equal(validation.measured(now, tasks), expected)
    found: list[dict[str, float]] = []
    thread = threading.Thread(target=lambda: found.append(at_checkpoint(state)))
    thread.start()
    thread.join()
    np.testing.assert_equal(found, [expected])
    changed = validation.measure(pretrainer)
    assert any(changed[name] != value for name, value in expected.items() if not np.isnan(value))


@pytest.mark.parametrize("preset", ["conclugen", "contrast_only_video_audio", "generative_only"])
def test_names_are_known_before_the_first_step(preset: str, manifest: Manifest) -> None:
    """Those of tasks too, which are measured only after a step with them."""
    pretrainer = untrained(preset, manifest)
    data = DataConfig(folder=manifest.folder, label="emotion")
    validation = Validation.open(data, manifest, pretrainer.config.modalities)
    assert validation is not None
    for name, buffer in pretrainer.model.named_buffers():
        if name.endswith(".assigned"):
            buffer += 1
    measured = validation.measure(pretrainer)
    assert sorted(validation.names(pretrainer.config, pretrainer.widths)) == sorted(measured)
    assert {"effective_rank/video", "warnings", "neighbour_accuracy"} <= measured.keys()


def test_scales_of_concat_and_raw_are_of_training_rows_alone(manifest: Manifest, tmp_path: Path) -> None:
    """Read by hand through the training view; exported, they come back with the model that embedding jobs open."""
    pretrainer = untrained("contrast_generative", manifest)
    modalities = pretrainer.config.modalities
    source = Source.open(DataConfig(folder=manifest.folder), pretrainer.config)
    export.save(tmp_path / "run" / "model", pretrainer, source.model_info(), beside_raw(pretrainer, source))
    (tmp_path / "run" / "config.json").write_text("{}")  # no shards named: how features were made is not known
    model = RunModel.open(RunFolder(tmp_path / "run"))
    views = {name: rows_of(manifest, name, modalities) for name in ("train", "test")}
    made = {}
    for name, rows in views.items():
        x = {m: np.where(rows.present[m][:, None], rows.features[m], np.nan) for m in modalities}
        made[name], _ = model.represent(x, "concat+raw")
    width = 8 * len(modalities)
    spread = made["train"].astype(np.float64).var(axis=0)
    assert made["train"].shape[1] == model.embedder.width("concat+raw") == width + sum(model.embedder.widths.values())
    np.testing.assert_allclose(made["train"].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose([spread[:width].sum(), spread[width:].sum()], len(spread) / 2, rtol=1e-3)
    assert abs(made["test"].mean(axis=0)).max() > 0.05  # other speakers: no scale was fitted on them
    train, test = views["train"], views["test"]
    at = width  # the first raw column of the first modality, by hand
    first = modalities[0]
    column, here = train.features[first][:, 0].astype(np.float64), train.present[first]
    filled = np.where(here, column, column[here].mean())
    factor = np.sqrt(len(spread) / 2 / len(modalities) / train.features[first].shape[1]) / filled.std()
    expected = (
        np.where(test.present[modalities[0]], test.features[modalities[0]][:, 0] - column[here].mean(), 0) * factor
    )
    np.testing.assert_allclose(made["test"][:, at], expected, rtol=1e-3, atol=1e-4)


def rows_of(manifest: Manifest, view: str, modalities: tuple[str, ...]) -> Rows:
    reader = open_reader(DataConfig(manifest.folder), manifest, View.open(manifest, view), modalities)
    return reader.read_ranges([(shard, 0, int(count)) for shard, count in enumerate(reader.counts) if count])
