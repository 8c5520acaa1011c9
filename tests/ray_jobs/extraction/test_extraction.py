"""Extraction without Ray: what lands in the feature shards, what is quarantined, what is resumed, what is refused."""

from __future__ import annotations

import importlib
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
import ray.data
import webdataset

from conclugen import encoders
from conclugen.common.locks import bytes_in
from conclugen.common.options import OptionsError
from conclugen.encoders import EncoderError
from conclugen.encoders.views import augment
from ray_jobs import embed, extract_features
from ray_jobs.extraction import clip_features as extraction_clips
from ray_jobs.extraction.clip_features import (
    ALL_REASONS,
    Decoded,
    EncoderStage,
    decode_inputs,
    encode_within_breaks,
    input_of,
)
from ray_jobs.extraction.extract import Resources, choices_of, data_settings, resources_of, room_needed
from ray_jobs.extraction.plan import REPORTS, Augmentation, Decoding, EncoderChoice, Extraction, Recipe, recipe_of
from ray_jobs.options.extract import EncoderOptions
from shards.adapters import read_clips
from shards.clips.build import build_shard
from shards.clips.decode import decode_clip
from shards.clips.plan import BuildOptions, BuildPlan
from shards.clips.reader import ClipManifest, ClipReader, StoredClip
from shards.clips.summary import finish as build_clips
from shards.errors import ManifestError
from shards.format.layout import least_bytes
from shards.format.manifest import Manifest
from shards.media.face_track import Faces, FaceTrack
from shards.media.frames import Frames
from shards.media.limits import Limits
from shards.planning.view import View
from shards.reading.reader import Reader
from shards.tools.check_stored import stored_samples
from tests.ray_jobs.embedding.test_embed import NAMES, make_run
from tests.ray_jobs.extraction.extraction_loop import RANDOM, make_clips, make_plan, run_loop
from tests.shards.media.make_media import make_video


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipManifest:
    return make_clips(tmp_path_factory.mktemp("clips"))


def rows_of(folder: Path) -> dict[str, dict]:
    """Key -> everything the feature shards say of the clip."""
    manifest = Manifest.open(folder)
    reader = Reader(manifest, View.everything(manifest))
    found = {}
    for shard in range(len(manifest)):
        rows = reader.read(shard, 0, int(manifest.counts[shard]))
        table = reader.metadata(shard)
        for i, key in enumerate(table["key"].to_pylist()):
            features = {m: x[i].copy() if rows.present[m][i] else None for m, x in rows.features.items()}
            index = {name: table[name][i].as_py() for name in table.column_names}
            found[key] = {"features": features, "index": index}
    return found


def test_features_are_the_encoders_own_and_the_rest_is_the_clips(clips: ClipManifest, tmp_path: Path) -> None:
    summary = run_loop(make_plan(clips, tmp_path))
    assert (summary.clips, summary.written, summary.quarantined, summary.exit_status) == (8, 8, {}, 0)
    assert summary.missing == {"random_audio": 2, "random_text": 2} and summary.views == {"train": 6, "test": 2}
    manifest = Manifest.open(tmp_path)
    assert manifest.labels == clips.labels and manifest.modalities["video"] == ("random_image",)
    assert list(manifest.shards["name"].to_pylist()) == list(clips.shards["name"].to_pylist())
    found = rows_of(tmp_path)
    image, audio, text = (encoders.create(name) for name in RANDOM)
    reader = ClipReader(clips)
    for shard in range(len(clips)):
        index = reader.table(shard)
        for row, clip in enumerate(reader.clips(shard)):
            decoded = decode_clip(clip, (1,), (64, 64))
            mine = found[clip.key]
            np.testing.assert_array_equal(mine["features"]["video"], image.encode([decoded.frames[1].pixels])[0])
            for modality, encoder, value in (("audio", audio, decoded.samples), ("text", text, decoded.text)):
                wanted = None if value is None else encoder.encode([value])[0]
                np.testing.assert_array_equal(mine["features"][modality], wanted)
            for name in ("label.mood", "group", "text", "meta.split", "meta.source"):
                assert mine["index"][name] == index[name][row].as_py(), name
    train = View.open(manifest, "train")
    reader_of_train = Reader(manifest, train)
    keys = [reader_of_train.metadata(shard)["key"].to_pylist() for shard in range(len(manifest))]
    chosen = {keys[shard][i] for shard in range(len(manifest)) for i in train.indices(shard)}
    assert chosen == {"c0", "c1", "c2", "c4", "c5", "c6"}


