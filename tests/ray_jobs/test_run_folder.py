"""A run is known by its identity, and only its latest start may write."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ray_jobs.run_config import RunConfig
from ray_jobs.run_folder import RunFolder, SupersededError
from shards import CorruptSample


def test_a_new_run_claims_its_folder_and_the_same_run_finds_it(tmp_path: Path) -> None:
    identity = {"seed": 1, "modalities": ("video", "audio")}
    folder = RunFolder(tmp_path / "run")
    assert not folder.belongs(identity) and not folder.path.exists()
    folder.acquire(identity)
    assert RunFolder(tmp_path / "run").belongs(identity)
    RunFolder(tmp_path / "run").acquire(identity)


def test_a_claim_cut_off_by_a_kill_leaves_the_name_free(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.4711").write_text("{")
    assert not RunFolder(tmp_path / "run").belongs({"seed": 1})
    RunFolder(tmp_path / "run").acquire({"seed": 1})
    assert RunFolder(tmp_path / "run").belongs({"seed": 1})


def test_another_identity_is_refused_with_every_field_that_differs(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").acquire({"seed": 1, "global_batch": 64, "recipe": "paper"})
    with pytest.raises(ValueError, match="run with this name exists") as refusal:
        RunFolder(tmp_path / "run").acquire({"seed": 2, "global_batch": 64, "recipe": "improved"})
    message = str(refusal.value)
    assert "seed: 1 then, 2 now" in message and "recipe: 'paper' then, 'improved' now" in message
    assert "global_batch" not in message


def test_a_folder_of_something_else_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"no run\.json"):
        RunFolder(tmp_path / "run").acquire({"seed": 1})
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_the_standardisation_is_kept_bit_for_bit(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.load_standardization() is None
    moments = {"video": (np.array([0.1, 1e300]), np.array([3.0, 1 / 3])), "audio_2": (np.zeros(1), np.ones(1))}
    folder.save_standardization(moments)
    read = folder.load_standardization()
    assert read is not None and set(read) == set(moments)
    for name, pair in moments.items():
        for mine, theirs in zip(pair, read[name], strict=True):
            assert np.array_equal(mine, theirs)
            assert torch.as_tensor(theirs).dtype == torch.float64


@pytest.mark.parametrize("content", ["", '{"seed": 1', "[1]", pytest.param("[" * 100_000, id="nested")])
def test_an_identity_that_can_t_be_read_is_named_and_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run/run\.json: has no run identity \(.*choose another run\.name"):
        RunFolder(tmp_path / "run").acquire({"seed": 1})
    assert (tmp_path / "run" / "run.json").read_text() == content


@pytest.mark.parametrize("damage", ["empty", "cut", "another file"])
def test_a_standardisation_that_can_t_be_read_is_named(tmp_path: Path, damage: str) -> None:
    folder = RunFolder(tmp_path)
    folder.save_standardization({"video": (np.zeros(3), np.ones(3))})
    whole = folder.standardization.read_bytes()
    if damage == "another file":
        save_file({"video/mean": np.zeros(3)}, folder.standardization)
    else:
        folder.standardization.write_bytes(b"" if damage == "empty" else whole[:-8])
    with pytest.raises(
        ValueError, match=r"standardization\.safetensors: is not a standardisation .*remove it and start the run"
    ):
        folder.load_standardization()


def test_a_standardisation_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes before the name, the folder that holds the name after it."""
    folder, synced = RunFolder(tmp_path), []

    def note(descriptor: int) -> None:
        status = os.fstat(descriptor)
        synced.append((status.st_ino, status.st_size, folder.standardization.exists()))

    monkeypatch.setattr(os, "fsync", note)
    folder.save_standardization({"video": (np.zeros(3), np.ones(3))})
    file, place = folder.standardization.stat(), tmp_path.stat()
    assert synced == [(file.st_ino, file.st_size, False), (place.st_ino, place.st_size, True)]


def test_workers_of_an_earlier_start_may_not_write(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.last_attempt() is None
    first = folder.begin_attempt()
    folder.check_attempt(first)
    assert RunFolder(tmp_path).last_attempt() == first
    second = RunFolder(tmp_path).begin_attempt()
    folder.check_attempt(second)
    with pytest.raises(SupersededError, match="started again"):
        folder.check_attempt(first)


def test_the_quarantine_names_each_sample_once_and_hands_it_to_the_meeting(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    a, b = (CorruptSample("s1", f"k{row}", row, "checksum differs") for row in (7, 3))
    first, second = folder.quarantine(0), folder.quarantine(1)
    first.note(a)
    second.note(b)
    second.note(a)
    assert second.take() == [b, a] and second.take() == []
    with (tmp_path / "quarantine" / "rank-0.jsonl").open("ab") as file:
        file.write(b'{"shard": "s", "key": "k", "row": "7", "reason": "r"}\n\xff\x00\n{"shard": "s')  # torn by a crash
    assert folder.quarantined() == [b, a]


def test_checkpoints_lie_in_one_place_whatever_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of Ray Train have current directories of their own."""
    monkeypatch.chdir(tmp_path)
    assert RunConfig("r", storage="checkpoints").storage == str(tmp_path / "checkpoints")
    assert RunConfig("r", storage="memory://checkpoints").storage == "memory://checkpoints"
