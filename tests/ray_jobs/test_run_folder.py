"""A run is known by its identity, and goes on from the newest checkpoint that is whole."""

from pathlib import Path

import numpy as np
import pytest
import torch

from conclugen import Pretrainer, checkpoint, presets
from ray_jobs.run_folder import RunFolder, checkpoint_name


def test_a_new_run_claims_its_folder_and_the_same_run_finds_it(tmp_path: Path) -> None:
    identity = {"seed": 1, "modalities": ("video", "audio")}
    folder = RunFolder(tmp_path / "run")
    assert not folder.belongs(identity) and not folder.path.exists()
    folder.claim(identity)
    assert RunFolder(tmp_path / "run").belongs(identity)
    RunFolder(tmp_path / "run").claim(identity)


def test_a_claim_cut_off_by_a_kill_leaves_the_name_free(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.4711").write_text("{")
    assert not RunFolder(tmp_path / "run").belongs({"seed": 1})
    RunFolder(tmp_path / "run").claim({"seed": 1})
    assert RunFolder(tmp_path / "run").belongs({"seed": 1})


def test_another_identity_is_refused_with_every_field_that_differs(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").claim({"seed": 1, "global_batch": 64, "recipe": "paper"})
    with pytest.raises(ValueError, match="run of this name exists") as refusal:
        RunFolder(tmp_path / "run").claim({"seed": 2, "global_batch": 64, "recipe": "improved"})
    message = str(refusal.value)
    assert "seed: 1 then, 2 now" in message and "recipe: 'paper' then, 'improved' now" in message
    assert "global_batch" not in message


def test_a_folder_of_something_else_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"no run\.json"):
        RunFolder(tmp_path / "run").claim({"seed": 1})
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def _pretrainer() -> Pretrainer:
    config = presets.build(
        "contrast_only",
        recipe="paper",
        modalities=("video", "audio"),
        global_batch=4,
        model={"representation_dim": 8, "projection_dim": 4},
    )
    return Pretrainer(config, {"video": 3, "audio": 2}, steps_per_epoch=2)


def test_the_newest_whole_checkpoint_is_found_and_damaged_ones_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, pretrainer = RunFolder(tmp_path / "run"), _pretrainer()
    for step in (10, 20, 30, 40):
        checkpoint.save(folder.train / "until-step-40" / checkpoint_name(step), pretrainer, {"epoch": 0, "step": step})
    newest, second = folder.checkpoints()[:2]
    tensors = newest / checkpoint.TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-8])  # a write cut off
    (second / checkpoint.DOCUMENT).unlink()  # a copy cut off
    found = folder.newest_checkpoint()
    assert found is not None and found[1].cursor == {"epoch": 0, "step": 20}
    assert capsys.readouterr().out.count("passed over") == 2


def test_checkpoints_of_a_longer_run_come_after_those_of_the_shorter(tmp_path: Path) -> None:
    folder, pretrainer = RunFolder(tmp_path / "run"), _pretrainer()
    for until, step in ((40, 40), (80, 60), (40, 20)):
        checkpoint.save(folder.train / f"until-step-{until}" / checkpoint_name(step), pretrainer, {"step": step})
    assert [path.name for path in folder.checkpoints()] == [checkpoint_name(step) for step in (60, 40, 20)]


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