def test_views_are_stored_beside_the_clean_features(clips: ClipManifest, tmp_path: Path) -> None:
    plan = make_plan(clips, tmp_path, ("random-image", "random-audio"), augmentation=Augmentation(2, "strong", 9))
    run_loop(plan)
    manifest = Manifest.open(tmp_path)
    assert set(manifest.modalities) == {"video", "audio", "video_v1", "audio_v1", "video_v2", "audio_v2"}
    found = rows_of(tmp_path)
    clip = ClipReader(clips).read(0, 0)
    frames = decode_clip(clip, (1,), (64, 64)).frames[1].pixels
    for view in (1, 2):
        changed = augment("frames", frames, seed=9, key="c0", view=view, strength="strong")
        wanted = encoders.create("random-image").encode([changed])[0]
        np.testing.assert_array_equal(found["c0"]["features"][f"video_v{view}"], wanted)
        assert not np.allclose(wanted, found["c0"]["features"]["video"], atol=1e-3)


def test_fp16_shards_hold_the_rounded_features(clips: ClipManifest, tmp_path: Path) -> None:
    for dtype in ("float32", "float16"):
        run_loop(make_plan(clips, tmp_path / dtype, ("random-image",), dtype=dtype))
    whole, half = (rows_of(tmp_path / dtype) for dtype in ("float32", "float16"))
    for key in whole:
        x, y = whole[key]["features"]["video"], half[key]["features"]["video"]
        np.testing.assert_array_equal(y.astype(np.float32), x.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sequences_are_what_features_are_means_of(dtype: str, clips: ClipManifest, tmp_path: Path) -> None:
    """Read by the `webdataset` package; views have none, and features are those of an extraction without sequences."""
    run_loop(make_plan(clips, tmp_path / "plain", augmentation=Augmentation(1), dtype=dtype))
    plan = make_plan(clips, tmp_path / "kept", augmentation=Augmentation(1), dtype=dtype, sequences=True)
    run_loop(plan)
    for path in (tmp_path / "plain").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "kept" / path.name).read_bytes()
    read = {}
    for path in sorted((tmp_path / "kept/sequences").glob("*.tar")):
        for sample in webdataset.WebDataset(str(path), shardshuffle=False):
            members = {name: data for name, data in sample.items() if name.endswith(".npy")}
            read[sample["__key__"]] = {name[:-4]: np.load(io.BytesIO(x)) for name, x in members.items()}
    found = rows_of(tmp_path / "kept")
    assert list(read) == [f"c{i}" for i in range(8)] == list(found)
    columns = {"video": "random_image", "audio": "random_audio", "text": "random_text"}
    for key, sequences in read.items():
        features = {m: x for m, x in found[key]["features"].items() if "_v" not in m and x is not None}
        assert set(sequences) == {columns[m] for m in features}
        for modality, x in features.items():
            sequence = sequences[columns[modality]]
            assert sequence.dtype == dtype and sequence.shape == (len(sequence), 16)
            np.testing.assert_allclose(
                sequence.astype(float).mean(axis=0), x, atol=1e-6 if dtype == "float32" else 1e-3
            )
    assert len(read["c0"]["random_text"]) == 3 and len(read["c0"]["random_audio"]) == 12
    # An archive that is gone is made again, with its shard; without sequences it is another extraction.
    archive = tmp_path / "kept/sequences/clips-000001.tar"
    before = archive.read_bytes()
    archive.unlink()
    assert run_loop(plan).resumed == 1 and archive.read_bytes() == before
    with pytest.raises(ValueError, match=r"differs in sequences \(there true, here absent\)"):
        make_plan(clips, tmp_path / "kept", augmentation=Augmentation(1), dtype=dtype)


