"""Bad input as it meets a user of `python -m ray_jobs.pretrain`: a line that says what, where and what to do; status 2;
no worker started and nothing left behind."""

import re
from pathlib import Path

import numpy as np
import pytest
import ray

from ray_jobs.pretrain import main
from ray_jobs.run_folder import RunFolder
from shards import Column, Manifest, Sample, Schema, ShardWriter, View


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """`text` is in the later half of the rows alone; `train` is the earlier one."""
    schema = Schema((Column("video", 3), Column("audio", 2), Column("text", 2)))
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "shards", schema, max_shard_bytes=60_000) as writer:
        for i in range(64):
            columns = {"video": rng.normal(size=3), "audio": rng.normal(size=2), "text": rng.normal(size=2)}
            writer.append(Sample(f"k{i}", columns if i >= 32 else {**columns, "text": None}))
    written = Manifest.open(tmp_path / "shards")
    View.where(written, np.arange(64) < 32, "train").save()
    return tmp_path / "shards"


def refused(shards: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the job says; nothing of a run is left, and its name is free."""
    base = ["--data", str(shards), "--data.validation_view", "null", "--pretrain.global_batch", "16"]
    base += ["--output", str(shards.parent / "runs"), "--run", "r"]
    if "--pretrain.modalities" not in arguments:
        base += ["--modalities", "video,audio"]
    assert main([*base, *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("error: ") == 1
    assert not ray.is_initialized()
    assert not (shards.parent / "runs" / "r" / "run.json").exists()
    return said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--preset", "conclugn"],
            r"preset: unknown value 'conclugn' \(did you mean 'conclugen'\?\); allowed: .*simclr",
        ),
        (
            ["--pretrain.modalities", "[vidoe, audio]"],
            r"'vidoe' \(did you mean 'video'\?\), but the data has: audio \(2\), text \(2\), video \(3\)",
        ),
        (["--pretrain.tasks.contrastiv.weight", "1"], r"contrastiv.*did you mean --pretrain.tasks.contrastive.weight"),
        (["--preset", "contrast_only", "--pretrain.tasks.simclr.modality", "vdeo"], "simclr.modality.*'vdeo'.*'video'"),
        (["--pretrain.epoch", "3"], "unknown option --pretrain.epoch; did you mean --epochs"),
        (["--pretrain.model.own_width_modalities", "[audoi]"], r"'audoi' \(did you mean 'audio'\?\)"),
        (["--preset", "simclr"], "modalities.*only 'video': simclr uses no other"),
        (
            ["--preset", "simclr", "--pretrain.modalities", "[video_3d]"],
            "needs modality 'video_3d'.*did you mean 'video'",
        ),
        (
            ["--pretrain.tasks.speaker_clusters.weight", "1"],
            r"task 'speaker_clusters' needs the speaker of each row.*data\.speaker.*tasks\.speaker_clusters=null",
        ),
        (["--pretrain.tasks.comm.weight", "1"], r"task 'comm' needs the speaker of each row"),
        (
            ["--pretrain.tasks.pase.targets", "[prosody, audoi]"],
            r"task 'pase' needs target 'prosody', but the data has: .*tasks\.pase\.targets.*tasks\.pase=null",
        ),
        (
            ["--pretrain.tasks.weighting", "share"],
            r"with weighting='share' the tasks' weights must sum to 1, got .*; divide each by",
        ),
        (["--view", "tarin"], "no view 'tarin'.*did you mean 'train'"),
        (
            ["--pretrain.global_batch", "64"],
            "--batch: 64 is more than the 32 rows of view 'train'; give --batch 16, or at most 32",
        ),
        (
            ["--run.keep_by", "validation/loss"],
            "--run.keep-by: 'validation/loss' needs data.validation_view, which is None",
        ),
        (
            ["--data.validation_view", "everything", "--run.keep_by", "validation/effective_rank/vidoe"],
            r"--run.keep-by: .*/vidoe' is not a measure .* did you mean 'validation/effective_rank/video'\?",
        ),
        (
            ["--data.validation_view", "vaild"],
            "--data.validation-view: .*no view 'vaild'.*null measures nothing",
        ),
        (["--data.validation_view", "everything", "--label", "emotion"], "emotion"),
        (["--output", "s3://bucket/runs"], "--output: 's3://bucket/runs' is a URL.*run.storage"),
        (["--run.stall_timeout_s", ".inf"], "--run.stall-timeout-s: must be more than 0 seconds, got inf"),
        (["--pretrain.optimizer.warmup_epochs", ".inf"], "--pretrain.optimizer.warmup-epochs: .*inf"),
        (["--run", "../x"], "--run: '../x' cannot name a folder"),
        (["--run", "x" * 300], "--run: 'x{40}'... is longer than 200 bytes"),
    ],
)
def test_unknown_names_and_what_does_not_fit(
    shards: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert re.search(message, " ".join(refused(shards, capsys, *arguments).split()))


@pytest.mark.parametrize("recipe", ["paper", "improved"])
def test_a_modality_that_no_training_row_has(shards: Path, capsys: pytest.CaptureFixture[str], recipe: str) -> None:
    said = refused(shards, capsys, "--pretrain.modalities", "[video, audio, text]", "--recipe", recipe)
    assert said == (
        "error: --modalities: 'text' missing in all 32 rows of view 'train'; learn from the others: "
        "--modalities video,audio\n"
    )


def test_a_shard_that_is_cut_off_or_not_there(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shard,) = [path for path in shards.glob("*.tar") if path.name.endswith("00000.tar")]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    said = refused(shards, capsys)
    assert shard.stem in said and f"expected {len(whole)}" in said and f"found {len(whole) // 2}" in said
    shard.unlink()
    assert re.search(f"{shard.stem}.*missing", refused(shards, capsys))


def test_a_finished_name_of_another_identity(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Named field by field, and left as it is."""
    folder = RunFolder(shards.parent / "runs" / "taken")
    folder.acquire({"seed": 3, "global_batch": 16})
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.path.rglob("*"))
    said = refused(shards, capsys, "--run", "taken", "--pretrain.seed", "4")
    assert "seed: 3 then, 4 now" in said and "global_batch" not in said and "Choose another run.name" in said
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.path.rglob("*")) == before