def test_killed_and_resumed_is_the_same_as_never_killed(clips: ClipManifest, tmp_path: Path) -> None:
    run_loop(make_plan(clips, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run_loop(make_plan(clips, tmp_path / "killed"), stop_after=6)
    assert not (tmp_path / "killed/manifest.parquet").exists()
    first = tmp_path / "killed/clips-000000.tar"
    before = first.stat().st_mtime_ns
    summary = run_loop(make_plan(clips, tmp_path / "killed"))
    assert summary.resumed == 1 and first.stat().st_mtime_ns == before
    assert Manifest.open(tmp_path / "killed").digest == Manifest.open(tmp_path / "whole").digest
    for path in (tmp_path / "whole").glob("clips-*"):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()
    first.unlink()  # a report without its shard is not believed
    assert run_loop(make_plan(clips, tmp_path / "killed")).resumed == 1
    assert first.is_file()


def test_every_clip_is_accounted_for(clips: ClipManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored damage, a failing decoder, an encoder's refusal and numbers that are not finite, each by name."""
    folder = tmp_path / "clips"
    shutil.copytree(clips.folder, folder)
    reader = ClipReader(ClipManifest.open(folder))
    offset = int(reader.index(0).members[1, 0, 0])  # type: ignore[index]
    tar = folder / "clips-000000.tar"
    data = bytearray(tar.read_bytes())
    data[offset + 100] ^= 0xFF
    tar.write_bytes(data)
    from conclugen.encoders.random_projection import RandomEncoder
    from shards.media.limits import MediaError

    decode, steps = extraction_clips.decode_clip, RandomEncoder.encode_sequence

    def failing(clip, *args, **options):
        if clip.key == "c3":
            raise MediaError("no_video", "no picture could be decoded")
        return decode(clip, *args, **options)

    def odd(self, batch):
        if self.info.modality == "text" and any("number 4" in text for text in batch):
            raise encoders.InputError(next(i for i, text in enumerate(batch) if "number 4" in text), "too odd")
        sequences = steps(self, batch)
        if self.info.modality == "text" and any("number 7" in text for text in batch):
            sequences[0][:] = np.inf
        return sequences

    monkeypatch.setattr(extraction_clips, "decode_clip", failing)
    monkeypatch.setattr(RandomEncoder, "encode_sequence", odd)
    summary = run_loop(make_plan(ClipManifest.open(folder), tmp_path / "out"))
    assert (summary.clips, summary.written, summary.exit_status) == (8, 4, 3)
    listed = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert {(entry["key"], entry["reason"]) for entry in listed} == {
        ("c1", "stored_damaged"),
        ("c3", "no_video"),
        ("c4", "not_encodable"),
        ("c7", "not_finite"),
    }
    assert all(entry["message"] and entry["source"] for entry in listed)
    assert set(rows_of(tmp_path / "out")) == {"c0", "c2", "c5", "c6"}
    assert any("8 clips = 4 with features + 4 quarantined" in line for line in summary.lines(tmp_path))
    assert set(summary.quarantined) <= set(ALL_REASONS)


def test_clips_with_nothing_to_encode(clips: ClipManifest, tmp_path: Path) -> None:
    summary = run_loop(make_plan(clips, tmp_path, ("random-text",)))
    assert summary.written == 6 and summary.quarantined == {"nothing_to_encode": 2}


def test_a_shard_of_which_nothing_is_left(clips: ClipManifest, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(clips.folder, folder)
    tar = folder / "clips-000001.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    summary = run_loop(make_plan(ClipManifest.open(folder), tmp_path / "out"))
    assert (summary.written, summary.shards, summary.quarantined) == (4, 1, {"stored_damaged": 4})
    assert Manifest.open(tmp_path / "out").rows == 4
    resumed = run_loop(make_plan(ClipManifest.open(folder), tmp_path / "out"))
    assert resumed.resumed == 2 and resumed.quarantined == summary.quarantined


def test_clips_built_under_wider_limits_are_decoded_under_them(tmp_path: Path) -> None:
    """A quarter of an hour of a still picture, allowed to the build: allowed to the extraction as well."""
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos/long.mp4", [0, 300, 599.9, 600], (32, 32))
    limits = Limits(max_seconds=1000, picture_gap_seconds=1000)
    plan = BuildPlan.make(read_clips("folder", tmp_path / "videos"), tmp_path / "clips", BuildOptions(limits=limits))
    plan.acquire()
    assert build_clips(plan, [build_shard(task, isolated=False) for task in plan.tasks]).written == 1
    clips = ClipManifest.open(tmp_path / "clips")
    assert clips.limits == limits
    assert run_loop(make_plan(clips, tmp_path / "out", ("random-image",))).quarantined == {}
    names = [entry["name"] for entry in clips.shards.to_pylist()]
    shorter = Limits(max_seconds=60, picture_gap_seconds=1000).to_dict()
    narrow = ClipManifest.assemble(tmp_path / "clips", names, {"limits": shorter})
    assert run_loop(make_plan(narrow, tmp_path / "narrow", ("random-image",))).quarantined == {"too_long": 1}
    for wrong in ({"max_seconds": -1}, {"seconds": 3}, [3]):
        with pytest.raises(ManifestError, match="its limits cannot be read"):
            _ = ClipManifest.assemble(tmp_path / "clips", names, {"limits": wrong}).limits


def test_other_extractions_are_not_mixed(clips: ClipManifest, tmp_path: Path) -> None:
    make_plan(clips, tmp_path)
    with pytest.raises(ValueError, match=r"differs in dtype \(there \"float32\", here \"float16\"\), encoders "):
        make_plan(clips, tmp_path, ("random-image",), dtype="float16")
    with pytest.raises(ValueError, match=r"differs in crop \(there .*, here \"union\"\)"):
        make_plan(clips, tmp_path, decoding=Decoding("union"))
    run_loop(make_plan(clips, tmp_path))
    plan = Extraction.make(clips, tmp_path, [EncoderChoice("random-image")])
    plan.acquire(overwrite=True)
    assert run_loop(plan).written == 8 and Manifest.open(tmp_path).schema.column_names == ("random_image",)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(ValueError, match="is not empty"):
        make_plan(clips, tmp_path / "other")


def test_features_made_before_precision_was_named_are_not_gone_on_with(clips: ClipManifest, tmp_path: Path) -> None:
    """On a GPU those were of bfloat16; and steps of a deviation were stored in pairs."""
    plan = Extraction.make(clips, tmp_path / "a", [EncoderChoice(name) for name in RANDOM[:2]], sequences=True)
    half = replace(plan.infos[1], preprocessing="extractor; steps; computed in float32", pooling="meanstd")
    plan = replace(plan, infos=(plan.infos[0], half))
    plan.acquire()
    plan.acquire()
    assert plan.identity["sequences"] == {"random_audio": 8}
    record = plan.out / "extraction.json"
    old = json.loads(record.read_text())
    old["encoders"][1]["preprocessing"] = "extractor; steps"
    record.write_text(json.dumps(old | {"sequences": True}))
    told = r"differs in encoders\[1\]\.preprocessing \(there .*\), sequences \(there true, here .*"
    with pytest.raises(ValueError, match=told):
        plan.acquire()
    changed = [info.to_dict() for info in plan.infos]
    changed[1]["preprocessing"] = "extractor; steps"
    told = r'preprocessing is ".*; computed in float32", .*made with "extractor; steps"; .* Extract its features again'
    with pytest.raises(ValueError, match=told):
        Recipe(tuple(changed), Decoding()).check(plan.infos)


def test_stretches_of_a_clip() -> None:
    """Frames by their time, sound by its samples, no text; where no frame begins, the one still on the screen."""
    take = encoders.create("random-image").info.takes
    wave, text = (encoders.create(name).info.takes for name in RANDOM[1:])
    pixels = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 64, 64, 3), np.uint8)
    frames = Frames(pixels, np.arange(3.0), np.zeros(3, bool))
    decoded = Decoded((take, wave, text), {take.key: frames}, {16_000: np.arange(40_000, dtype=np.float32)}, "words")
    assert set(decoded.inputs()) == {take.key, wave.key, "text"} and decoded.seconds == 2.5
    part = decoded.inputs((0.5, 1.5))
    assert part[take.key][:, 0, 0, 0].tolist() == [1] and set(part) == {take.key, wave.key}
    assert part[wave.key][0] == 8000 and len(part[wave.key]) == 16_000
    assert decoded.inputs((1.2, 1.9))[take.key][:, 0, 0, 0].tolist() == [1]
    assert decoded.inputs((0.0, 2.5))[take.key][:, 0, 0, 0].tolist() == [0, 1, 2]
    # Of frames with a face alone, a stretch has those in it or still shown, and else none: not another time's.
    with_face = Frames(pixels[[0, 2]], np.array([0.0, 6.0]), np.ones(2, bool))
    decoded = Decoded((take, wave, text), {take.key: with_face}, {16_000: np.arange(160_000, dtype=np.float32)}, None)
    assert decoded.inputs((0.5, 0.9))[take.key][:, 0, 0, 0].tolist() == [0]
    assert set(decoded.inputs((7.5, 8.5))) == {take.key, wave.key}
    # Of frames some of which are whole pictures none was left out: the last one stays as long as it takes.
    some = Frames(pixels[[0, 2]], np.array([0.0, 1.0]), np.array([True, False]))
    decoded = Decoded((take, wave, text), {take.key: some}, {16_000: np.arange(160_000, dtype=np.float32)}, None)
    assert decoded.inputs((7.5, 8.5))[take.key][:, 0, 0, 0].tolist() == [2]


class Windowed:
    """Gives the darkest and the brightest of every 16 frames: what a 3D network sees at once."""

    info = replace(encoders.create("random-video").info, width=2)

    def encode_sequence(self, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        greys = [frames.mean(axis=(1, 2, 3)) for frames in batch]
        return [np.array([[g[i : i + 16].min(), g[i : i + 16].max()] for i in range(0, len(g), 16)]) for g in greys]


def cut_video(path: Path) -> bytes:
    """0.8 s of dark, then bright pictures."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(63):
            grey = np.full((64, 64, 3), 30 if number < 20 else 220, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        out.mux(stream.encode(None))
    return path.read_bytes()


def test_windows_of_frames_lie_within_a_shot(tmp_path: Path) -> None:
    """In the job's stages and in embedding; without the cut one window has pictures of both shots."""
    video, encoder = cut_video(tmp_path / "a.mp4"), Windowed()
    take = encoder.info.takes
    plain = {"width": 64, "height": 64, "pictures": 63, "damaged": 0, "seconds": 2.52, "copied": True}
    for cuts, mixed in ((None, 1), ([], 1), ([0.8], 0)):
        info = {"video": plain if cuts is None else {**plain, "cuts": cuts}, "face": None, "transcript": None}
        clip = StoredClip("a", 0, video, None, None, info)
        inputs, lengths = decode_inputs(clip, [take], Decoding())
        assert lengths == {take.key: [13, 28] if cuts else [41]}
        (sequence,) = encode_within_breaks(encoder, [input_of(take, inputs[take.key])], [lengths[take.key]])
        assert (np.ptp(sequence, axis=1) > 100).sum() == mixed and len(sequence) == 3
        columns = {f"in.{take.key}": pa.array([inputs[take.key]], pa.large_binary())}
        columns[f"in.{take.key}.lengths"] = pa.array([lengths[take.key]], pa.list_(pa.int32()))
        columns |= {name: pa.array([value]) for name, value in (("key", "a"), ("reason", None), ("message", None))}
        stage = EncoderStage(EncoderChoice("random-video"), Augmentation(), frozenset(), "float32", _encoder=encoder)
        made = stage(pa.table(columns))
        assert not [name for name in made.column_names if name.startswith("in.")]
        vector = np.frombuffer(made[f"out.{encoder.info.column}"][0].as_py(), np.float32)
        assert vector == pytest.approx(sequence.mean(axis=0), abs=1e-3)
        decoded = Decoded.of(clip, [take], Decoding())
        for stretch in ((0.0, 2.5), (0.5, 1.6), (1.2, 2.0)):
            assert sum(decoded.lengths(take, stretch)) == len(decoded.inputs(stretch)[take.key])
        assert len(decoded.lengths(take, (0.5, 1.6))) == (2 if cuts else 1)


def test_windows_end_where_frames_without_the_face_are_left_out(tmp_path: Path) -> None:
    times = np.arange(63) / 25
    box = np.tile([0.2, 0.2, 0.8, 0.8], (63, 1))
    tracks = tuple(FaceTrack(a, b, times, box) for a, b in ((0.0, 0.6), (1.5, 2.52)))
    face = Faces(tracks, (), 1.0, 0).to_dict()
    clip = StoredClip("a", 0, cut_video(tmp_path / "a.mp4"), None, None, {"face": face, "transcript": None})
    take = Windowed.info.takes
    for whole, expected in ((False, 2), (True, 1)):
        assert len(decode_inputs(clip, [take], Decoding(whole_frames=whole))[1][take.key]) == expected


def test_shards_say_which_encoders_made_them(clips: ClipManifest, tmp_path: Path) -> None:
    plan = make_plan(clips, tmp_path)
    run_loop(plan)
    recipe = recipe_of(Manifest.open(tmp_path).info)
    assert recipe is not None and [item["name"] for item in recipe.encoders] == list(RANDOM)
    recipe.check(plan.infos)
    with pytest.raises(ValueError, match="random-text, which is missing"):
        recipe.check(plan.infos[:2])
    changed = [dict(item) for item in recipe.encoders]
    changed[1]["digest"] = "0" * 64
    with pytest.raises(ValueError, match=r"encoder random-audio: digest is .*--weights random-audio=FILE"):
        type(recipe)(tuple(changed), recipe.decoding).check(plan.infos)
    # What one of the two does not state is what nobody chose: read either way, it is another encoder.
    for entry, chosen in (("layers", "9"), ("pooling", "meanstd"), ("preprocessing", "other")):
        changed = [dict(item) for item in recipe.encoders]
        changed[1][entry] = chosen
        with pytest.raises(ValueError, match=f"encoder random-audio: {entry} is .* made with .{chosen}"):
            type(recipe)(tuple(changed), recipe.decoding).check(plan.infos)
    other = replace(plan.infos[1], layers="9")
    with pytest.raises(ValueError, match=r'encoder random-audio: layers is "9", but .* made with ""'):
        recipe.check([plan.infos[0], other, plan.infos[2]])
    old = [{name: x for name, x in item.items() if name not in ("layers", "pooling")} for item in recipe.encoders]
    type(recipe)(tuple(old), recipe.decoding).check(plan.infos)  # made before there was a choice
    assert recipe_of({}) is None
    with pytest.raises(ValueError, match="cannot be read"):
        recipe_of({"features": {"crop": "follow"}})


def test_every_machine_has_the_encoder_of_the_plan(clips: ClipManifest, tmp_path: Path) -> None:
    """As on a node whose cache has another commit: nothing is stored, and the line names the encoder and the entry."""
    for change in ({"digest": "0" * 64}, {"layers": "9"}, {"preprocessing": "none"}):
        plan = Extraction.make(clips, tmp_path / next(iter(change)), [EncoderChoice(name) for name in RANDOM])
        plan = replace(plan, infos=(plan.infos[0], replace(plan.infos[1], **change), plan.infos[2]))  # type: ignore[arg-type]
        plan.acquire()
        told = f"encoder random-audio: on the machine .* its {next(iter(change))} is .*, where the job began it is"
        with pytest.raises(EncoderError, match=told):
            run_loop(plan)
        assert not list(plan.out.glob("*.tar"))


def test_data_choose_no_folder_and_start_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names out of a model's config.json: the user says where the model is, by --weights or --mirror."""
    for folder in ("work/sub/dir", "work/.vit", "mirror/owner/vit", "work/owner/vit", "outside"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    mirror = str(tmp_path / "mirror")

    def weights_of(name: str, **given: str) -> str | None:
        options = EncoderOptions(weights=given or None, mirror=mirror)
        return choices_of([name], options, {})[0].weights

    for model in ("/tmp/x", "../outside", "a/../../outside", "a/b/c", "~/x", "..", "a//b", "./sub"):
        with pytest.raises(ValueError, match="what features are made with has a name, and no path; refused"):
            weights_of(f"hf-image:{model}@layer=1", **{f"hf-image:{model}": mirror})
    for model in ("sub/dir", "evil/repo", ".vit"):
        name = f"hf-image:{model}"
        with pytest.raises(ValueError, match=f"data name this model, .* with --weights {name}=FOLDER, or --mirror"):
            weights_of(f"{name}@layer=1")
        assert weights_of(f"{name}@layer=1", **{name: mirror}) == mirror
    assert weights_of("hf-image:owner/vit") == f"{mirror}/owner/vit"  # no folder of that name elsewhere
    assert weights_of("hf-image:evil/repo", **{"hf-image:evil/repo": "evil/repo"}) == "evil/repo"
    # What was downloaded before needs no leave; a revision is no way out of the cache.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub/models--mine--vit/snapshots" / ("a" * 40)
    for file, text in ((snapshot / "config.json", "{}"), (snapshot.parent.parent / "refs/main", snapshot.name)):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    assert weights_of("hf-image:mine/vit@layer=1") == str(snapshot)
    (tmp_path / "outside/config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"@revision is '[./]+outside', expected a branch"):
        weights_of("hf-image:mine/vit@revision=../../../outside")
    with pytest.raises(ValueError, match="data name this model"):
        weights_of("hf-image:mine/vit@revision=v1")


def test_places_hold_in_any_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of a cluster has another one."""
    (tmp_path / "sub/vit").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    names = ["hf-image:sub/vit@layer=1", "hf-audio:./gone", "hf-text:owner/name", "hf-video:sub/../sub/vit", "text"]
    options = EncoderOptions(weights={"text": "sub/vit", "hf-text:owner/name": "a/b"}, mirror="m")
    choices = choices_of(names, options)
    assert [(choice.name, choice.weights) for choice in choices] == [
        (f"hf-image:{tmp_path}/sub/vit@layer=1", None),
        (f"hf-audio:{tmp_path}/gone", None),
        ("hf-text:owner/name", "a/b"),
        (f"hf-video:{tmp_path}/sub/vit", None),
        ("text", f"{tmp_path}/sub/vit"),
    ]
    assert {choice.mirror for choice in choices} == {f"{tmp_path}/m"}
    options = EncoderOptions(gpus={"hf-image:sub/vit": 0.5, "text": 1}, mirror="s3://bucket/m")
    assert {choice.mirror for choice in choices_of(names, options)} == {"s3://bucket/m"}
    shares = resources_of(options, [choice.name for choice in choices]).gpus
    assert shares == {f"hf-image:{tmp_path}/sub/vit@layer=1": 0.5, "text": 1}


def test_two_encoders_of_one_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders of one name, or two encoders that write the same column."""
    clips = make_clips(tmp_path / "clips", 1, 2, pictures=25)
    with pytest.raises(ValueError, match="write the column 'random_image'; rename one model's folder, which names"):
        make_plan(clips, tmp_path / "out", ("random-image", "random-image"))
    info = encoders.create("random-audio").info
    other = {name: replace(info, name=name) for name in ("one", "two")}
    monkeypatch.setattr(EncoderChoice, "create", lambda choice, device: SimpleNamespace(info=other[choice.name]))
    with pytest.raises(ValueError, match="write the column 'random_audio'; leave one of them out"):
        make_plan(clips, tmp_path / "out", ("one", "two"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"weights": {"prosody": ""}}, "weights of prosody: must name a file or folder, got ''"),
        ({"weights": {"prosody": "~nobody-here/x"}}, "weights of prosody: '~nobody-here/x': there is no home folder"),
        ({"mirror": ""}, "mirror: must name a file or folder, got ''"),
        ({"mirror": "~nobody-here"}, "mirror: '~nobody-here': there is no home folder ~nobody-here; write the whole"),
    ],
)
def test_places_that_are_none(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choices_of(["prosody"], EncoderOptions(**given))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoders", "resnet15"], "did you mean 'resnet152'"),
        (["--encoders", "random", "--weights", "resnet152=x"], "is not among"),
        (["--encoders", "random", "--gpus", "text=1"], "is not among"),
        (["--encoders", "random", "--gpus", "half"], "--gpus: must be a mapping, such as name=value, got 'half'"),
        (["--encoders", "random", "--actors", "0"], "counts of 1 or more"),
        (["--encoders", "random", "--dtype", "float8"], "--dtype: must be one of float32, float16, got 'float8'"),
        (["--encoders", "random", "--crop", "face"], "--crop 'face' is unknown"),
        (["--encoders", "random", "--views", "-1"], "--views -1"),
        (["--encoders", "random", "--clips", "/nowhere"], "no manifest at /nowhere"),
        (["--encoders", "resdavenet", "--mirror", "/nowhere"], "the mirror /nowhere has no davenet.pth"),
    ],
)
def test_wrong_input_is_told_before_any_work(
    clips: ClipManifest, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    arguments = [
        *([] if "--clips" in arguments else ["--clips", clips.folder]),
        "--out",
        str(tmp_path / "o"),
        *arguments,
    ]
    assert extract_features.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("given", [{"cpus": 0.0}, {"cpus": -1.0}, {"clips_per_task": 0}, {"block_bytes": 0}])
def test_resources_of_nothing_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cpus, clips_per_task and block_mib: must be positive"):
        Resources(**given)


@pytest.mark.parametrize("job", [extract_features, embed])
def test_no_file_names_a_plugin(job: Any, tmp_path: Path) -> None:
    """It is imported: so the command line alone may name it."""
    (tmp_path / "job.yaml").write_text("plugin: [os]\n")
    with pytest.raises(OptionsError, match=r"job\.yaml.*plugin"):
        job.COMMAND.parse(["--config", str(tmp_path / "job.yaml")])


def test_no_row_comes_twice(clips: ClipManifest, tmp_path: Path) -> None:
    from ray_jobs.extraction.feature_shards import ShardCollector

    collector = ShardCollector(make_plan(clips, tmp_path))
    table = pa.table({"shard": [0], "row": [0], "key": ["c0"], "reason": ["damaged"], "message": ["x"]})
    collector.add(table)
    with pytest.raises(RuntimeError, match="twice"):
        collector.add(table)


@pytest.mark.parametrize("job", ["extract_features", "embed"])
def test_what_is_doubtful_in_the_clips_is_said_before_any_work(
    job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose test part has a single speaker."""
    clips = make_clips(tmp_path / "clips", 1, 8)

    def connect(*_: object, **__: object) -> None:
        raise OSError("work begins here")

    monkeypatch.setattr("ray_jobs.ray_cluster.connect", connect)
    if job == "extract_features":
        arguments = ["--encoders", "random", "--output", str(tmp_path / "out")]
    else:
        run_loop(make_plan(clips, tmp_path / "features", NAMES))
        make_run(tmp_path, "run", ("video", "audio"))
        arguments = ["--run", "run", "--output", str(tmp_path / "runs"), "--embeddings", str(tmp_path / "out")]
    main = importlib.import_module(f"ray_jobs.{job}").COMMAND.main
    assert main(["--data", clips.folder, *arguments]) == 1
    told = capsys.readouterr()
    assert [line for line in told.out.splitlines() if line.startswith("warning: ")] == [
        f"warning: {doubt}" for doubt in stored_samples(clips).doubts()
    ]
    assert "part 'test' has 1 speaker" in told.out and "work begins here" in told.err


def test_room_is_asked_for_what_is_left(tmp_path: Path) -> None:
    plan = make_plan(make_clips(tmp_path / "clips", 2, 6, pictures=25), tmp_path / "out")
    whole, half, none = (least_bytes(plan.schema.columns, rows) for rows in (12, 6, 0))
    assert whole > half > none
    assert room_needed(plan, overwrite=False) == whole
    with pytest.raises(KeyboardInterrupt):
        run_loop(plan, stop_after=6)
    assert room_needed(plan, overwrite=False) == half
    assert room_needed(plan, overwrite=True) == whole - bytes_in(plan.out)
    run_loop(plan)
    assert room_needed(plan, overwrite=False) == none
    # A report alone, of files that went or of another extraction, is no shard that is done.
    reports = sorted((plan.out / REPORTS).glob("*.json"))
    (plan.out / f"{reports[0].stem}.tar").unlink()
    assert room_needed(plan, overwrite=False) == half
    report = json.loads(reports[1].read_text())
    reports[1].write_text(json.dumps(report | {"digest": "of another"}))
    assert room_needed(plan, overwrite=False) == whole


def test_settings_of_views_are_part_of_an_extraction_that_has_views(clips: ClipManifest, tmp_path: Path) -> None:
    """Those of no view change no feature: features without views stay found, whatever the settings are."""

    def identity(**settings: Any) -> dict[str, Any]:
        choices = [EncoderChoice("random-image")]
        return Extraction.make(clips, tmp_path / "x", choices, augmentation=Augmentation(**settings)).identity

    plain = identity(count=0)
    assert plain == identity(count=0, seed=5) == identity(count=0, strength="strong") and plain["views"] == 0
    assert not {"view_strength", "view_seed"} & plain.keys()
    found = [identity(count=1), identity(count=1, seed=5), identity(count=1, strength="strong")]
    told = [(i["views"], i["view_strength"], i["view_seed"]) for i in found]
    assert told == [(1, "mild", 127), (1, "mild", 5), (1, "strong", 127)]


def test_ray_data_s_settings_are_those_of_the_job_and_taken_back() -> None:
    def settings() -> tuple[Any, ...]:
        context = ray.data.DataContext.get_current()
        bars = context.enable_progress_bars, context.print_on_execution_start
        return context.target_max_block_size, context.execution_options.preserve_order, *bars

    before = settings()
    with pytest.raises(ValueError, match="x"), data_settings(Resources(block_bytes=7 << 20)):
        assert settings() == (7 << 20, True, False, False)
        raise ValueError("x")
    assert settings() == before
